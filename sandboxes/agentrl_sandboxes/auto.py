"""Chooses the first back end of this machine that can do what is asked, and never one that can do less."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from agentrl.errors import ConfigError
from agentrl.sandbox import Capabilities, Limit, Sandboxes, SandboxProvider
from agentrl_sandboxes.pool import PoolOptions

log = logging.getLogger(__name__)

Isolation = Literal["namespaces", "container", "kernel", "machine"]
ISOLATION: tuple[Isolation, ...] = ("namespaces", "container", "kernel", "machine")
"""The kinds of isolation, weakest first."""
LIMITS: frozenset[Limit] = frozenset({"cpu", "memory", "processes", "disk", "files", "lifetime"})


@dataclass(frozen=True, kw_only=True)
class Auto(SandboxProvider):
    """The first candidate that works here, isolates as asked, and enforces every limit.

    The log says which candidate was chosen, and why the others were not. The requirements are never lowered:
    if no candidate meets them, the error lists all the reasons.
    """

    isolation: Isolation = "namespaces"
    """The weakest isolation to accept: ``container`` excludes ``local``; ``kernel`` requires gVisor or
    better."""
    unenforced: frozenset[Limit] = frozenset()
    """Limits that need not be enforced. A candidate that enforces all limits is preferred."""
    candidates: tuple[SandboxProvider, ...] = ()
    """The providers to try, in this order; by default ``Local`` and then ``Docker``, both with ``pool``."""
    pool: PoolOptions = field(default_factory=PoolOptions)

    def tried(self) -> Sequence[SandboxProvider]:
        """Return the candidates, in the order in which they are tried."""
        # imported here, because neither is needed if other candidates are named
        from agentrl_sandboxes.docker import Docker
        from agentrl_sandboxes.local import Local

        ours = (
            Local(unenforced=self.unenforced, pool=self.pool),
            Docker(unenforced=self.unenforced, pool=self.pool),
        )
        return self.candidates or ours

    @asynccontextmanager
    async def serve(self, *, run: str = "") -> AsyncIterator[Sandboxes]:
        """Serve the first candidate that meets the requirements.

        Raises:
            ConfigError: no candidate meets them; the message lists all the reasons.
        """
        reasons: list[str] = []
        for accepted in dict.fromkeys((frozenset[Limit](), self.unenforced)):
            for provider in self.tried():
                name = type(provider).__name__.lower()
                async with AsyncExitStack() as stack:
                    try:
                        sandboxes = await stack.enter_async_context(provider.serve(run=run))
                    except ConfigError as problem:
                        reasons.append(f"{name}: {problem}")
                        continue
                    if reason := self._unfit(sandboxes.capabilities, accepted):
                        reasons.append(f"{name}: {reason}")
                        continue
                    _log_choice(name, sandboxes.capabilities, reasons)
                    yield sandboxes
                    return
        every = "\n  ".join(dict.fromkeys(reasons))
        raise ConfigError(
            f"no sandbox back end of this machine meets the requirements:\n  {every}\n"
            "fix one of these, or name another provider"
        )

    def _unfit(self, found: Capabilities, accepted: frozenset[Limit]) -> str:
        """Describe the requirement that a candidate does not meet; empty if it meets all."""
        if ISOLATION.index(found.isolation) < ISOLATION.index(self.isolation):
            return f"it isolates by {found.isolation}, and {self.isolation} is required"
        if loose := sorted(LIMITS - found.limits - accepted):
            return f"it does not enforce {', '.join(loose)} here"
        return ""


def _log_choice(name: str, found: Capabilities, reasons: Sequence[str]) -> None:
    limits = ", ".join(sorted(found.limits))
    others = f"; not used: {'; '.join(reasons)}" if reasons else ""
    log.info("sandboxes: %s, isolated by %s, which enforces %s%s", name, found.isolation, limits, others)
