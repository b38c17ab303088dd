"""Draws candidates: bugs at all places of a package where a kind of bug fits, in an order drawn by a seed.

The source with a candidate's bug compiles, and differs from the original in more than its formatting.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from agentrl.errors import ConfigError, MissingExtra
from agentrl_environments.swe.synth.candidates import COMBINED, REMOVE_BODY, Candidate
from agentrl_environments.swe.synth.packages import Tree

if TYPE_CHECKING:
    from agentrl_environments.swe.synth.sites import Site


def candidates(
    tree: Tree, *, seed: int, kinds: Sequence[str] = (), per_function: int = 3
) -> Iterator[Candidate]:
    """Yield the single bugs of a package, each once: the kinds take turns, and ``seed`` draws the places.

    If ``kinds`` is empty, all kinds are used. ``per_function`` is the maximum number of bugs of one kind in
    one function, so that long functions do not dominate.

    Raises:
        ConfigError: a kind is unknown.
        MissingExtra: libcst is not installed.
    """
    known, find = _library()
    texts = {path: tree.files[path].decode() for path in tree.modules if _is_python(tree.files[path])}
    sites: dict[str, list[Site]] = {name: [] for name in kinds or known}
    if unknown := sorted(set(sites) - set(known)):
        raise ConfigError(f"no kind of bug is named {', '.join(unknown)}; choose from {', '.join(known)}")
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
    """Yield combined bugs, each of two to ``most`` single bugs in different functions.

    Each single bug is used at most once. Single bugs in the same file are at least one line apart.
    """
    generator = random.Random(f"{seed}/combinations")
    left = [single for single in singles if single.kind != REMOVE_BODY]
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


def _apart(a: Candidate, b: Candidate) -> bool:
    """Whether two bugs are in different functions and, within a file, at least one line apart."""
    if set(a.functions) & set(b.functions):
        return False
    return all(x.path != y.path or x.stop < y.start or y.stop < x.start for x in a.edits for y in b.edits)


def _library() -> tuple[tuple[str, ...], Callable[[str, str, Sequence[str]], Sequence[Site]]]:
    """Return the names of all kinds of bugs, and the function that finds the places where they fit.

    Raises:
        MissingExtra: libcst is not installed.
    """
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
