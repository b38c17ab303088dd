"""Starting sandboxes: prepares images once, and repeats failed starts unless the image is in quarantine."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from agentrl.errors import ImageMissing, SandboxError
from agentrl.sandbox import Sandbox
from agentrl.types import SandboxSpec
from agentrl_sandboxes.backend import Backend, Lease
from agentrl_sandboxes.leases import new_lease
from agentrl_sandboxes.metrics import ServiceMetrics
from agentrl_sandboxes.pool import PoolOptions
from agentrl_sandboxes.quarantine import Quarantine
from agentrl_sandboxes.tasks import within

log = logging.getLogger(__name__)

PREPARE_S = 3600.0
"""Maximum time in which an image is pulled or built."""


class ManagedSandbox(Sandbox, Protocol):
    """A sandbox that a service can also check and close."""

    @property
    def alive(self) -> bool:
        """Whether the connection to the sandbox's guest is still open, as far as is known."""
        ...

    async def close(self) -> None:
        """Destroy the sandbox. If that fails, it is called again later."""
        ...


Start = Callable[[Backend, SandboxSpec, Lease], Awaitable[ManagedSandbox]]
"""Starts a sandbox of a back end. If it is cancelled or fails, it must leave nothing."""


class Starter:
    """Starts sandboxes of one back end."""

    def __init__(
        self, backend: Backend, start: Start, *, run: str, options: PoolOptions, metrics: ServiceMetrics
    ) -> None:
        self._backend, self._start, self._run, self._options = backend, start, run, options
        self._metrics = metrics
        self._jitter = random.Random(f"{run}/back-off")
        self._starting = asyncio.Semaphore(options.num_starting)
        self._preparing: dict[str, asyncio.Lock] = {}
        self._prepared: set[str] = set()
        self.quarantine = Quarantine(after=options.quarantine_after, refuse_s=options.quarantine_s)
        self.lease_ids: set[str] = set()
        """Lease ids of the sandboxes that are being started now."""

    async def start(self, spec: SandboxSpec, *, attempts: int) -> tuple[ManagedSandbox, str]:
        """Start a sandbox, in up to ``attempts`` attempts; return it and its lease's id.

        Raises:
            ImageMissing: the image is not available.
            SandboxError: all attempts failed, or the image is in quarantine.
        """
        attempt = 1
        while True:
            self.quarantine.check(spec.image)
            try:
                return await self._attempt(spec)
            except SandboxError as problem:
                if attempt == attempts:
                    raise SandboxError(
                        f"no sandbox of image {spec.image!r} could be started in {attempts} attempts; "
                        f"the last: {problem}"
                    ) from problem
                what = f"starting a sandbox of image {spec.image!r}, attempt {attempt} of {attempts}"
                log.info("%s: %s", what, problem)
            self._metrics.counts["retried"] += 1
            pause_s = self._options.backoff_s * 2 ** (attempt - 1)
            await asyncio.sleep(pause_s * self._jitter.uniform(0.5, 1.5))
            attempt += 1

    async def _attempt(self, spec: SandboxSpec) -> tuple[ManagedSandbox, str]:
        """Start a sandbox once, and report the outcome to the quarantine."""
        lease = new_lease(run=self._run, lifetime_s=spec.lifetime_s)
        self.lease_ids.add(lease.id)
        try:
            await self.prepare(spec.image)
            async with (
                self._starting,
                within(self._options.start_deadline_s, f"starting a sandbox of image {spec.image!r}"),
            ):
                began = time.monotonic()
                sandbox = await self._start(self._backend, spec, lease)
        except (SandboxError, ImageMissing) as problem:
            self.quarantine.failed(spec.image, problem)
            self._prepared.discard(spec.image)
            raise
        finally:
            self.lease_ids.discard(lease.id)
        self.quarantine.started(spec.image)
        self._metrics.start_times.append(time.monotonic() - began)
        return sandbox, lease.id

    async def prepare(self, image: str) -> None:
        """Have the back end make an image usable, unless it has already done so."""
        if image and not self._backend.capabilities.images:
            raise ImageMissing(f"this back end has only its own root file system, and no image {image!r}")
        async with self._preparing.setdefault(image, asyncio.Lock()):
            if image not in self._prepared:
                async with within(PREPARE_S, f"preparing image {image!r}"):
                    await self._backend.prepare(image)
                self._prepared.add(image)
