"""One sandbox provider under attack: runs an attack in a sandbox of its own, watches a neighbour meanwhile, and looks at the host after."""

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
Found = list[str]
"""What is wrong, a line each."""

ATTACK_S = 120.0
"""The longest that an attack may take to an attributed outcome."""
ANSWER_S = 10.0
"""The longest that a neighbour may take to answer, whatever is going on."""
LATE_S = 8.0
"""The longest that a command may take beyond its deadline."""
FLOOD_MIB = 64
RUN = "import sys; sys.path.insert(0, sys.argv[2]); import runpy; runpy.run_module('agentrl.testing.attacks', run_name='__main__')"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What became of one attack."""

    attack: str
    outcome: Outcome
    detail: str
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Attack:
    """What is tried."""

    title: str
    expected: Literal["denied", "contained"]
    run: Callable[[Siege, Sandbox], Awaitable[Found]]
    limit: Limit | None = None
    harmful: bool = False
    """Whether it would hurt a host that is not isolated."""
    after: str = ""
    """What it goes on from where that one was contained; it is run only in an outer control group."""


class Siege:
    """One provider under attack."""

    neighbour: Sandbox

    def __init__(self, sandboxes: Sandboxes, spec: SandboxSpec, out: Canaries) -> None:
        self.sandboxes, self.spec, self.canaries = sandboxes, spec, out
        self.outcomes: dict[str, Outcome] = {}
        self.notes: list[str] = []

    async def attack(self, attack: Attack) -> Row:
        """Run one attack, and look what became of the host and of the neighbour."""
        if reason := self._left_out(attack):
            self.outcomes[attack.title] = reason[0]
            return Row(attack=attack.title, outcome=reason[0], detail=reason[1])
        found: Found = []
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
            found.append(f"the sandbox broke: {problem}")
        duration_s = time.monotonic() - began
        found += [*self.canaries.harm(), *await self.canaries.left()]
        outcome: Outcome = "escaped" if found else attack.expected
        self.outcomes[attack.title] = outcome
        return Row(
            attack=attack.title, outcome=outcome, detail="; ".join(found or self.notes), duration_s=duration_s
        )

    def _left_out(self, attack: Attack) -> tuple[Outcome, str] | None:
        """Say why an attack is not run, if it is not."""
        if attack.limit and attack.limit not in self.sandboxes.capabilities.limits:
            return (
                "not enforced",
                f"the back end does not enforce {attack.limit} here, which its user accepted",
            )
        if attack.harmful and self.outcomes["see host processes"] == "escaped":
            return "not run", "the sandbox shares the host's processes, and the host would be hit"
        if attack.after and not (self.outcomes[attack.after] == "contained" and _bounded()):
            return (
                "not run",
                "this process is in no control group that bounds processes, or the bounded bomb was not stopped",
            )
        return None

    @asynccontextmanager
    async def _watched(self, found: Found) -> AsyncIterator[None]:
        """Ask the neighbour over and over whether it is well."""

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
        """Return the command line of an attack; what it leaves is found by the token in it."""
        return [
            "python3",
            "-I",
            "-c",
            RUN,
            name,
            f"{self.spec.workdir}/.attacks",
            *([self.canaries.token] if marked else []),
        ]

    @property
    def facts(self) -> bytes:
        """What attacks are told."""
        limits = {
            name: getattr(self.spec, name)
            for name in ("memory_mib", "disk_mib", "num_processes", "num_files")
        }
        return json.dumps({**self.canaries.facts, **limits, "flood_mib": FLOOD_MIB}).encode()

    async def program(self, sandbox: Sandbox, name: str, *, marked: bool = True, whole: bool = True) -> Found:
        """Run an attack to its end, and return the attempts that got through; ``whole``: it must have come to its end by itself."""
        await self.bring(sandbox)
        result = await sandbox.exec(self.command(name, marked=marked), stdin=self.facts, timeout_s=60.0)
        attempts = [json.loads(line) for line in result.stdout.splitlines()]
        self.notes += (
            [f"{len(attempts)} attempts"]
            if len(attempts) > 3
            else [f"{one['what']}: {one['detail']}" for one in attempts]
        )
        found = [f"{one['what']}: {one['detail']}" for one in attempts if one["escaped"]]
        if whole and (result.exit_code or not attempts):
            found.append(
                f"the attack itself broke: exit code {result.exit_code}, {result.stderr.decode(errors='replace')[-300:]}"
            )
        return found


def inside(name: str, *, whole: bool = True) -> Callable[[Siege, Sandbox], Awaitable[Found]]:
    """Return an attack that is a program and nothing else."""

    async def run(suite: Siege, sandbox: Sandbox) -> Found:
        return await suite.program(sandbox, name, whole=whole)

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
