"""The provider that chooses a back end: never one that does less than was asked for, and it logs why."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from agentrl_sandboxes.auto import LIMITS, Auto

from agentrl.errors import ConfigError
from agentrl.sandbox import Capabilities, Limit, SandboxProvider
from agentrl.types import SandboxSpec

SERVED: list[str] = []


@dataclass(frozen=True, kw_only=True)
class Candidate(SandboxProvider):
    name: str
    isolation: str = "namespaces"
    lacks: frozenset[Limit] = frozenset()
    broken: str = ""

    @asynccontextmanager
    async def serve(self, *, run: str = ""):
        if self.broken:
            raise ConfigError(self.broken)
        SERVED.append(f"{self.name} opened for {run}")
        try:
            yield Served(self)
        finally:
            SERVED.append(f"{self.name} closed")


@dataclass(frozen=True)
class Served:
    candidate: Candidate

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(isolation=self.candidate.isolation, limits=LIMITS - self.candidate.lacks)


def taken(auto: Auto) -> str:
    SERVED.clear()

    async def go() -> str:
        async with auto.serve(run="r") as served:
            return served.candidate.name

    return asyncio.run(go())


LOCAL, DOCKER = Candidate(name="local"), Candidate(name="docker", isolation="container")


def test_the_first_that_will_do_is_taken_and_the_others_are_closed():
    assert taken(Auto(candidates=(LOCAL, DOCKER))) == "local"
    assert SERVED == ["local opened for r", "local closed"]
    assert taken(Auto(candidates=(LOCAL, DOCKER), isolation="container")) == "docker"
    assert SERVED == ["local opened for r", "local closed", "docker opened for r", "docker closed"]


def test_a_candidate_that_enforces_less_is_taken_only_where_that_was_accepted_and_none_is_better():
    loose = Candidate(name="loose", lacks=frozenset({"memory", "cpu"}))
    assert taken(Auto(candidates=(loose, DOCKER))) == "docker"
    assert taken(Auto(candidates=(loose, DOCKER), unenforced=frozenset({"memory", "cpu"}))) == "docker"
    assert taken(Auto(candidates=(loose,), unenforced=frozenset({"memory", "cpu"}))) == "loose"
    with pytest.raises(ConfigError, match="does not enforce cpu here"):
        taken(Auto(candidates=(loose,), unenforced=frozenset({"memory"})))


def test_where_none_will_do_every_reason_is_told():
    broken = Candidate(name="x", broken="no daemon; start it")
    loose = Candidate(name="loose", isolation="kernel", lacks=frozenset({"disk"}))
    with pytest.raises(ConfigError) as raised:
        taken(Auto(candidates=(broken, LOCAL, loose), isolation="container"))
    for reason in (
        "no daemon; start it",
        "isolates by namespaces, and container is required",
        "does not enforce disk here",
    ):
        assert str(raised.value).count(reason) == 1


def test_what_was_taken_and_why_is_told(caplog):
    with caplog.at_level(logging.INFO, "agentrl_sandboxes"):
        taken(Auto(candidates=(Candidate(name="x", broken="no daemon"), DOCKER)))
    assert "candidate, isolated by container" in caplog.text
    assert "no daemon" in caplog.text


def test_trouble_of_the_episodes_is_not_taken_for_a_candidates():
    async def go() -> None:
        async with Auto(candidates=(LOCAL, DOCKER)).serve():
            raise ConfigError("of the recipe")

    SERVED.clear()
    with pytest.raises(ConfigError, match="of the recipe"):
        asyncio.run(go())
    assert SERVED == ["local opened for ", "local closed"]


def test_on_this_machine_it_runs_a_command():
    async def go() -> bytes:
        async with Auto().serve() as sandboxes, sandboxes.open(SandboxSpec()) as sandbox:
            return (await sandbox.exec(["id", "-u"])).stdout

    try:
        assert asyncio.run(go()).strip().isdigit()
    except ConfigError as problem:
        pytest.skip(str(problem))
