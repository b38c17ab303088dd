from contextlib import asynccontextmanager

import broken
import pytest

from agentrl.errors import SandboxError
from agentrl.plugins import environments, make_environment
from agentrl.testing import ContractViolation, check_env


class NoRoom:
    """A provider of sandboxes that cannot start."""

    @asynccontextmanager
    async def serve(self):
        raise SandboxError("no room")
        yield


# checked by their own tests, with games and sandboxes made for the test
ELSEWHERE = ("textworld", "swe", "swe-repair")


def test_a_sound_environment_passes():
    check_env(broken.Sound())


@pytest.mark.parametrize("name", [name for name in environments() if name not in ELSEWHERE])
def test_every_environment_keeps_the_contract(name):
    check_env(make_environment(name), num_tasks=2)


@pytest.mark.parametrize(
    ("spec", "clause"),
    [
        (broken.Thawed, "frozen"),
        (broken.Unpicklable, "picklable"),
        (broken.NoTurns, "max_turns"),
        (broken.ForgottenTurns, "max_turns"),
        (broken.NoStandard, "signals"),
        (broken.NoMeaning, "signals"),
        (broken.Undeclared, "declared signals"),
        (broken.Empty, "tasks"),
        (broken.Reordered, "same tasks"),
        (broken.HashOrdered, "same tasks"),
        (broken.SameIds, "task ids"),
        (broken.NotJson, "task data"),
        (broken.Overlapping, "disjoint splits"),
        (broken.AnySplit, "unknown split"),
        (broken.Unopenable, "opens"),
        (broken.Unshareable, "shared"),
        (broken.Unready, "shared"),
        (broken.Raising, "never raises"),
        (broken.Speechless, "observations"),
        (broken.Roleless, "observations"),
        (broken.Silent, "standard signals"),
        (broken.Infinite, "finite numbers"),
        (broken.Chancy, "same actions, same trajectory"),
        (broken.Watching, "episodes do not see each other"),
        (broken.Generous, "doing nothing"),
        (broken.Hackable, "attacks fail"),
        (broken.Impossible, "the plan succeeds"),
        (broken.Early, "success ends"),
        (broken.Refusing, "admissible actions"),
        (broken.LeakingThreads, "leaves nothing"),
        (broken.LeakingFiles, "leaves nothing"),
        (broken.LeakingProcesses, "leaves nothing"),
        (broken.OnlyHere, "runs in a worker"),
    ],
)
def test_what_is_not_kept_is_named(spec, clause, monkeypatch):
    monkeypatch.setattr("agentrl.testing.leftovers.SETTLE_S", 0.1)
    try:
        with pytest.raises(ContractViolation) as caught:
            check_env(spec(), num_tasks=1)
    finally:
        for kept in broken.KEPT:
            if hasattr(kept, "kill"):
                kept.kill()
                kept.wait()
        broken.KEPT.clear()
    assert clause in [violation.split(":")[0] for violation in caught.value.violations], caught.value


def test_a_provider_that_cannot_start_is_no_fault_of_the_environment():
    with pytest.raises(SandboxError, match="no room"):
        check_env(broken.Sound(), num_tasks=1, sandboxes=NoRoom())
