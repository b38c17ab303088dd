"""The conformance suite of sandboxes: one function, which names each clause of the contract that is not kept.

The clauses are the contract of ``agentrl.sandbox``, and what environments rely on: whatever a command does is
a result; a deadline leaves nothing running; bytes come back as they were written; no path or archive leads
outside; limits are enforced; nothing is left when a sandbox is closed.

No check goes far beyond the limit that it checks, so that a back end that does not enforce it is not harmed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from agentrl.errors import AgentRLError, SandboxError
from agentrl.sandbox import Sandboxes, SandboxProvider
from agentrl.testing.contract import ContractViolation, Violation, value_violations
from agentrl.testing.leftovers import OpenResources, left_over
from agentrl.testing.sandbox_calls import CALLS, DAEMON
from agentrl.testing.sandbox_limits import LIMITS, limited
from agentrl.types import SandboxSpec

BASE = SandboxSpec(memory_mib=512, disk_mib=128)
"""The spec of the sandbox in which most clauses are checked."""


def check_sandbox(
    provider: SandboxProvider,
    *,
    spec: SandboxSpec = BASE,
    only: Sequence[str] = (),
    clause_deadline_s: float = 60.0,
) -> None:
    """Check a provider against the contract. Runs an event loop, so it must not be called inside one.

    Args:
        provider: the provider to check.
        spec: the spec of the sandboxes that are opened; clauses on limits make one of its limits smaller.
        only: the names of the clauses to check; by default all.
        clause_deadline_s: the deadline of one clause.

    Raises:
        ContractViolation: with every clause that is not kept.
    """
    violations = list(value_violations(provider))
    violations += asyncio.run(_Check(provider, spec, frozenset(only), clause_deadline_s).run())
    if violations:
        raise ContractViolation([f"{clause}: {found}" for clause, found in violations], "sandbox")


class _Check:
    """Checks the clauses on sandboxes."""

    def __init__(
        self, provider: SandboxProvider, spec: SandboxSpec, only: frozenset[str], deadline_s: float
    ) -> None:
        self.provider, self.spec, self.only, self.deadline_s = provider, spec, only, deadline_s
        self.found: list[Violation] = []

    async def run(self) -> list[Violation]:
        async with (
            self.clause("serves"),
            self.provider.serve(run="check") as sandboxes,
            sandboxes.open(self.spec),
        ):
            pass  # what the first use loads is not a leak
        if self.found:
            return self.found
        before = OpenResources.now()
        async with self.provider.serve(run="check") as sandboxes:
            await self.calls(sandboxes)
            await self.limits(sandboxes)
            await self.lives(sandboxes)
        if left := await left_over(before):
            self.report("leaves nothing", f"after everything was closed there are {left}")
        return self.found

    def report(self, clause: str, found: str) -> None:
        self.found.append((clause, found))

    @asynccontextmanager
    async def clause(self, name: str) -> AsyncIterator[None]:
        """Check one clause: if it raises or misses its deadline, report that it is not kept."""
        try:
            async with asyncio.timeout(self.deadline_s):
                yield
        except TimeoutError:
            self.report(name, f"it took more than {self.deadline_s:.0f} s")
        except (AgentRLError, OSError, ValueError, AssertionError) as problem:
            self.report(name, f"raised {type(problem).__name__}: {problem}")

    def wanted(self, name: str) -> bool:
        return not self.only or name in self.only

    async def calls(self, sandboxes: Sandboxes) -> None:
        """Check the clauses on calls in one sandbox; after a clause that is not kept, open another one."""
        waiting = [name for name in CALLS if self.wanted(name)]
        while waiting:
            broken = len(self.found)
            async with self.clause("opens"), sandboxes.open(self.spec) as sandbox:
                while waiting and len(self.found) == broken:
                    name = waiting.pop(0)
                    async with self.clause(name):
                        async for found in CALLS[name](sandbox):
                            self.report(name, found)
            if self.found and self.found[-1][0] == "opens":
                break

    async def limits(self, sandboxes: Sandboxes) -> None:
        """Check the limits that the back end claims to enforce, each in its own sandbox."""
        for limit in sorted(sandboxes.capabilities.limits):
            name = f"{limit} limit"
            if self.wanted(name):
                async with self.clause(name), sandboxes.open(limited(self.spec, limit)) as sandbox:
                    async for found in LIMITS[limit](sandbox):
                        self.report(name, found)

    async def lives(self, sandboxes: Sandboxes) -> None:
        """Check the clauses on the life of sandboxes."""
        for name, check in {
            "neighbours": self.neighbours,
            "reset": self.reset,
            "cancelled": self.cancelled,
            "closed": self.closed,
        }.items():
            if self.wanted(name):
                async with self.clause(name):
                    await check(sandboxes)

    async def neighbours(self, sandboxes: Sandboxes) -> None:
        async with sandboxes.open(self.spec) as one, sandboxes.open(self.spec) as two:
            await one.write("mine", b"1")
            if (await two.exec(["test", "-e", "mine"])).exit_code == 0:
                self.report("neighbours", "a file of one sandbox is seen in another")
            await one.exec(["sh", "-c", "sleep 86399 & exit 0"])
            if b"86399" in (await two.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline"])).stdout:
                self.report("neighbours", "a process of one sandbox is seen in another")

    async def reset(self, sandboxes: Sandboxes) -> None:
        async with sandboxes.open(self.spec) as sandbox, sandbox.shell() as shell:
            await shell.run("echo 86395 > here; echo 86395 > /tmp/there; sleep 86398 &")
            await sandbox.reset()
            seen = await sandbox.exec(["sh", "-c", "cat here /tmp/there /proc/[0-9]*/cmdline"])
            for old in (b"86395", b"86398"):
                if old in seen.stdout:
                    self.report("reset", f"after it, {old.decode()!r} of the old sandbox is still there")
            async with sandbox.shell() as another:
                if (await another.run("pwd")).output != f"{sandbox.spec.workdir}\n".encode():
                    self.report("reset", "a shell after it does not start in workdir")
            try:
                await shell.run("true")
            except SandboxError:
                pass
            else:
                self.report("reset", "a shell of the old sandbox is still answered")

    async def cancelled(self, sandboxes: Sandboxes) -> None:
        async with sandboxes.open(self.spec) as sandbox:
            for call in (
                sandbox.exec(["sh", "-c", f"{DAEMON} 86397; sleep 86397"]),
                sandbox.exec(["sleep", "86397"]),
            ):
                task = asyncio.ensure_future(call)
                await asyncio.sleep(0.3)
                task.cancel()
                await asyncio.wait({task})
                if not task.cancelled():
                    self.report(
                        "cancelled", f"a cancelled exec ended with {task.exception() or task.result()!r}"
                    )
            until = time.monotonic() + 5
            while b"86397" in (await sandbox.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline"])).stdout:
                if time.monotonic() > until:
                    self.report("cancelled", "what a cancelled exec ran is still there 5 s later")
                    break
                await asyncio.sleep(0.05)

    async def closed(self, sandboxes: Sandboxes) -> None:
        async with sandboxes.open(self.spec) as sandbox:
            await sandbox.exec(["sh", "-c", f"{DAEMON} 86396"])
        try:
            await sandbox.exec(["true"], timeout_s=5.0)
        except SandboxError:
            return
        self.report("closed", "a closed sandbox still answers")
