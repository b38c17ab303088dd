"""Two real bugs in real packages, made by hand, and the sandboxes in which the swe tests run."""

import ast
import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from agentrl_environments.swe import Swe, diffs, rows, sources
from agentrl_environments.swe.rows import PYTEST, Instance
from agentrl_environments.swe.synth import packages
from agentrl_environments.swe.workspace import Trees
from agentrl_sandboxes.local import Local

from agentrl.errors import ConfigError
from agentrl.sandbox import Sandbox, SandboxProvider

PROVIDER = Local(unenforced=frozenset({"memory", "cpu"}))
IMAGE = "host"
"""Needs no building; what is installed on the host is not seen by `python3 -S`."""


@functools.cache
def provider() -> SandboxProvider:
    """Return the sandboxes of this machine, or skip the test with the reason why there are none."""

    async def probe() -> None:
        async with PROVIDER.serve():
            pass

    try:
        asyncio.run(probe())
    except ConfigError as problem:
        pytest.skip(str(problem))
    return PROVIDER


@functools.cache
def h11() -> Instance:
    """A parser that no longer insists on matching everything."""
    return _instance(
        "h11",
        "h11/_util.py",
        ("match = regex.fullmatch(data)", "match = regex.match(data)"),
        "h11/tests/test_util.py",
        fails=("test_validate",),
        passes=(
            "test_ProtocolError",
            "test_LocalProtocolError",
            "test_validate_formatting",
            "test_make_sentinel",
            "test_bytesify",
        ),
        statement="`validate` accepts data that only begins with what the pattern matches.",
    )


@functools.cache
def voluptuous() -> Instance:
    """A validator that does the opposite."""
    return _instance(
        "voluptuous",
        "voluptuous/util.py",
        ("return str(v).lower()", "return str(v).upper()"),
        "voluptuous/tests/tests.py",
        fails=("test_lower_util_handles_various_inputs",),
        passes=(
            "test_upper_util_handles_various_inputs",
            "test_in",
            "test_required",
            "test_capitalize_util_handles_various_inputs",
        ),
        statement="`Lower` does not give lower case.",
    )


def spec(folder: Path, *instances: Instance, **options: object) -> Swe:
    """Return the environment of some instances."""
    rows.write(folder / "rows.jsonl", instances)
    return Swe(rows=str(folder / "rows.jsonl"), image=IMAGE, **options)  # type: ignore[arg-type]


def trees(instance: Instance) -> Trees:
    """Return what is put into a sandbox for an instance."""
    assert instance.source
    return Trees(sources.archive(instance.source), sources.tools())


@asynccontextmanager
async def sandbox(instance: Instance) -> AsyncIterator[Sandbox]:
    """Open a sandbox for an instance."""
    task = Swe(image=IMAGE).task_of(instance)
    assert task.sandbox
    async with PROVIDER.serve() as served, served.open(task.sandbox) as opened:
        yield opened


def _instance(
    name: str,
    path: str,
    change: tuple[str, str],
    tests: str,
    *,
    fails: tuple[str, ...],
    passes: tuple[str, ...],
    statement: str,
) -> Instance:
    """Return the instance of a bug in ``path``; ``change`` has the right and the wrong text."""
    try:
        tree = packages.fetch(packages.named(name))
    except packages.UnusablePackage as problem:
        pytest.skip(f"{name} cannot be had here: {problem}")
    solved, whole = tree.files[path].decode(), tree.files[tests].decode()
    right, wrong = change
    assert solved.count(right) == 1
    return Instance(
        id=f"{name}-by-hand",
        repo=name,
        problem_statement=statement,
        patch=diffs.unified(path, solved.replace(right, wrong), solved),
        test_patch=diffs.unified(tests, _without(whole, fails), whole),
        fail_to_pass=tuple(f"{tests}::{test}" for test in fails),
        pass_to_pass=tuple(f"{tests}::{test}" for test in passes),
        source=tree.source,
        command=f"PYTHONPATH=.:$PYTHONPATH {PYTEST.replace('python3 ', 'python3 -S ', 1)} {tests}",
    )


def _without(text: str, functions: tuple[str, ...]) -> str:
    """Return a module without some of its functions."""
    lines = text.splitlines(keepends=True)
    found = [
        node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name in functions
    ]
    assert len(found) == len(functions)
    for node in reversed(found):
        del lines[min([node.lineno, *(mark.lineno for mark in node.decorator_list)]) - 1 : node.end_lineno]
    return "".join(lines)


def hard(instance: Instance, **changes: object) -> Instance:
    """Return a changed instance."""
    return replace(instance, **changes)  # type: ignore[arg-type]
