"""Finds the sites where kinds of bugs fit in a module's syntax tree, and turns each into a line edit."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import libcst as cst
from libcst.metadata import MetadataWrapper, WhitespaceInclusivePositionProvider

from agentrl_environments.swe.synth.candidates import Candidate, Edit
from agentrl_environments.swe.synth.kinds import KINDS

_SKIPPED = (cst.Annotation, cst.Import, cst.ImportFrom, cst.Decorator, cst.Assert)
"""Nodes that get no bugs: types, imports, decorators and assertions."""
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_DECISIONS = (
    ast.If,
    ast.For,
    ast.While,
    ast.IfExp,
    ast.ExceptHandler,
    ast.AsyncFor,
    ast.Assert,
    ast.match_case,
)


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """An outermost function or another top-level statement: small enough to render and compile often."""

    node: cst.CSTNode
    module: cst.Module
    indents: tuple[str, ...]
    """Indentation of each block around the unit, outermost first."""
    start: int
    """Number, from 0, of the unit's first line in the file. Comments directly above belong to the unit."""

    def code(self, node: cst.CSTNode) -> list[str]:
        """Return the lines of source code of ``node``, indented as this unit is."""
        for indent in reversed(self.indents):
            block = cst.IndentedBlock([node], indent=indent)  # type: ignore[list-item]
            node = cst.If(cst.Name("True"), block)
        return self.module.code_for_node(node).splitlines(keepends=True)[len(self.indents) :]


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A place where a kind of bug fits, and the replacement that the kind makes there."""

    kind: str
    path: str
    function: str
    """``path::qualified.name`` of the innermost function or class around the site, or the path alone if the
    site is at module level."""
    span: tuple[str, int, int]
    complexity: int
    node: cst.CSTNode = field(repr=False)
    replacement: cst.CSTNode = field(repr=False)
    unit: Unit = field(repr=False)

    def candidate(self) -> Candidate | None:
        """Return the bug as a line edit, or ``None`` if it does not compile or changes only formatting."""
        before = self.unit.code(self.unit.node)
        try:
            after = self.unit.code(self.unit.node.deep_replace(self.node, self.replacement))
            header = "if True:\n" if self.unit.indents else ""
            old, new = header + "".join(before), header + "".join(after)
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
    """Return every site of a module where one of ``kinds`` fits, in the order of the text."""
    wrapper = MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
    return list(_SiteFinder(path, text, wrapper, kinds).below(wrapper.module, (), (), None, None))


def find_in(path: str, text: str, function: str, kinds: Sequence[str]) -> list[Site]:
    """Return the sites of one function, named ``path::qualified.name``; none if there is no such function.

    This is ten times faster than `find`, because only the outermost function around the sites is read.
    """
    names = function.removeprefix(path).removeprefix("::").split(".")
    found, depth = _outermost(ast.parse(text), names)
    if found is None:
        return []
    _, first, last = _span(path, found)
    lines = text.splitlines(keepends=True)[first - 1 : last]
    inside = found.col_offset > 0
    snippet = ("if True:\n" if inside else "") + "".join(lines)
    wrapper = MetadataWrapper(cst.parse_module(snippet), unsafe_skip_copy=True)
    finder = _SiteFinder(path, snippet, wrapper, kinds, shift=first - 1 - inside)
    (top,) = wrapper.module.body
    if not inside:
        sites = finder.below(top, tuple(names[: depth - 1]), (), None, None)
    elif isinstance(top, cst.If) and isinstance(top.body, cst.IndentedBlock):
        indent = wrapper.module.default_indent if top.body.indent is None else top.body.indent
        sites = finder.below(top.body.body[0], tuple(names[: depth - 1]), (indent,), None, None)
    return [site for site in sites if site.function == function]


def complexity(node: ast.AST) -> int:
    r"""Return the cyclomatic complexity of a function: 1 + the number of its decision points (McCabe 1976).

    ``and``, ``or`` and exception handlers count as decision points.

    >>> complexity(ast.parse("def f(x):\n if x and x > 1:\n  return 1\n return [y for y in x if y]"))
    5
    """
    count = 1
    for inner in ast.walk(node):
        if isinstance(inner, _DECISIONS):
            count += 1
        elif isinstance(inner, ast.BoolOp):
            count += len(inner.values) - 1
        elif isinstance(inner, ast.comprehension):
            count += 1 + len(inner.ifs)
    return count


def _outermost(
    tree: ast.AST, names: Sequence[str]
) -> tuple[ast.FunctionDef | ast.AsyncFunctionDef | None, int]:
    """Follow ``names``, the parts of a qualified name, through classes to the outermost function.

    Return the function and the number of names up to it, or ``None`` and 0 if there is no such function.
    """
    for depth, name in enumerate(names, 1):
        inner = [
            node
            for node in ast.walk(tree)
            if isinstance(node, _DEFINITIONS) and node.name == name and node is not tree
        ]
        if not inner:
            break
        tree = min(inner, key=lambda node: (node.col_offset, node.lineno))
        if isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return tree, depth
    return None, 0


class _SiteFinder:
    """Finds the sites in the syntax tree of one module.

    ``shift`` is added to line numbers; it is not 0 if the tree is only a part of the file.
    """

    def __init__(
        self, path: str, text: str, wrapper: MetadataWrapper, kinds: Sequence[str], *, shift: int = 0
    ) -> None:
        self.path, self.module, self.shift = path, wrapper.module, shift
        self.kinds = [(name, KINDS[name]) for name in kinds]
        self.lines = text.splitlines(keepends=True)
        self.positions = wrapper.resolve(WhitespaceInclusivePositionProvider)
        self.functions = {
            node.lineno: node for node in ast.walk(ast.parse(text)) if isinstance(node, _DEFINITIONS)
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
        """Yield the sites at and below a node.

        ``names`` and ``indents`` are the names of the functions and classes around the node, and the
        indentation of the blocks around it. ``unit`` and ``outer`` are the unit and the outermost function
        around it, if there are any.
        """
        if isinstance(node, _SKIPPED) or _is_skipped_block(node):
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
        """Return a node as a unit, or ``None`` if rendering it does not reproduce the text of the file."""
        start = self.positions[node].start.line - 1
        unit = Unit(node, self.module, indents, start + self.shift)
        code = unit.code(node)
        return unit if self.lines[start : start + len(code)] == code else None


def _span(path: str, node: ast.AST | None, shift: int = 0) -> tuple[str, int, int]:
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return (path, 0, 0)
    first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
    return (path, first + shift, (node.end_lineno or node.lineno) + shift)


def _is_skipped_block(node: cst.CSTNode) -> bool:
    """Whether a statement is only for type checkers, an overload, or the main program of a script."""
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
    """Return the smallest edit that turns the lines ``before`` into the lines ``after``.

    ``before`` starts at line ``offset`` (from 0) of the file.
    """
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
