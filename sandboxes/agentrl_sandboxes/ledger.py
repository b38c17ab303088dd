"""A back end that remembers what it made until that is really gone, so that nothing is forgotten when removing it fails."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace

from agentrl.sandbox import Capabilities
from agentrl.types import SandboxSpec
from agentrl_sandboxes.backend import Backend, Handle, Lease, Stream
from agentrl_sandboxes.leases import GRACE_S


class Ledger:
    """The six members of ``backend``, and what they left."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._there: dict[str, Handle] = {}

    @property
    def capabilities(self) -> Capabilities:
        """What was probed."""
        return self._backend.capabilities

    async def prepare(self, image: str) -> None:
        """Make an image usable."""
        await self._backend.prepare(image)

    async def create(self, spec: SandboxSpec, lease: Lease, command: Sequence[str]) -> Handle:
        """Start a sandbox, whose lifetime counts from here: a reset makes another one under the same lease."""
        handle = await self._backend.create(
            spec, replace(lease, deadline=time.time() + spec.lifetime_s + GRACE_S), command
        )
        self._there[handle.id] = handle
        return handle

    async def open_stream(self, handle: Handle) -> Stream:
        """Return the byte pipe to a sandbox."""
        return await self._backend.open_stream(handle)

    async def destroy(self, handle: Handle) -> None:
        """Remove a sandbox, and forget it once that worked."""
        await self._backend.destroy(handle)
        if self._there.get(handle.id) is handle:
            del self._there[handle.id]

    async def reap(self, now: float) -> int:
        """Remove what dead owners left."""
        return await self._backend.reap(now)

    def forgotten(self, held: Collection[str]) -> Sequence[str]:
        """Return the ids of sandboxes that are there, and are not among those that somebody holds."""
        return [name for name in self._there if name not in held]

    async def settle(self, name: str) -> None:
        """Remove a sandbox, by its lease's id, if it is still there."""
        if name in self._there:
            await self.destroy(self._there[name])
