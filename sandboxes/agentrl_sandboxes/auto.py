"""Whichever back end this machine has: the first that can do what is asked. Never one that can do less, silently."""

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
"""Weakest first."""
LIMITS: frozenset[Limit] = frozenset({"cpu", "memory", "processes", "disk", "files", "lifetime"})


@dataclass(frozen=True, kw_only=True)
class Auto(SandboxProvider):
    """The first of its candidates that works here, isolates as asked, and enforces every limit. It says which, and why not the others.

    What a candidate cannot do is never made up for by asking for less: where none is good enough, every reason is in the error.
    """

    isolation: Isolation = "namespaces"
    """The weakest that will do: ``container`` leaves ``local`` out, ``kernel`` takes gVisor or better."""
    unenforced: frozenset[Limit] = frozenset()
    """Limits whose lack is accepted. A candidate that enforces all is taken before one that needs this."""
    candidates: tuple[SandboxProvider, ...] = ()
    """What to try, in this order; unless given ``Local`` and then ``Docker``, with this pool."""
    pool: PoolOptions = field(default_factory=PoolOptions)

    def tried(self) -> Sequence[SandboxProvider]:
        """Return the candidates, in the order in which they are tried."""
        from agentrl_sandboxes.docker import (
            Docker,
        )  # imported when it is asked for: named candidates need neither
        from agentrl_sandboxes.local import Local

        ours = (
            Local(unenforced=self.unenforced, pool=self.pool),
            Docker(unenforced=self.unenforced, pool=self.pool),
        )
        return self.candidates or ours

    @asynccontextmanager
    async def serve(self, *, run: str = "") -> AsyncIterator[Sandboxes]:
        """Serve the first candidate that will do.

        Raises:
            ConfigError: none does; the message has every reason.
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
                    if lack := self._lack(sandboxes.capabilities, accepted):
                        reasons.append(f"{name}: {lack}")
                        continue
                    _say(name, sandboxes.capabilities, reasons)
                    yield sandboxes
                    return
        every = "\n  ".join(dict.fromkeys(reasons))
        raise ConfigError(
            f"no sandbox back end of this machine will do:\n  {every}\nmend one of these, or name another provider"
        )

    def _lack(self, found: Capabilities, accepted: frozenset[Limit]) -> str:
        """Return what a candidate cannot do; nothing where it will do."""
        if ISOLATION.index(found.isolation) < ISOLATION.index(self.isolation):
            return f"it isolates by {found.isolation}, and {self.isolation} is asked for"
        if loose := sorted(LIMITS - found.limits - accepted):
            return f"it does not enforce {', '.join(loose)} here"
        return ""


def _say(name: str, found: Capabilities, reasons: Sequence[str]) -> None:
    others = f"; not taken: {'; '.join(reasons)}" if reasons else ""
    log.info(
        "sandboxes: %s, isolated by %s, which enforces %s%s",
        name,
        found.isolation,
        ", ".join(sorted(found.limits)),
        others,
    )
