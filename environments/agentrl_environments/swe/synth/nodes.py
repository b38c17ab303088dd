"""Helpers that build syntax nodes, shared by the kinds of bugs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import libcst as cst
import libcst.matchers as m

SPACE = cst.SimpleWhitespace(" ")
_Statement = TypeVar("_Statement", bound=cst.CSTNode)


def statements_of(
    node: cst.CSTNode, wanted: type[_Statement] | tuple[type[_Statement], ...]
) -> Iterator[tuple[cst.IndentedBlock, int, _Statement]]:
    """Yield (block, index, statement) for each statement of a ``wanted`` type, if ``node`` is a block."""
    if isinstance(node, cst.IndentedBlock):
        for index, statement in enumerate(node.body):
            if isinstance(statement, wanted):
                yield node, index, statement


def without(block: cst.IndentedBlock, index: int) -> cst.IndentedBlock:
    """Return the block without the statement at ``index``, or with ``pass`` if no code is left."""
    return spliced(block, index, [])


def spliced(
    block: cst.IndentedBlock, index: int, statements: Sequence[cst.BaseStatement]
) -> cst.IndentedBlock:
    """Return the block with ``statements`` in place of its statement at ``index``.

    A block that has nothing left, or only a docstring, gets ``pass``.
    """
    body = [*block.body[:index], *statements, *block.body[index + 1 :]]
    if all(is_docstring(statement) for statement in body):
        body.append(cst.SimpleStatementLine([cst.Pass()]))
    return block.with_changes(body=body)


def is_docstring(statement: cst.CSTNode) -> bool:
    """Return whether a statement consists of a string alone, as docstrings do."""
    return m.matches(
        statement, m.SimpleStatementLine(body=[m.Expr(m.SimpleString() | m.ConcatenatedString())])
    )


def parenthesised(node: cst.BaseExpression) -> cst.BaseExpression:
    """Return an expression in parentheses, unless its meaning is the same without them in every context."""
    simple = (
        cst.Name,
        cst.Attribute,
        cst.Call,
        cst.Subscript,
        cst.Integer,
        cst.SimpleString,
        cst.List,
        cst.Dict,
        cst.Float,
    )
    if isinstance(node, simple) or node.lpar:
        return node
    return node.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


def plus(node: cst.BaseExpression, number: int) -> cst.BaseExpression:
    """Return the expression that adds ``number`` to the expression ``node``."""
    operator = cst.Add() if number > 0 else cst.Subtract()
    return cst.BinaryOperation(parenthesised(node), operator, cst.Integer(str(abs(number))))


def spaces_around(operator: cst.CSTNode) -> dict[str, object]:
    """Return the white space around an operator, as arguments of ``with_changes``."""
    return {name: getattr(operator, name) for name in ("whitespace_before", "whitespace_after")}


def space_before_test(node: cst.CSTNode) -> dict[str, cst.CSTNode]:
    """Return arguments of ``with_changes`` that put a space after an ``if`` or ``while``.

    The space is needed because ``if(x)`` has none.
    """
    return (
        {"whitespace_before_test": SPACE} if isinstance(node, cst.If) else {"whitespace_after_while": SPACE}
    )


def without_argument(arguments: Sequence[cst.Arg], index: int) -> list[cst.Arg]:
    """Return the arguments of a call, or the bases of a class, without one of them."""
    kept = [*arguments[:index], *arguments[index + 1 :]]
    return [*kept[:-1], kept[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)] if kept else []
