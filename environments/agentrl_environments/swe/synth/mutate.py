"""Candidates: every place of a package where a kind of bug fits, drawn in an order that only the seed decides.

A candidate is a line edit of one file, or several edits for a combined bug, so that it can be applied, reversed, compared and shown as a
patch without the syntax tree it came from. Its source compiles, and differs from the original in more than its formatting.
"""

from __future__ import annotations

import ast
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrl.errors import ConfigError, MissingExtra
from agentrl_environments.swe.diffs import unified
from agentrl_environments.swe.synth.packages import Tree

if TYPE_CHECKING:
    from agentrl_environments.swe.synth.sites import Site

COMBINED = "combined"
"""The kind of a candidate that is made of several."""
REMOVED = "remove_body"
"""The kind that asks for a function to be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """Lines ``start`` to ``stop`` (from 0, ``stop`` excluded) of a file, replaced by ``lines`` (each with its end)."""

    path: str
    start: int
    stop: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A bug that might become a task."""

    kind: str
    edits: tuple[Edit, ...]
    functions: tuple[str, ...]
    """Where each edit is: ``path::qualified.name`` of the innermost function or class; the bare path at module level."""
    spans: tuple[tuple[str, int, int], ...]
    """Path, first and last line (from 1) of the outermost function around each edit; lines (0, 0) where there is none."""
    complexity: int
    """Cyclomatic complexity of the most complex function that is edited."""

    @property
    def id(self) -> str:
        """Content hash: the same bug has the same id in every run."""
        text = "\0".join(f"{edit.path}:{edit.start}:{edit.stop}:{''.join(edit.lines)}" for edit in self.edits)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def apply(self, files: Mapping[str, str]) -> dict[str, str]:
        """Return the files that the bug changes, with the bug in them."""
        changed: dict[str, list[str]] = {}
        for edit in sorted(self.edits, key=lambda edit: -edit.start):
            lines = changed.setdefault(edit.path, files[edit.path].splitlines(keepends=True))
            lines[edit.start : edit.stop] = edit.lines
        return {path: "".join(lines) for path, lines in sorted(changed.items())}

    def fix(self, files: Mapping[str, str]) -> str:
        """Return the patch that takes the bug back: from the buggy files to ``files``."""
        return "".join(unified(path, broken, files[path]) for path, broken in self.apply(files).items())


def candidates(
    tree: Tree, *, seed: int, kinds: Sequence[str] = (), per_function: int = 3
) -> Iterator[Candidate]:
    """Yield single bugs of a package: kinds in turn, each time at a place drawn by ``seed``; none twice.

    ``kinds`` empty: all. ``per_function`` bounds the bugs of one kind in one function, so that long functions do not fill the set.

    Raises:
        ConfigError: a kind is unknown.
        MissingExtra: libcst is not installed.
    """
    known, find = _library()
    texts = {path: tree.files[path].decode() for path in tree.modules if _is_python(tree.files[path])}
    sites: dict[str, list[Site]] = {name: [] for name in kinds or known}
    if unknown := sorted(set(sites) - set(known)):
        raise ConfigError(
            f"no kind of bug is named {', '.join(unknown)}; there are {', '.join(known)}, and combinations of them"
        )
    for path, text in texts.items():
        for site in find(path, text, tuple(sites)):
            sites[site.kind].append(site)
    generator = random.Random(f"{seed}/{tree.package.pin}/candidates")
    queues = []
    for kind in sorted(sites):
        generator.shuffle(sites[kind])
        queues.append(iter(sites[kind]))
    seen: set[str] = set()
    counts: dict[tuple[str, str], int] = {}
    while queues:
        for queue in list(queues):
            found = None
            for site in queue:
                key = (site.kind, site.function)
                if counts.get(key, 0) < per_function and (found := site.candidate()) and found.id not in seen:
                    counts[key] = counts.get(key, 0) + 1
                    break
                found = None
            if found is None:
                queues.remove(queue)
                continue
            seen.add(found.id)
            yield found


def combinations(singles: Sequence[Candidate], *, seed: int, most: int = 3) -> Iterator[Candidate]:
    """Yield bugs made of two to ``most`` single ones, in different functions and apart from each other; each is used about once."""
    generator = random.Random(f"{seed}/combinations")
    left = [single for single in singles if single.kind != REMOVED]
    generator.shuffle(left)
    while len(left) >= 2:
        size = min(generator.randint(2, most), len(left))
        chosen = [left.pop()]
        for other in list(left):
            if len(chosen) == size:
                break
            if all(_apart(other, one) for one in chosen):
                chosen.append(other)
                left.remove(other)
        if len(chosen) >= 2:
            yield Candidate(
                kind=COMBINED,
                edits=tuple(edit for one in chosen for edit in one.edits),
                functions=tuple(name for one in chosen for name in one.functions),
                spans=tuple(span for one in chosen for span in one.spans),
                complexity=max(one.complexity for one in chosen),
            )


def complexity(node: ast.AST) -> int:
    r"""Return the cyclomatic complexity of a function: 1 + its decision points (McCabe 1976; ``and`` and ``or`` count, as do handlers).

    >>> complexity(ast.parse("def f(x):\n if x and x > 1:\n  return 1\n return [y for y in x if y]"))
    5
    """
    count = 1
    for inner in ast.walk(node):
        if isinstance(
            inner,
            (
                ast.If,
                ast.For,
                ast.While,
                ast.IfExp,
                ast.ExceptHandler,
                ast.AsyncFor,
                ast.Assert,
                ast.match_case,
            ),
        ):
            count += 1
        elif isinstance(inner, ast.BoolOp):
            count += len(inner.values) - 1
        elif isinstance(inner, ast.comprehension):
            count += 1 + len(inner.ifs)
    return count


def _apart(a: Candidate, b: Candidate) -> bool:
    """Whether two bugs are in different functions and at least a line apart."""
    if set(a.functions) & set(b.functions):
        return False
    return all(x.path != y.path or x.stop < y.start or y.stop < x.start for x in a.edits for y in b.edits)


def _library() -> tuple[tuple[str, ...], Callable[[str, str, Sequence[str]], Sequence[Site]]]:
    """Return the names of all kinds, and what finds their places: both need libcst."""
    try:
        from agentrl_environments.swe.synth import kinds, sites
    except ImportError as problem:
        raise MissingExtra("making tasks needs libcst; pip install '.[swe]'") from problem
    return tuple(kinds.KINDS), sites.find


def _is_python(data: bytes) -> bool:
    try:
        ast.parse(data.decode())
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return False
    return True
