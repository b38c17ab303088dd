"""Kinds of bugs in statements: branches, loops, lines, exceptions, classes and whole functions."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst
import libcst.matchers as m

from agentrl_environments.swe.synth.nodes import (
    SPACE,
    is_docstring,
    parenthesised,
    space_before_test,
    spliced,
    statements_of,
    without,
    without_argument,
)

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


def invert_condition(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Swap the branches of an ``if``, or negate the condition of an ``if`` or ``while``."""
    if isinstance(node, (cst.If, cst.IfExp, cst.While)):
        if isinstance(node, cst.If) and isinstance(node.orelse, cst.Else):
            yield node.with_changes(body=node.orelse.body, orelse=node.orelse.with_changes(body=node.body))
        elif isinstance(node, cst.IfExp):
            yield node.with_changes(body=parenthesised(node.orelse), orelse=parenthesised(node.body))
        elif not m.matches(node, m.While(test=m.Name("True"))):
            test = node.test
            if isinstance(test, cst.UnaryOperation) and isinstance(test.operator, cst.Not):
                yield node.with_changes(test=test.expression, **space_before_test(node))
            else:
                yield node.with_changes(
                    test=cst.UnaryOperation(cst.Not(), parenthesised(test)), **space_before_test(node)
                )


def remove_conditional(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Remove an ``if`` statement with its branches, or replace it with its body."""
    for block, index, statement in statements_of(node, cst.If):
        yield without(block, index)
        body = statement.body
        if isinstance(body, cst.IndentedBlock):
            yield spliced(block, index, body.body)


def remove_loop(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Remove a ``for`` or ``while`` loop with its body."""
    for block, index, _ in statements_of(node, (cst.For, cst.While)):
        yield without(block, index)


def remove_assignment(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Remove an assignment."""
    for block, index, line in statements_of(node, cst.SimpleStatementLine):
        if len(line.body) == 1 and isinstance(line.body[0], (cst.Assign, cst.AugAssign)):
            yield without(block, index)


def remove_call(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Remove a statement that consists of a call."""
    for block, index, line in statements_of(node, cst.SimpleStatementLine):
        if len(line.body) == 1 and m.matches(line.body[0], m.Expr(m.Call())):
            yield without(block, index)


def remove_wrapper(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Replace a ``with`` or ``try`` with its body, or a conversion such as ``str(x)`` with its argument."""
    for block, index, statement in statements_of(node, (cst.With, cst.Try)):
        if isinstance(statement.body, cst.IndentedBlock):
            yield spliced(block, index, statement.body.body)
    wrappers = m.Call(
        func=m.OneOf(*(m.Name(name) for name in _CONVERSIONS)),
        args=[m.Arg(keyword=None, star="")],
    )
    if isinstance(node, cst.Call) and m.matches(node, wrappers):
        yield parenthesised(node.args[0].value)


def change_return(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Make a ``return`` give ``None``, the opposite truth value, or a tuple with two elements swapped."""
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
            value=cst.UnaryOperation(cst.Not(), parenthesised(value)), whitespace_after_return=SPACE
        )
    elif not m.matches(value, m.Name("None") | m.Name("self") | m.Name("NotImplemented")):
        yield node.with_changes(value=cst.Name("None"), whitespace_after_return=SPACE)


def shuffle_lines(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Swap two neighbouring statements."""
    if isinstance(node, cst.IndentedBlock):
        for index in range(len(node.body) - 1):
            first, second = node.body[index : index + 2]
            if not is_docstring(first) and not m.matches(
                second, m.SimpleStatementLine(body=[m.Return() | m.Raise()])
            ):
                yield node.with_changes(body=[*node.body[:index], second, first, *node.body[index + 2 :]])


def change_exception(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Remove a ``raise``, raise another exception, or catch another exception."""
    for block, index, line in statements_of(node, cst.SimpleStatementLine):
        if len(line.body) == 1 and isinstance(line.body[0], cst.Raise):
            yield without(block, index)
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


def change_loop(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Replace ``break`` with ``continue``, or ``continue`` with ``break``."""
    if isinstance(node, cst.Break):
        yield cst.Continue(semicolon=node.semicolon)
    elif isinstance(node, cst.Continue):
        yield cst.Break(semicolon=node.semicolon)


def change_bases(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Remove a base of a class."""
    if isinstance(node, cst.ClassDef):
        for index in range(len(node.bases)):
            yield node.with_changes(bases=without_argument(node.bases, index))


def remove_method(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Remove a method of a class."""
    if isinstance(node, cst.ClassDef) and isinstance(node.body, cst.IndentedBlock):
        for index, statement in enumerate(node.body.body):
            if isinstance(statement, cst.FunctionDef):
                yield node.with_changes(body=without(node.body, index))


def remove_body(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Remove the body of a function except its docstring: the task is to write the body."""
    if isinstance(node, cst.FunctionDef) and isinstance(node.body, cst.IndentedBlock):
        docstring = [statement for statement in node.body.body[:1] if is_docstring(statement)]
        if len(node.body.body) > len(docstring) + 1:
            missing = cst.parse_statement("raise NotImplementedError\n")
            yield node.with_changes(body=node.body.with_changes(body=[*docstring, missing], footer=[]))
