"""Kinds of bugs in expressions: operators, constants, bounds, chains and arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import libcst as cst
import libcst.matchers as m

from agentrl_environments.swe.synth.nodes import (
    parenthesised,
    plus,
    spaces_around,
    without_argument,
)

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


def change_operator(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Replace a comparison, an arithmetic operator, ``and`` or ``or`` with its opposite."""
    if isinstance(node, cst.ComparisonTarget) and (other := _COMPARED.get(type(node.operator))):
        yield node.with_changes(operator=other())
    elif isinstance(node, cst.BinaryOperation) and (computed := _COMPUTED.get(type(node.operator))):
        if not m.matches(
            node, m.BinaryOperation(operator=m.Modulo(), left=m.SimpleString() | m.ConcatenatedString())
        ):
            yield node.with_changes(operator=computed().with_changes(**spaces_around(node.operator)))
    elif isinstance(node, cst.BooleanOperation):
        swapped = cst.Or() if isinstance(node.operator, cst.And) else cst.And()
        yield node.with_changes(operator=swapped.with_changes(**spaces_around(node.operator)))


def swap_operands(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Swap the operands of an ordering comparison, or of a binary operator that can be order-sensitive."""
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
        yield node.with_changes(left=parenthesised(node.right), right=parenthesised(node.left))
    elif isinstance(node, cst.Comparison) and len(node.comparisons) == 1:
        target = node.comparisons[0]
        if type(target.operator) in _EDGES:
            yield node.with_changes(
                left=target.comparator, comparisons=[target.with_changes(comparator=node.left)]
            )


def change_constant(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Change an integer by one, or flip a truth value."""
    if isinstance(node, cst.Integer) and node.value.isdigit():
        yield node.with_changes(value=str(int(node.value) + 1))
        if int(node.value) > 0:
            yield node.with_changes(value=str(int(node.value) - 1))
    elif isinstance(node, cst.Name) and node.value in ("True", "False"):
        yield node.with_changes(value="False" if node.value == "True" else "True")


def off_by_one(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Move the bound of a slice or a range by one, or change whether a comparison includes its bound."""
    if isinstance(node, cst.ComparisonTarget) and (edge := _EDGES.get(type(node.operator))):
        yield node.with_changes(operator=edge())
    elif isinstance(node, cst.Slice):
        for side in ("lower", "upper"):
            bound = getattr(node, side)
            if bound is not None and not isinstance(bound, cst.Integer):
                yield node.with_changes(**{side: plus(bound, 1)})
            elif bound is None and side == "lower":
                yield node.with_changes(lower=cst.Integer("1"))
    elif isinstance(node, cst.Call) and m.matches(node.func, m.Name("range")) and node.args:
        last = node.args[min(1, len(node.args) - 1)]
        yield node.with_changes(
            args=[arg.with_changes(value=plus(arg.value, -1)) if arg is last else arg for arg in node.args]
        )


def break_chain(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Remove the last call of a chain, the right operand of an operator, or one of two conditions."""
    if (
        isinstance(node, cst.Call)
        and isinstance(node.func, cst.Attribute)
        and isinstance(node.func.value, (cst.Call, cst.Subscript))
    ):
        yield node.func.value
    elif isinstance(node, cst.BinaryOperation):
        yield parenthesised(node.left)
    elif isinstance(node, cst.BooleanOperation):
        yield parenthesised(node.left)
        yield parenthesised(node.right)


def change_arguments(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Swap two arguments of a call, leave out a keyword argument, or change the default of a parameter."""
    if isinstance(node, cst.Call):
        plain = [index for index, arg in enumerate(node.args) if arg.keyword is None and not arg.star]
        if len(plain) >= 2:
            args, (first, second) = list(node.args), plain[:2]
            args[first] = node.args[first].with_changes(value=node.args[second].value)
            args[second] = node.args[second].with_changes(value=node.args[first].value)
            yield node.with_changes(args=args)
        for index, arg in enumerate(node.args):
            if arg.keyword is not None:
                yield node.with_changes(args=without_argument(node.args, index))
    elif (
        isinstance(node, cst.Param)
        and isinstance(node.default, cst.Name)
        and node.default.value in ("True", "False", "None")
    ):
        yield node.with_changes(default=cst.Name("True" if node.default.value != "True" else "False"))
