"""Where kinds of bugs fit: a walk over a module's tree, and the line edit that each place comes to."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import libcst as cst
from libcst.metadata import MetadataWrapper, WhitespaceInclusivePositionProvider

from agentrl_environments.swe.synth.kinds import KINDS
from agentrl_environments.swe.synth.mutate import Candidate, Edit, complexity

_PASSED_BY = (cst.Annotation, cst.Import, cst.ImportFrom, cst.Decorator, cst.Assert)
"""What no bug is put into: types and imports, and what only tests would say."""
_DEFINED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """An outermost function, or what else stands at the top of a module: small enough to be written and compiled often."""

    node: cst.CSTNode
    module: cst.Module
    indents: tuple[str, ...]
    """Indentation of each block around it."""
    start: int
    """Its first line, from 0, comments above it included."""

    def code(self, node: cst.CSTNode) -> list[str]:
        """Return the lines of ``node`` in this unit's place."""
        for indent in reversed(self.indents):
            block = cst.IndentedBlock([node], indent=indent)  # type: ignore[list-item]
            node = cst.If(cst.Name("True"), block)
        return self.module.code_for_node(node).splitlines(keepends=True)[len(self.indents) :]


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A kind, a place where it fits, and what it would put there."""

    kind: str
    path: str
    function: str
    """``path::qualified.name`` of the innermost function or class; the bare path at module level."""
    span: tuple[str, int, int]
    complexity: int
    node: cst.CSTNode = field(repr=False)
    replacement: cst.CSTNode = field(repr=False)
    unit: Unit = field(repr=False)

    def candidate(self) -> Candidate | None:
        """Return the bug as a line edit; ``None`` where it does not compile or changes nothing but formatting."""
        before = self.unit.code(self.unit.node)
        try:
            after = self.unit.code(self.unit.node.deep_replace(self.node, self.replacement))
            old, new = (
                "".join(["if True:\n"] * bool(self.unit.indents) + lines) for lines in (before, after)
            )
            if ast.dump(ast.parse(old)) == ast.dump(ast.parse(new)):
                return None
            compile(new, self.path, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, cst.CSTValidationError):
            return None
        edit = _edit(self.path, self.unit.start, before, after)
        return Candidate(
            kind=self.kind,
            edits=(edit,),
            functions=(self.function,),
            spans=(self.span,),
            complexity=self.complexity,
        )


def find(path: str, text: str, kinds: Sequence[str]) -> list[Site]:
    """Return every place of a module where one of ``kinds`` fits, in the order of the text."""
    wrapper = MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
    return list(_Walk(path, text, wrapper, kinds).below(wrapper.module, (), (), None, None))


def find_in(path: str, text: str, function: str, kinds: Sequence[str]) -> list[Site]:
    """Return the places of one function, ``path::qualified.name``, reading no more than the outermost function around it.

    An order of magnitude faster than `find` where one function is wanted; nothing where there is no such function.
    """
    names = function.removeprefix(path).removeprefix("::").split(".")
    found, depth = _outermost(ast.parse(text), names)
    if found is None:
        return []
    _, first, last = _span(path, found)
    lines = text.splitlines(keepends=True)[first - 1 : last]
    inside = found.col_offset > 0
    snippet = "".join(["if True:\n"] * inside + lines)
    wrapper = MetadataWrapper(cst.parse_module(snippet), unsafe_skip_copy=True)
    walk = _Walk(path, snippet, wrapper, kinds, shift=first - 1 - inside)
    (top,) = wrapper.module.body
    if not inside:
        sites = walk.below(top, tuple(names[: depth - 1]), (), None, None)
    elif isinstance(top, cst.If) and isinstance(top.body, cst.IndentedBlock):
        indent = wrapper.module.default_indent if top.body.indent is None else top.body.indent
        sites = walk.below(top.body.body[0], tuple(names[: depth - 1]), (indent,), None, None)
    return [site for site in sites if site.function == function]


def _outermost(
    tree: ast.AST, names: Sequence[str]
) -> tuple[ast.FunctionDef | ast.AsyncFunctionDef | None, int]:
    """Return the first function on the way that ``names`` lead, and how many of them it took."""
    for depth, name in enumerate(names, 1):
        inner = [
            node
            for node in ast.walk(tree)
            if isinstance(node, _DEFINED) and node.name == name and node is not tree
        ]
        if not inner:
            break
        tree = min(inner, key=lambda node: (node.col_offset, node.lineno))
        if isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return tree, depth
    return None, 0


class _Walk:
    """A walk over one module."""

    def __init__(
        self, path: str, text: str, wrapper: MetadataWrapper, kinds: Sequence[str], *, shift: int = 0
    ) -> None:
        self.shift = shift
        self.path, self.module, self.kinds = path, wrapper.module, [(name, KINDS[name]) for name in kinds]
        self.lines = text.splitlines(keepends=True)
        self.positions = wrapper.resolve(WhitespaceInclusivePositionProvider)
        self.functions = {
            node.lineno: node for node in ast.walk(ast.parse(text)) if isinstance(node, _DEFINED)
        }
        self.complexity = cache(complexity)

    def below(
        self,
        node: cst.CSTNode,
        names: tuple[str, ...],
        indents: tuple[str, ...],
        unit: Unit | None,
        outer: ast.AST | None,
    ) -> Iterator[Site]:
        """Yield the sites at and below a node; ``outer`` is the outermost function around it."""
        if isinstance(node, _PASSED_BY) or _only_types(node):
            return
        if isinstance(node, (cst.FunctionDef, cst.ClassDef)):
            names = (*names, node.name.value)
            if isinstance(node, cst.FunctionDef) and outer is None:
                outer = self.functions[self.positions[node.name].start.line]
                unit = self.unit(node, indents)
        if (
            unit is None
            and isinstance(node, (cst.BaseCompoundStatement, cst.SimpleStatementLine))
            and not indents
        ):
            unit = self.unit(node, indents)
        if unit is not None:
            where = "::".join((self.path, ".".join(names))) if names else self.path
            number = self.complexity(outer) if outer else 1
            for name, kind in self.kinds:
                if isinstance(node, kind.types):
                    for replacement in kind.replace(node):
                        yield Site(
                            name,
                            self.path,
                            where,
                            _span(self.path, outer, self.shift),
                            number,
                            node,
                            replacement,
                            unit,
                        )
        if isinstance(node, cst.IndentedBlock):
            indents = (*indents, self.module.default_indent if node.indent is None else node.indent)
        for child in node.children:
            yield from self.below(child, names, indents, unit, outer)

    def unit(self, node: cst.CSTNode, indents: tuple[str, ...]) -> Unit | None:
        """Return a node as a unit, if what is written for it is what stands in the file."""
        start = self.positions[node].start.line - 1
        unit = Unit(node, self.module, indents, start + self.shift)
        code = unit.code(node)
        return unit if self.lines[start : start + len(code)] == code else None


def _span(path: str, node: ast.AST | None, shift: int = 0) -> tuple[str, int, int]:
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return (path, 0, 0)
    first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
    return (path, first + shift, (node.end_lineno or node.lineno) + shift)


def _only_types(node: cst.CSTNode) -> bool:
    """Whether a statement serves type checkers alone, or is an overload or a stub."""
    if isinstance(node, cst.If):
        return cst.Module([]).code_for_node(node.test) in (
            "TYPE_CHECKING",
            "typing.TYPE_CHECKING",
            "t.TYPE_CHECKING",
            "__name__ == '__main__'",
        )
    if isinstance(node, cst.FunctionDef):
        return any("overload" in cst.Module([]).code_for_node(one.decorator) for one in node.decorators)
    return False


def _edit(path: str, offset: int, before: Sequence[str], after: Sequence[str]) -> Edit:
    """Return the smallest run of lines that turns ``before``, which starts at line ``offset``, into ``after``."""
    short = min(len(before), len(after))
    start = next((index for index in range(short) if before[index] != after[index]), short)
    tail = next(
        (index for index in range(short - start) if before[-1 - index] != after[-1 - index]), short - start
    )
    return Edit(
        path=path,
        start=offset + start,
        stop=offset + len(before) - tail,
        lines=tuple(after[start : len(after) - tail]),
    )
