"""A small package for bugs, and a test runner that needs no download: this interpreter's own pytest."""

import importlib.util
import io
import shutil
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from agentrl_environments.swe import sources
from agentrl_environments.swe.rows import SourceDistribution
from agentrl_environments.swe.synth.candidates import Candidate, Edit
from agentrl_environments.swe.synth.packages import PinnedPackage, Tree, arrange
from agentrl_environments.swe.workspace import tools_folder
from agentrl_sandboxes.backend import Handle, Lease
from plain import Plain, PlainProvider

from agentrl.types import SandboxSpec

CALC = '''\
"""Sums."""

from __future__ import annotations

LIMIT = 100


def clamp(value: int, low: int = 0, high: int = LIMIT) -> int:
    """Return value, but never below low nor above high."""
    if value < low:
        return low
    if value > high:
        return high
    return value


def total(values: list[int]) -> int:
    """Return the sum."""
    result = 0
    for value in values:
        if value < 0:
            raise ValueError("negative")
        result += value
    return result


def unused(x: int) -> int:
    return x + 1


class Stack:
    """Last in, first out."""

    def __init__(self) -> None:
        self.items: list[int] = []

    def push(self, item: int) -> None:
        self.items.append(item)

    def pop(self) -> int:
        if not self.items:
            raise IndexError("empty")
        return self.items.pop()
'''
TESTS = """\
import pytest
from toy.calc import Stack, clamp, total


def test_clamp_low():
    assert clamp(-5) == 0


def test_clamp_high():
    assert clamp(500) == 100


@pytest.mark.parametrize("value", [0, 50, 100])
def test_clamp_inside(value):
    assert clamp(value) == value


def test_total():
    values = [1, 2, 3]
    assert total(values) == 6


def test_total_refuses():
    with pytest.raises(ValueError):
        total([-1])


class TestStack:
    def test_push_and_pop(self):
        stack = Stack()
        stack.push(7)
        assert stack.pop() == 7

    def test_empty(self):
        with pytest.raises(IndexError):
            Stack().pop()


def test_set():
    assert total(sorted({1, 2})) == 3
"""
LITTER = """

def test_leaves_files_behind():
    open("litter.txt", "x").close()
    open("toy/data.txt", "a").write("more")
    assert open("toy/data.txt").read() == "more"
"""
"""A test that passes only where the files are as they were."""
FILES = {
    "toy/__init__.py": b"",
    "toy/calc.py": CALC.encode(),
    "toy/data.txt": b"",
    "tests/test_calc.py": TESTS.encode(),
    "setup.py": b"",
    "LICENSE": b"MIT",
}


def tree(files: dict[str, bytes] | None = None) -> Tree:
    package = PinnedPackage(name="toy", version="1.0")
    return arrange(package, SourceDistribution("toy", "1.0", "0" * 64), FILES | (files or {}))


def sdist(files: dict[str, bytes] | None = None) -> bytes:
    """Return the package as a source distribution."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as made:
        for path, data in (
            FILES | (files or {}) | {"PKG-INFO": b"x", "toy.egg-info/top_level.txt": b"toy"}
        ).items():
            info = tarfile.TarInfo(f"toy-1.0/{path}")
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return out.getvalue()


@cache
def tools(cache: str = "") -> bytes:
    """Return this interpreter's pytest as the test runner's archive."""
    site = Path(pytest.__file__).parent.parent
    paths = {
        path
        for name in ("pytest", "_pytest", "pluggy", "iniconfig", "packaging")
        for path in (site / name).rglob("*.py")
    }
    loaded = {
        Path(module.__file__ or "")
        for name, module in list(sys.modules.items())
        if name.split(".")[0] in ("pygments", "py")
    }
    for path in list(paths | loaded):
        paths.add(path)
        compiled = Path(importlib.util.cache_from_source(str(path)))
        if compiled.exists():
            paths.add(compiled)
    return sources.tar({str(path.relative_to(site)): path.read_bytes() for path in sorted(paths)})


def bug(old: str, new: str, *, kind: str = "change_operator", function: str = "clamp") -> Candidate:
    """Return the bug that turns one line of calc.py into others."""
    lines = CALC.splitlines(keepends=True)
    (at,) = (index for index, line in enumerate(lines) if line.strip() == old)
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    put = tuple(indent + line + "\n" for line in new.split("\n"))
    edit = Edit(path="toy/calc.py", start=at, stop=at + 1, lines=put)
    return Candidate(
        kind=kind,
        edits=(edit,),
        functions=(f"toy/calc.py::{function}",),
        spans=(("toy/calc.py", 8, 14),),
        complexity=3,
    )


def path_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``python3`` this interpreter, in sandboxes that take over PATH."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin")


class Clean(Plain):
    """A plain back end whose sandboxes start with nothing in their folders, after a reset as well."""

    async def create(self, spec: SandboxSpec, lease: Lease, command: Sequence[str]) -> Handle:
        for folder in (spec.workdir, tools_folder(spec.workdir)):
            if Path(folder).is_relative_to(self.root):
                shutil.rmtree(folder, ignore_errors=True)
        return await super().create(spec, lease, command)


@dataclass(frozen=True)
class CleanProvider(PlainProvider):
    """For command lines: ``--sandbox toy:CleanProvider``."""

    backend: Callable[[], Plain] = Clean
