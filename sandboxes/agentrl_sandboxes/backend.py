"""What a new back end writes: six members. All else (commands, files, shells, pool, leases, deadlines) is shared code above it.

A back end starts one program in a closed place, ``guest.command(...)``, and carries bytes to and from that program's standard input and
output. The guest program is the sandbox's first process: it answers requests, reaps orphans, and ends, with everything inside, when its
input ends, when its owner's heartbeat stops, or when its lifetime is over. So a sandbox whose owner was killed ends itself; the reaper
removes what even that left (a record at a daemon, a mount, a control group).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agentrl.sandbox import Capabilities
from agentrl.types import SandboxSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who holds a sandbox. Written to the provider as labels, so that a reaper elsewhere can read it."""

    id: str
    """Unique; safe in file, container, pod and control-group names (lower case letters, digits, hyphens; at most 40)."""
    owner: str
    """The process that holds it: ``host/boot id/pid/start time``. Dead on this host means that its leases may be reaped at once."""
    run: str
    deadline: float
    """Unix time after which anybody may reap it."""

    def labels(self) -> Mapping[str, str]:
        """Return the lease as provider labels."""
        return {
            "agentrl.lease": self.id,
            "agentrl.owner": self.owner,
            "agentrl.run": self.run,
            "agentrl.deadline": f"{self.deadline:.0f}",
        }


@dataclass(frozen=True, slots=True)
class Handle:
    """A created sandbox, by its lease's id; ``native`` is whatever the back end needs to find it again."""

    id: str
    native: object = field(default=None, compare=False)


class Stream(Protocol):
    """The bytes to and from the guest program."""

    async def send(self, data: bytes) -> None:
        """Send all of ``data``; raises ``ConnectionError`` once the other end is gone."""
        ...

    async def receive(self) -> bytes:
        """Return some bytes as soon as there are any; ``b""`` once the other end is gone."""
        ...

    async def close(self) -> None:
        """Close both directions. Closing twice is fine."""
        ...


class Backend(Protocol):
    """One way to make sandboxes. Opened by its provider, used by many sandboxes at once, on one event loop."""

    @property
    def capabilities(self) -> Capabilities:
        """What is really enforced here: probed by reading limits back inside, not taken from flags."""
        ...

    async def prepare(self, image: str) -> None:
        """Make an image usable: pull, import, unpack or build it. Idempotent, and locked between processes.

        Raises:
            ImageMissing: it cannot be had; the message says why.
        """
        ...

    async def create(self, spec: SandboxSpec, lease: Lease, command: Sequence[str]) -> Handle:
        """Start ``command`` as the first process of a new sandbox, labelled with the lease. Cancelled or failed, it leaves nothing.

        Raises:
            SandboxError: it did not start.
        """
        ...

    async def open_stream(self, handle: Handle) -> Stream:
        """Return the byte pipe to that first process. Called once for each sandbox."""
        ...

    async def destroy(self, handle: Handle) -> None:
        """Kill everything inside and remove the sandbox. Idempotent; returns when nothing is left."""
        ...

    async def reap(self, now: float) -> int:
        """Remove sandboxes of ours whose owner is dead or whose deadline passed; return how many. Never touches others' things."""
        ...
