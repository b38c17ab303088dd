"""The contract of back ends: six members. Commands, files, shells, the pool and deadlines are built on them.

A back end starts one program, ``guest.command(...)``, in an isolated place, and carries bytes to and from
that program's standard input and output. This program, the guest, is the sandbox's first process: it serves
requests, reaps orphans, and exits, with everything inside, when its input ends, when its owner's heartbeats
stop, or when its lifetime is over. So a sandbox whose owner was killed ends by itself. The reaper removes
what is left even then (a container at a daemon, a mount, a control group).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agentrl.sandbox import Capabilities
from agentrl.types import SandboxSpec

SANDBOX_UID = 61000
"""Uid of sandboxes that root or a daemon starts, and owner of the files of images that root builds.

No account of the host has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who holds a sandbox, and until when.

    It is stored with the sandbox as labels, so that reapers elsewhere can read it.
    """

    id: str
    """Unique, and valid as a name of a file, container, pod and control group: lower case letters, digits and
    hyphens, at most 40."""
    owner: str
    """The process that holds the sandbox, as ``host/boot id/pid/start time``. If it was a process of this
    host and is dead, the sandbox may be reaped at once."""
    run: str
    deadline: float
    """Unix time after which any process may reap the sandbox."""

    def labels(self) -> Mapping[str, str]:
        """Return the lease as labels, to be stored with the sandbox."""
        return {
            "agentrl.lease": self.id,
            "agentrl.owner": self.owner,
            "agentrl.run": self.run,
            "agentrl.deadline": f"{self.deadline:.0f}",
        }


@dataclass(frozen=True, slots=True)
class Handle:
    """A created sandbox.

    ``id`` is the id of its lease; ``native`` is whatever the back end needs to find the sandbox again.
    """

    id: str
    native: object = field(default=None, compare=False)


class Stream(Protocol):
    """The bytes to and from the guest program."""

    async def send(self, data: bytes) -> None:
        """Send all of ``data``; raise ``ConnectionError`` once the other end is gone."""
        ...

    async def receive(self) -> bytes:
        """Wait for some bytes and return them; ``b""`` once the other end is gone."""
        ...

    async def close(self) -> None:
        """Close both directions. May be called more than once."""
        ...


class Backend(Protocol):
    """One way to create sandboxes.

    Its provider opens it; many sandboxes use it at once, on one event loop.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What this back end really enforces on this machine.

        It is probed, by reading limits back from inside a sandbox, and not taken from settings.
        """
        ...

    async def prepare(self, image: str) -> None:
        """Make an image usable: pull, import, unpack or build it.

        This may be repeated, and other processes may do the same at the same time.

        Raises:
            ImageMissing: the image is not available; the message says why.
        """
        ...

    async def create(self, spec: SandboxSpec, lease: Lease, command: Sequence[str]) -> Handle:
        """Start ``command`` as the first process of a new sandbox, and store the lease with it.

        If this is cancelled or fails, nothing of the sandbox may be left.

        Raises:
            SandboxError: the sandbox did not start.
        """
        ...

    async def open_stream(self, handle: Handle) -> Stream:
        """Return the stream to the first process. Called once for each sandbox."""
        ...

    async def destroy(self, handle: Handle) -> None:
        """Kill everything inside and remove the sandbox; return when nothing is left. May be repeated."""
        ...

    async def reap(self, now: float) -> int:
        """Remove our sandboxes whose owner is dead or whose deadline has passed; return their number.

        It must never touch anything that does not carry a lease.
        """
        ...
