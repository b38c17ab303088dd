"""Kinds of bugs: each a function from a syntax node to what could stand in its place.

A kind sees one node at a time and yields replacements of that node; statements are removed and moved by replacing the block around them.
Formatting and comments survive, since the trees are libcst's. The families follow Yang et al. 2025 ("SWE-smith", appendix on procedural
modification) and the classical mutation operators of Offutt et al. 1996; ours add off-by-one, exceptions, arguments and loop control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import libcst as cst
import libcst.matchers as m


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to break code: ``replace`` yields what could stand in a node's place, for nodes of these ``types``."""

    replace: Callable[[cst.CSTNode], Iterator[cst.CSTNode]]
    types: tuple[type[cst.CSTNode], ...]


_COMPARED: Mapping[type[cst.BaseCompOp], type[cst.BaseCompOp]] = {
    cst.Equal: cst.NotEqual,
    cst.NotEqual: cst.Equal,
    cst.LessThan: cst.GreaterThan,
    cst.GreaterThan: cst.LessThan,
    cst.LessThanEqual: cst.GreaterThanEqual,
    cst.GreaterThanEqual: cst.LessThanEqual,
    cst.Is: cst.IsNot,
    cst.IsNot: cst.Is,
    cst.In: cst.NotIn,
    cst.NotIn: cst.In,
}
_EDGES: Mapping[type[cst.BaseCompOp], type[cst.BaseCompOp]] = {
    cst.LessThan: cst.LessThanEqual,
    cst.LessThanEqual: cst.LessThan,
    cst.GreaterThan: cst.GreaterThanEqual,
    cst.GreaterThanEqual: cst.GreaterThan,
}
_COMPUTED: Mapping[type[cst.BaseBinaryOp], type[cst.BaseBinaryOp]] = {
    cst.Add: cst.Subtract,
    cst.Subtract: cst.Add,
    cst.Multiply: cst.FloorDivide,
    cst.FloorDivide: cst.Multiply,
    cst.Divide: cst.Multiply,
    cst.Modulo: cst.FloorDivide,
    cst.BitAnd: cst.BitOr,
    cst.BitOr: cst.BitAnd,
    cst.LeftShift: cst.RightShift,
    cst.RightShift: cst.LeftShift,
}
_EXCEPTIONS = {
    "ValueError": "TypeError",
    "TypeError": "ValueError",
    "KeyError": "IndexError",
    "IndexError": "KeyError",
    "AttributeError": "KeyError",
    "StopIteration": "ValueError",
    "NotImplementedError": "TypeError",
}
_CONVERSIONS = ("list", "tuple", "sorted", "reversed", "str", "int", "set", "dict", "bytes", "iter", "abs")
_SPACE = cst.SimpleWhitespace(" ")


