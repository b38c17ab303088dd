"""A wrapper of a back end that tracks created sandboxes until they are removed, also when a removal fails."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace

from agentrl.sandbox import Capabilities
from agentrl.types import SandboxSpec
from agentrl_sandboxes.backend import Backend, Handle, Lease, Stream
from agentrl_sandboxes.leases import GRACE_S


class TrackingBackend:
    """Passes every call on to ``backend``, and tracks the sandboxes that were created and not yet removed."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._existing: dict[str, Handle] = {}

    @property
    def capabilities(self) -> Capabilities:
        """What the back end really enforces, as it was probed."""
        return self._backend.capabilities

    async def prepare(self, image: str) -> None:
        """Make an image usable."""
        await self._backend.prepare(image)

    async def create(self, spec: SandboxSpec, lease: Lease, command: Sequence[str]) -> Handle:
        """Start a sandbox. Its lifetime starts now: a reset starts another sandbox with the same lease."""
        renewed = replace(lease, deadline=time.time() + spec.lifetime_s + GRACE_S)
        handle = await self._backend.create(spec, renewed, command)
        self._existing[handle.id] = handle
        return handle

    async def open_stream(self, handle: Handle) -> Stream:
        """Return the stream to a sandbox's first process."""
        return await self._backend.open_stream(handle)

    async def destroy(self, handle: Handle) -> None:
        """Remove a sandbox, and forget it once it is removed."""
        await self._backend.destroy(handle)
        if self._existing.get(handle.id) is handle:
            del self._existing[handle.id]

    async def reap(self, now: float) -> int:
        """Remove sandboxes of dead owners or past their deadline; return their number."""
        return await self._backend.reap(now)

    def orphans(self, held: Collection[str]) -> Sequence[str]:
        """Return the lease ids of the sandboxes that exist and are not in ``held``."""
        return [name for name in self._existing if name not in held]

    async def remove(self, name: str) -> None:
        """Remove a sandbox by its lease's id, if it still exists."""
        if name in self._existing:
            await self.destroy(self._existing[name])
