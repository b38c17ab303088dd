"""Kinds of bugs: each is a function from a syntax node to the replacements that break it.

A kind sees one node at a time and yields replacements of that node; to remove or move a statement it replaces
the block around it. Formatting and comments survive, because the trees are those of libcst.
The families follow Yang et al. 2025 ("SWE-smith", appendix on procedural modification) and the classical
mutation operators of Offutt et al. 1996; off-by-one errors, exceptions, arguments and loop control are
additions of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import libcst as cst

from agentrl_environments.swe.synth import expression_kinds, statement_kinds


@dataclass(frozen=True, slots=True)
class BugKind:
    """A way to break code: for a node of one of ``types``, ``replace`` yields nodes to put in its place."""

    replace: Callable[[cst.CSTNode], Iterator[cst.CSTNode]]
    types: tuple[type[cst.CSTNode], ...]


_BLOCK = (cst.IndentedBlock,)
KINDS: Mapping[str, BugKind] = {
    kind.replace.__name__: kind
    for kind in (
        BugKind(
            expression_kinds.change_operator,
            (cst.ComparisonTarget, cst.BinaryOperation, cst.BooleanOperation),
        ),
        BugKind(expression_kinds.swap_operands, (cst.BinaryOperation, cst.Comparison)),
        BugKind(expression_kinds.change_constant, (cst.Integer, cst.Name)),
        BugKind(expression_kinds.off_by_one, (cst.ComparisonTarget, cst.Slice, cst.Call)),
        BugKind(statement_kinds.invert_condition, (cst.If, cst.IfExp, cst.While)),
        BugKind(statement_kinds.remove_conditional, _BLOCK),
        BugKind(statement_kinds.remove_loop, _BLOCK),
        BugKind(statement_kinds.remove_assignment, _BLOCK),
        BugKind(statement_kinds.remove_call, _BLOCK),
        BugKind(statement_kinds.remove_wrapper, (cst.IndentedBlock, cst.Call)),
        BugKind(expression_kinds.break_chain, (cst.Call, cst.BinaryOperation, cst.BooleanOperation)),
        BugKind(statement_kinds.change_return, (cst.Return,)),
        BugKind(statement_kinds.shuffle_lines, _BLOCK),
        BugKind(statement_kinds.change_exception, (cst.IndentedBlock, cst.Raise, cst.ExceptHandler)),
        BugKind(expression_kinds.change_arguments, (cst.Call, cst.Param)),
        BugKind(statement_kinds.change_loop, (cst.Break, cst.Continue)),
        BugKind(statement_kinds.change_bases, (cst.ClassDef,)),
        BugKind(statement_kinds.remove_method, (cst.ClassDef,)),
        BugKind(statement_kinds.remove_body, (cst.FunctionDef,)),
    )
}
"""Every kind of single bug, by name. Tasks with several bugs at once are of the kind ``combined``."""
