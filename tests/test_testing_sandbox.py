"""The contract suite of sandboxes, on a back end without isolation, and on others that break one clause."""

import subprocess
from dataclasses import replace

import pytest
from plain import Plain, PlainProvider, PlainStream

from agentrl.sandbox import SandboxProvider
from agentrl.testing import ContractViolation, check_sandbox

OPEN_BY_NATURE = {"network", "neighbours", "reset"}
"""The clauses that a plain child process violates, because it is not isolated."""


def broken_clauses(provider, *only):
    try:
        check_sandbox(provider, only=only)
    except ContractViolation as violation:
        return {line.split(":")[0] for line in violation.violations}
    return set()


@pytest.mark.slow
def test_a_plain_process_keeps_all_but_its_isolation():
    assert broken_clauses(PlainProvider()) == OPEN_BY_NATURE


class Claiming(Plain):
    """Claims to enforce all limits, and enforces only those that the guest enforces."""

    capabilities = replace(Plain.capabilities, limits=frozenset({"memory", "processes", "disk"}))


def test_limits_that_are_only_claimed_are_hit():
    limits = ("memory limit", "processes limit", "disk limit")
    assert broken_clauses(PlainProvider(Claiming), *limits) == set(limits)


class Meddling(PlainStream):
    """Changes a byte of the output of commands."""

    async def receive(self) -> bytes:
        return (
            (await super().receive())
            .replace(b"f y", b"f z")
            .replace(b"late", b"soon")
            .replace(bytes(range(65, 90)), bytes(25))
        )


class MeddlingBackend(Plain):
    async def open_stream(self, handle):
        return Meddling(self.running[handle.id])


def test_output_that_is_changed_on_the_way_is_noticed():
    assert broken_clauses(PlainProvider(MeddlingBackend), "exec output", "shells", "archives") == {
        "exec output",
        "shells",
        "archives",
    }


KEPT: list[subprocess.Popen[bytes]] = []


class Leaking(Plain):
    """Leaves a process behind for every sandbox."""

    async def destroy(self, handle):
        await super().destroy(handle)
        KEPT.append(subprocess.Popen(["sleep", "60"]))


def test_what_is_left_behind_is_noticed(monkeypatch):
    monkeypatch.setattr("agentrl.testing.leftovers.SETTLE_S", 0.1)
    try:
        assert broken_clauses(PlainProvider(Leaking), "kill all") == {"leaves nothing"}
    finally:
        for process in KEPT:
            process.kill()
            process.wait()
        KEPT.clear()


class Thawed(SandboxProvider):
    def serve(self, *, run=""):
        return PlainProvider().serve(run=run)


def test_a_provider_must_be_a_frozen_dataclass():
    assert broken_clauses(Thawed(), "nothing else") == {"frozen", "picklable"}


def test_a_provider_must_be_picklable():
    assert broken_clauses(PlainProvider(lambda: Plain()), "nothing else") == {"picklable"}


def test_what_does_not_open_is_one_violation():
    class Unopenable(Plain):
        async def create(self, spec, lease, command):
            return await super().create(spec, lease, ["", "-c", "print('no guest')"])

    assert broken_clauses(PlainProvider(Unopenable)) >= {"serves"}


class Misspelling(PlainStream):
    async def send(self, data: bytes) -> None:
        await super().send(data.replace(b'"kill_all"', b'"kill_alk"'))


class MisspellingBackend(Plain):
    async def open_stream(self, handle):
        return Misspelling(self.running[handle.id])


def test_a_guest_that_does_not_know_a_request_is_named_and_the_other_clauses_are_still_checked():
    assert broken_clauses(PlainProvider(MisspellingBackend), "kill all", "at once", "endpoints") == {
        "kill all"
    }
