"""The rows that ship: what they hold, and (slow) that they hold."""

import asyncio
import random
from collections import Counter
from pathlib import Path

import agentrl_environments.swe
import pytest
from agentrl_environments.swe import SAMPLE, Swe, diffs, rows
from agentrl_environments.swe.repair import Repair
from agentrl_environments.swe.rows import Instance
from agentrl_environments.swe.synth import packages
from agentrl_environments.swe.synth.candidates import COMBINED
from agentrl_environments.swe.synth.statements import leaks

from agentrl.errors import ConfigError

FILES = (SAMPLE, Repair.sample)


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def shipped(request: pytest.FixtureRequest) -> tuple[Instance, ...]:
    return rows.load(request.param)


def test_the_shipped_rows_are_many_small_and_of_known_packages() -> None:
    for file in FILES:
        assert file.stat().st_size < 1 << 20
    sample = rows.load(SAMPLE)
    pinned = {(package.name, package.version, package.sha256) for package in packages.PACKAGES}
    assert len(sample) >= 120
    assert {
        (row.source.package, row.source.version, row.source.sha256) for row in sample if row.source
    } <= pinned
    assert len({row.repo for row in sample}) >= 6


def test_kinds_and_difficulties_are_balanced() -> None:
    sample = rows.load(SAMPLE)
    kinds = Counter(row.kind for row in sample)
    assert len(kinds) >= 15
    assert COMBINED in kinds
    assert max(kinds.values()) <= len(sample) / 6
    assert set(Counter(row.difficulty for row in sample)) == {"easy", "medium", "hard"}


def test_rows_are_whole_and_their_statements_give_nothing_away(shipped: tuple[Instance, ...]) -> None:
    for row in shipped:
        assert row.fail_to_pass
        assert len(row.fail_to_pass) <= len(row.pass_to_pass)
        assert set(row.fail_to_pass).isdisjoint(row.pass_to_pass)
        assert len(row.base_commit) == 40
        assert row.problem_statement.strip()
        assert not leaks(row.problem_statement, row.patch), row.id
        assert not any(
            "test" in Path(path).name or "tests" in Path(path).parts for path in diffs.paths(row.patch)
        ), row.id


def test_no_function_is_in_two_splits(shipped: tuple[Instance, ...]) -> None:
    spec = Swe()
    placed: dict[tuple[str, str], set[str]] = {}
    for row in shipped:
        placed.setdefault((row.repo, row.site), set()).add(spec.split_of(row))
    assert all(len(splits) == 1 for splits in placed.values())
    assert {spec.split_of(row) for row in shipped} >= {"train", "test", "held-out"}


def test_the_licences_of_all_quoted_packages_are_named() -> None:
    told = (Path(agentrl_environments.swe.__file__).parent / "SAMPLE.md").read_text()
    for package in {row.repo for file in FILES for row in rows.load(file)}:
        assert f"| {package} |" in told


@pytest.mark.slow
def test_a_random_part_of_the_shipped_rows_stands_the_official_rule(shipped: tuple[Instance, ...]) -> None:
    from agentrl_environments.swe.cli import verify_all
    from agentrl_sandboxes.local import Local

    chosen = random.Random().sample(shipped, 5)
    try:
        for row in chosen:
            packages.fetch(packages.named(f"{row.repo}"))
    except packages.UnusablePackage as problem:
        pytest.skip(f"source distributions are not at hand: {problem}")

    async def work() -> dict[str, str]:
        async with Local().serve(run="test") as sandboxes:
            return await verify_all(sandboxes, chosen, workers=2)

    try:
        failed = asyncio.run(work())
    except ConfigError as problem:
        pytest.skip(f"no local sandboxes here: {problem}")
    assert failed == {}
