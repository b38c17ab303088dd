"""Runs attacks on a provider, each in its own sandbox, while it watches a neighbour; then checks the host."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentrl.errors import SandboxError
from agentrl.sandbox import Limit, Sandbox, Sandboxes
from agentrl.testing import attacks
from agentrl.testing.canaries import Canaries
from agentrl.types import SandboxSpec

Outcome = Literal["denied", "contained", "escaped", "not enforced", "not run"]
Problems = list[str]
"""The ways in which isolation failed, one line for each."""

ATTACK_S = 120.0
"""Maximum duration of an attack until its outcome is known."""
ANSWER_S = 10.0
"""Maximum time in which a neighbour must answer during an attack."""
LATE_S = 8.0
"""Maximum time that a command may take beyond its deadline."""
FLOOD_MIB = 64
RUN = (
    "import sys; sys.path.insert(0, sys.argv[2]); "
    "import runpy; runpy.run_module('agentrl.testing.attacks', run_name='__main__')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackResult:
    """The outcome of one attack."""

    attack: str
    outcome: Outcome
    detail: str
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack, and the outcome that it should have."""

    title: str
    expected: Literal["denied", "contained"]
    run: Callable[[AttackRunner, Sandbox], Awaitable[Problems]]
    limit: Limit | None = None
    """The limit that should contain the attack, if there is one."""
    harmful: bool = False
    """Whether the attack would harm a host that is not isolated."""
    after: str = ""
    """Title of another attack, or empty. With a title, this attack is run only if the other one was
    contained, and only if the suite's own process is in a control group that bounds processes."""


class AttackRunner:
    """Runs attacks on one provider."""

    neighbour: Sandbox

    def __init__(self, sandboxes: Sandboxes, spec: SandboxSpec, out: Canaries) -> None:
        self.sandboxes, self.spec, self.canaries = sandboxes, spec, out
        self.outcomes: dict[str, Outcome] = {}
        self.notes: list[str] = []

    async def attack(self, attack: Attack) -> AttackResult:
        """Run one attack, and check the host and the neighbour."""
        if skipped := self._skipped(attack):
            outcome, reason = skipped
            self.outcomes[attack.title] = outcome
            return AttackResult(attack=attack.title, outcome=outcome, detail=reason)
        found: Problems = []
        began, self.notes = time.monotonic(), []
        try:
            async with (
                asyncio.timeout(ATTACK_S),
                self._watched(found),
                self.sandboxes.open(self.spec) as sandbox,
            ):
                found += await attack.run(self, sandbox)
        except TimeoutError:
            found.append(f"no outcome within {ATTACK_S:g} s")
        except SandboxError as problem:
            found.append(f"the sandbox failed: {problem}")
        duration_s = time.monotonic() - began
        found += [*self.canaries.harm(), *await self.canaries.left()]
        self.outcomes[attack.title] = "escaped" if found else attack.expected
        return AttackResult(
            attack=attack.title,
            outcome=self.outcomes[attack.title],
            detail="; ".join(found or self.notes),
            duration_s=duration_s,
        )

    def _skipped(self, attack: Attack) -> tuple[Outcome, str] | None:
        """Return the outcome and the reason if an attack is not run, else ``None``."""
        if attack.limit and attack.limit not in self.sandboxes.capabilities.limits:
            reason = f"the back end does not enforce {attack.limit} here, which its user accepted"
            return "not enforced", reason
        if attack.harmful and self.outcomes["see host processes"] == "escaped":
            return "not run", "the sandbox shares the host's processes, and the host would be harmed"
        if attack.after and not (self.outcomes[attack.after] == "contained" and _bounded()):
            reason = "this process is not in a control group that bounds processes"
            return "not run", f"{reason}, or the bounded bomb was not stopped"
        return None

    @asynccontextmanager
    async def _watched(self, found: Problems) -> AsyncIterator[None]:
        """Have the neighbour run a command again and again in the context; add problems to ``found``."""

        async def ask() -> None:
            while True:
                began = time.monotonic()
                try:
                    result = await self.neighbour.exec(["echo", "well"], timeout_s=ANSWER_S)
                except SandboxError as problem:
                    found.append(f"the neighbour was lost: {problem}")
                    return
                if result.stdout != b"well\n" or time.monotonic() - began > ANSWER_S:
                    found.append(
                        f"the neighbour answered {result.stdout!r} after {time.monotonic() - began:.1f} s"
                    )
                    return
                await asyncio.sleep(0.2)

        asking = asyncio.create_task(ask())
        try:
            yield
        finally:
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking

    async def bring(self, sandbox: Sandbox) -> None:
        """Write the attacks into a sandbox."""
        for path in Path(attacks.__file__).parent.glob("*.py"):
            await sandbox.write(
                f"{self.spec.workdir}/.attacks/agentrl/testing/attacks/{path.name}", path.read_bytes()
            )

    def command(self, name: str, *, marked: bool = True) -> list[str]:
        """Return the command line of an attack.

        If ``marked``, the line has the token by which leftovers are found.
        """
        line = ["python3", "-I", "-c", RUN, name, f"{self.spec.workdir}/.attacks"]
        return [*line, self.canaries.token] if marked else line

    @property
    def facts(self) -> bytes:
        """The standard input of attacks: what they need to know about the host and their limits."""
        fields = ("memory_mib", "disk_mib", "num_processes", "num_files")
        limits = {name: getattr(self.spec, name) for name in fields}
        return json.dumps({**self.canaries.facts, **limits, "flood_mib": FLOOD_MIB}).encode()

    async def program(
        self, sandbox: Sandbox, name: str, *, marked: bool = True, whole: bool = True
    ) -> Problems:
        """Run an attack program, and return the attempts that got through.

        If ``whole``, it is also a problem if the program failed or made no attempts.
        """
        await self.bring(sandbox)
        result = await sandbox.exec(self.command(name, marked=marked), stdin=self.facts, timeout_s=60.0)
        attempts = [json.loads(line) for line in result.stdout.splitlines()]
        if len(attempts) > 3:
            self.notes.append(f"{len(attempts)} attempts")
        else:
            self.notes += [f"{one['what']}: {one['detail']}" for one in attempts]
        found = [f"{one['what']}: {one['detail']}" for one in attempts if one["escaped"]]
        if whole and (result.exit_code or not attempts):
            error = result.stderr.decode(errors="replace")[-300:]
            found.append(f"the attack itself failed: exit code {result.exit_code}, {error}")
        return found


def inside(name: str, *, whole: bool = True) -> Callable[[AttackRunner, Sandbox], Awaitable[Problems]]:
    """Return an attack that only runs the attack program ``name`` in the sandbox."""

    async def run(runner: AttackRunner, sandbox: Sandbox) -> Problems:
        return await runner.program(sandbox, name, whole=whole)

    return run


def _bounded() -> bool:
    """Whether this process is in a control group that bounds its processes."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in {"", "pids"}:
            top = Path("/sys/fs/cgroup") / controllers
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):
                limit = folder / "pids.max"
                if folder.is_relative_to(top) and limit.exists() and limit.read_text().strip() != "max":
                    return True
    return False
