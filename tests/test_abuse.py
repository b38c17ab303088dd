"""The abuse suite on the back ends of this machine, and on one without isolation, which it must detect."""

import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from agentrl_sandboxes import images
from agentrl_sandboxes.docker import Docker
from agentrl_sandboxes.local import Local
from agentrl_sandboxes.service import serving
from outer import outer_group
from plain import Plain

from agentrl.errors import ConfigError, ImageMissing
from agentrl.sandbox import Limit, Sandboxes, SandboxProvider
from agentrl.testing.abuse import ATTACKS, SPEC, AttackResult, Escaped, check_abuse, table
from agentrl.testing.attacks import bombs
from agentrl.testing.attacks.bombs import CHUNK, MORE, held_by

WITHOUT_ROOT: frozenset[Limit] = frozenset({"cpu", "memory"})


@dataclass(frozen=True, kw_only=True)
class Open(SandboxProvider):
    """A provider whose sandboxes are plain processes."""

    @asynccontextmanager
    async def serve(self, *, run: str = "") -> AsyncIterator[Sandboxes]:
        backend = Plain()
        try:
            async with serving(
                backend, run=run, unenforced={"cpu", "memory", "processes", "disk"}
            ) as sandboxes:
                yield sandboxes
        finally:
            backend.close()


@pytest.fixture(autouse=True)
def group() -> Iterator[bool]:
    with outer_group() as bounded:
        yield bounded


def outcomes(rows: tuple[AttackResult, ...]) -> dict[str, str]:
    return {row.attack: row.outcome for row in rows}


def expected(group: bool) -> dict[str, str]:
    return {attack.title: attack.expected for attack in ATTACKS} | (
        {} if group else {"fork bomb, endless": "not run"}
    )


@pytest.mark.slow
def test_everything_is_denied_or_contained_by_local_sandboxes(group: bool) -> None:
    provider = Local() if os.geteuid() == 0 else Local(unenforced=WITHOUT_ROOT)
    try:
        rows = check_abuse(provider, spec=replace(SPEC, image="host"))
    except ConfigError as problem:
        pytest.skip(str(problem))
    assert outcomes(rows) == expected(group) | ({"memory bomb": "not enforced"} if os.geteuid() else {})


@pytest.mark.slow
def test_everything_is_denied_or_contained_by_docker_sandboxes(group: bool, docker_url: str) -> None:
    try:
        images.find()
    except ImageMissing as problem:
        pytest.skip(str(problem))
    assert outcomes(check_abuse(Docker(url=docker_url))) == expected(group)


def test_memory_counts_as_held_together_only_where_all_who_hold_it_are_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert held_by([2 * CHUNK, 3 * CHUNK]) == 5 * CHUNK
    until_killed = bombs.hoard

    def killed(size: int, reports: int, questions: int) -> None:
        if size > 2 * CHUNK:
            os.write(reports, MORE * 3)
            os.kill(os.getpid(), signal.SIGKILL)
        until_killed(size, reports, questions)

    monkeypatch.setattr(bombs, "hoard", killed)
    assert held_by([2 * CHUNK, 3 * CHUNK, CHUNK]) == 3 * CHUNK, (
        "what the killed one held, or the others together"
    )
    assert held_by([2 * CHUNK, 3 * CHUNK, 2 * CHUNK]) == 4 * CHUNK


def test_memory_that_is_not_taken_in_time_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(size: int, reports: int, questions: int) -> None:
        os.write(reports, MORE)
        os.read(questions, 1)  # until its parent closes it
        os._exit(0)

    monkeypatch.setattr(bombs, "hoard", stuck)
    monkeypatch.setattr(bombs, "HOARD_S", 0.2)
    with pytest.raises(TimeoutError, match="2 of 2 children"):
        held_by([CHUNK, CHUNK])


@pytest.mark.slow
def test_a_back_end_that_closes_nothing_in_is_found_out_and_not_bombed() -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.raises(Escaped) as error:
        check_abuse(Open(), spec=replace(SPEC, workdir=folder))
    found = outcomes(error.value.rows)
    for attack in ("see host processes", "read host files", "write host files", "signal host processes"):
        assert found[attack] == "escaped"
    for attack in ("reach the host's loopback", "reach the host's sockets, abstract ones too"):
        assert found[attack] == "escaped"
    for attack in ("mount", "kill the guest", "write sysctls", "use device nodes"):
        assert found[attack] == "not run"
    for attack in ("fork bomb, bounded", "memory bomb", "disk fill", "fork bomb, endless"):
        assert found[attack] == "not enforced"
    assert found["file descriptor bomb"] == "contained"
    details = {row.attack: row.detail for row in error.value.rows}
    assert len(error.value.violations) == sum(outcome == "escaped" for outcome in found.values())
    assert "the victim ended with -9" in details["signal host processes"]
    assert "was written" in details["write host files"]
    assert "something connected to the loopback port" in details["reach the host's loopback"]


def test_the_table_has_a_line_for_every_attack_and_a_column_for_every_back_end() -> None:
    rows = [AttackResult(attack=attack.title, outcome=attack.expected, detail="") for attack in ATTACKS]
    lines = table({"one": rows, "two": rows}).splitlines()
    assert lines[0] == "| attack | one | two |"
    assert len(lines) == 2 + len(ATTACKS)
    assert all(line.count("|") == 4 for line in lines)