def change_operator(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Turn a comparison, an arithmetic operator, ``and`` or ``or`` into its opposite."""
    if isinstance(node, cst.ComparisonTarget) and (other := _COMPARED.get(type(node.operator))):
        yield node.with_changes(operator=other())
    elif isinstance(node, cst.BinaryOperation) and (computed := _COMPUTED.get(type(node.operator))):
        if not m.matches(
            node, m.BinaryOperation(operator=m.Modulo(), left=m.SimpleString() | m.ConcatenatedString())
        ):
            yield node.with_changes(operator=computed().with_changes(**_spaces(node.operator)))
    elif isinstance(node, cst.BooleanOperation):
        swapped = cst.Or() if isinstance(node.operator, cst.And) else cst.And()
        yield node.with_changes(operator=swapped.with_changes(**_spaces(node.operator)))


def swap_operands(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Exchange the two sides of an operator for which the order matters."""
    ordered = (
        cst.Subtract,
        cst.Divide,
        cst.FloorDivide,
        cst.Modulo,
        cst.Power,
        cst.LeftShift,
        cst.RightShift,
        cst.Add,
    )
    if isinstance(node, cst.BinaryOperation) and isinstance(node.operator, ordered):
        yield node.with_changes(left=_closed(node.right), right=_closed(node.left))
    elif isinstance(node, cst.Comparison) and len(node.comparisons) == 1:
        target = node.comparisons[0]
        if type(target.operator) in _EDGES:
            yield node.with_changes(
                left=target.comparator, comparisons=[target.with_changes(comparator=node.left)]
            )


def change_constant(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Change a number by one, flip a truth value, or empty a string."""
    if isinstance(node, cst.Integer) and node.value.isdigit():
        yield node.with_changes(value=str(int(node.value) + 1))
        if int(node.value) > 0:
            yield node.with_changes(value=str(int(node.value) - 1))
    elif isinstance(node, cst.Name) and node.value in ("True", "False"):
        yield node.with_changes(value="False" if node.value == "True" else "True")


def off_by_one(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Move a bound by one: of a comparison, a slice, a range."""
    if isinstance(node, cst.ComparisonTarget) and (edge := _EDGES.get(type(node.operator))):
        yield node.with_changes(operator=edge())
    elif isinstance(node, cst.Slice):
        for side in ("lower", "upper"):
            bound = getattr(node, side)
            if bound is not None and not isinstance(bound, cst.Integer):
                yield node.with_changes(**{side: _plus(bound, 1)})
            elif bound is None and side == "lower":
                yield node.with_changes(lower=cst.Integer("1"))
    elif isinstance(node, cst.Call) and m.matches(node.func, m.Name("range")) and node.args:
        last = node.args[min(1, len(node.args) - 1)]
        yield node.with_changes(
            args=[arg.with_changes(value=_plus(arg.value, -1)) if arg is last else arg for arg in node.args]
        )


def invert_condition(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Exchange the branches of an ``if``, or negate a condition."""
    if isinstance(node, (cst.If, cst.IfExp, cst.While)):
        if isinstance(node, cst.If) and isinstance(node.orelse, cst.Else):
            yield node.with_changes(body=node.orelse.body, orelse=node.orelse.with_changes(body=node.body))
        elif isinstance(node, cst.IfExp):
            yield node.with_changes(body=_closed(node.orelse), orelse=_closed(node.body))
        elif not m.matches(node, m.While(test=m.Name("True"))):
            test = node.test
            if isinstance(test, cst.UnaryOperation) and isinstance(test.operator, cst.Not):
                yield node.with_changes(test=test.expression, **_spaced(node))
            else:
                yield node.with_changes(test=cst.UnaryOperation(cst.Not(), _closed(test)), **_spaced(node))


def remove_conditional(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Drop an ``if`` and its branches, or do without asking what it guards."""
    for block, index, statement in _statements(node, cst.If):
        yield _without(block, index)
        body = statement.body
        if isinstance(body, cst.IndentedBlock):
            yield _spliced(block, index, body.body)


def remove_loop(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Drop a loop."""
    for block, index, _ in _statements(node, (cst.For, cst.While)):
        yield _without(block, index)


def remove_assignment(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Drop an assignment."""
    for block, index, line in _statements(node, cst.SimpleStatementLine):
        if len(line.body) == 1 and isinstance(line.body[0], (cst.Assign, cst.AugAssign)):
            yield _without(block, index)


def remove_call(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Drop a statement that only calls something."""
    for block, index, line in _statements(node, cst.SimpleStatementLine):
        if len(line.body) == 1 and m.matches(line.body[0], m.Expr(m.Call())):
            yield _without(block, index)


def remove_wrapper(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Take the body out of a ``with`` or ``try``, or the argument out of a conversion."""
    for block, index, statement in _statements(node, (cst.With, cst.Try)):
        if isinstance(statement.body, cst.IndentedBlock):
            yield _spliced(block, index, statement.body.body)
    wrappers = m.Call(
        func=m.OneOf(
            *(
                m.Name(name)
                for name in (
                    "list",
                    "tuple",
                    "sorted",
                    "reversed",
                    "str",
                    "int",
                    "set",
                    "dict",
                    "bytes",
                    "iter",
                    "abs",
                )
            )
        ),
        args=[m.Arg(keyword=None, star="")],
    )
    if isinstance(node, cst.Call) and m.matches(node, wrappers):
        yield _closed(node.args[0].value)


def break_chain(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Drop the last link of a chain of calls, of operators, or of conditions."""
    if (
        isinstance(node, cst.Call)
        and isinstance(node.func, cst.Attribute)
        and isinstance(node.func.value, (cst.Call, cst.Subscript))
    ):
        yield node.func.value
    elif isinstance(node, cst.BinaryOperation):
        yield _closed(node.left)
    elif isinstance(node, cst.BooleanOperation):
        yield _closed(node.left)
        yield _closed(node.right)


def change_return(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Return something else: nothing, the opposite, or the parts in another order."""
    if not isinstance(node, cst.Return) or node.value is None:
        return
    value = node.value
    if isinstance(value, cst.Tuple) and len(value.elements) > 1:
        first, second, *rest = value.elements
        yield node.with_changes(
            value=value.with_changes(
                elements=[
                    first.with_changes(value=second.value),
                    second.with_changes(value=first.value),
                    *rest,
                ]
            )
        )
    elif isinstance(value, (cst.Comparison, cst.BooleanOperation)) or m.matches(
        value, m.UnaryOperation(operator=m.Not())
    ):
        yield node.with_changes(
            value=cst.UnaryOperation(cst.Not(), _closed(value)), whitespace_after_return=_SPACE
        )
    elif not m.matches(value, m.Name("None") | m.Name("self") | m.Name("NotImplemented")):
        yield node.with_changes(value=cst.Name("None"), whitespace_after_return=_SPACE)


def shuffle_lines(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Exchange two neighbouring statements."""
    if isinstance(node, cst.IndentedBlock):
        for index in range(len(node.body) - 1):
            first, second = node.body[index : index + 2]
            if not _is_docstring(first) and not m.matches(
                second, m.SimpleStatementLine(body=[m.Return() | m.Raise()])
            ):
                yield node.with_changes(body=[*node.body[:index], second, first, *node.body[index + 2 :]])


def change_exception(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Drop a ``raise``, raise another error, or catch another one."""
    for block, index, line in _statements(node, cst.SimpleStatementLine):
        if len(line.body) == 1 and isinstance(line.body[0], cst.Raise):
            yield _without(block, index)
    if isinstance(node, cst.Raise):
        called = node.exc.func if isinstance(node.exc, cst.Call) else node.exc
        if isinstance(called, cst.Name) and called.value in _EXCEPTIONS:
            yield node.deep_replace(called, called.with_changes(value=_EXCEPTIONS[called.value]))
    elif (
        isinstance(node, cst.ExceptHandler)
        and isinstance(node.type, cst.Name)
        and node.type.value in _EXCEPTIONS
    ):
        yield node.with_changes(type=node.type.with_changes(value=_EXCEPTIONS[node.type.value]))


def change_arguments(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Exchange two arguments of a call, leave a named one out, or change a default."""
    if isinstance(node, cst.Call):
        plain = [index for index, arg in enumerate(node.args) if arg.keyword is None and not arg.star]
        if len(plain) >= 2:
            args, (first, second) = list(node.args), plain[:2]
            args[first] = node.args[first].with_changes(value=node.args[second].value)
            args[second] = node.args[second].with_changes(value=node.args[first].value)
            yield node.with_changes(args=args)
        for index, arg in enumerate(node.args):
            if arg.keyword is not None:
                kept = [*node.args[:index], *node.args[index + 1 :]]
                yield node.with_changes(
                    args=[*kept[:-1], kept[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)] if kept else []
                )
    elif (
        isinstance(node, cst.Param)
        and isinstance(node.default, cst.Name)
        and node.default.value in ("True", "False", "None")
    ):
        yield node.with_changes(default=cst.Name("True" if node.default.value != "True" else "False"))


def change_loop(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Leave a loop where it should go on, or go on where it should be left."""
    if isinstance(node, cst.Break):
        yield cst.Continue(semicolon=node.semicolon)
    elif isinstance(node, cst.Continue):
        yield cst.Break(semicolon=node.semicolon)


def change_bases(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Take a base away from a class."""
    if isinstance(node, cst.ClassDef):
        for index in range(len(node.bases)):
            kept = [*node.bases[:index], *node.bases[index + 1 :]]
            yield node.with_changes(
                bases=[*kept[:-1], kept[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)] if kept else []
            )


def remove_method(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Take a method away from a class that has others."""
    if isinstance(node, cst.ClassDef) and isinstance(node.body, cst.IndentedBlock):
        for index, statement in enumerate(node.body.body):
            if isinstance(statement, cst.FunctionDef):
                yield node.with_changes(body=_without(node.body, index))


def remove_body(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Leave nothing of a function but its signature and docstring: what is asked for is to write it."""
    if isinstance(node, cst.FunctionDef) and isinstance(node.body, cst.IndentedBlock):
        docstring = [statement for statement in node.body.body[:1] if _is_docstring(statement)]
        if len(node.body.body) > len(docstring) + 1:
            missing = cst.parse_statement("raise NotImplementedError\n")
            yield node.with_changes(body=node.body.with_changes(body=[*docstring, missing], footer=[]))


_BLOCK = (cst.IndentedBlock,)
KINDS: Mapping[str, Kind] = {
    kind.replace.__name__: kind
    for kind in (
        Kind(change_operator, (cst.ComparisonTarget, cst.BinaryOperation, cst.BooleanOperation)),
        Kind(swap_operands, (cst.BinaryOperation, cst.Comparison)),
        Kind(change_constant, (cst.Integer, cst.Name)),
        Kind(off_by_one, (cst.ComparisonTarget, cst.Slice, cst.Call)),
        Kind(invert_condition, (cst.If, cst.IfExp, cst.While)),
        Kind(remove_conditional, _BLOCK),
        Kind(remove_loop, _BLOCK),
        Kind(remove_assignment, _BLOCK),
        Kind(remove_call, _BLOCK),
        Kind(remove_wrapper, (cst.IndentedBlock, cst.Call)),
        Kind(break_chain, (cst.Call, cst.BinaryOperation, cst.BooleanOperation)),
        Kind(change_return, (cst.Return,)),
        Kind(shuffle_lines, _BLOCK),
        Kind(change_exception, (cst.IndentedBlock, cst.Raise, cst.ExceptHandler)),
        Kind(change_arguments, (cst.Call, cst.Param)),
        Kind(change_loop, (cst.Break, cst.Continue)),
        Kind(change_bases, (cst.ClassDef,)),
        Kind(remove_method, (cst.ClassDef,)),
        Kind(remove_body, (cst.FunctionDef,)),
    )
}
"""Every kind of a single bug, by name. Tasks of several bugs at once are of kind ``combined``."""

_Block = cst.IndentedBlock
_Statement = TypeVar("_Statement", bound=cst.CSTNode)


def _statements(
    node: cst.CSTNode, wanted: type[_Statement] | tuple[type[_Statement], ...]
) -> Iterator[tuple[_Block, int, _Statement]]:
    """Yield the statements of a block that are ``wanted``, with the block and their place in it."""
    if isinstance(node, cst.IndentedBlock):
        for index, statement in enumerate(node.body):
            if isinstance(statement, wanted):
                yield node, index, statement


def _without(block: _Block, index: int) -> _Block:
    return _spliced(block, index, [])


def _spliced(block: _Block, index: int, statements: Sequence[cst.BaseStatement]) -> _Block:
    """Return the block with ``statements`` in place of one of its own; ``pass`` where nothing would be left."""
    body = [*block.body[:index], *statements, *block.body[index + 1 :]]
    if all(_is_docstring(statement) for statement in body):
        body.append(cst.SimpleStatementLine([cst.Pass()]))
    return block.with_changes(body=body)


def _is_docstring(statement: cst.CSTNode) -> bool:
    return m.matches(
        statement, m.SimpleStatementLine(body=[m.Expr(m.SimpleString() | m.ConcatenatedString())])
    )


def _closed(node: cst.BaseExpression) -> cst.BaseExpression:
    """Return an expression that keeps its meaning wherever it is put."""
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


def _plus(node: cst.BaseExpression, number: int) -> cst.BaseExpression:
    operator = cst.Add() if number > 0 else cst.Subtract()
    return cst.BinaryOperation(_closed(node), operator, cst.Integer(str(abs(number))))


def _spaces(operator: cst.CSTNode) -> dict[str, object]:
    """Return the white space around an operator."""
    return {name: getattr(operator, name) for name in ("whitespace_before", "whitespace_after")}


def _spaced(node: cst.CSTNode) -> dict[str, cst.CSTNode]:
    """Return the change that puts a space after the keyword, where ``if(x)`` had none."""
    return (
        {"whitespace_before_test": _SPACE} if isinstance(node, cst.If) else {"whitespace_after_while": _SPACE}
    )
