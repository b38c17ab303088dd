"""A back end in service: implements ``agentrl.sandbox.Sandboxes`` over the six members of a back end.

To open a sandbox, the service checks the spec, waits in the pool's queue for a warm sandbox or a slot, and
starts one if necessary. Starts and closes run in tasks of the service, not of the caller: if an episode is
cancelled twice while its sandbox starts or closes, the service still finishes the job, and waits for it
before the service itself ends. Sandboxes that could not be closed are tried again on a timer, which also runs
the reaper.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from agentrl.errors import AgentRLError, ImageMissing, SandboxError
from agentrl.sandbox import Capabilities, Limit, Sandbox, Sandboxes
from agentrl.types import SandboxSpec
from agentrl_sandboxes.backend import Backend
from agentrl_sandboxes.metrics import ServiceMetrics
from agentrl_sandboxes.pool import Pool, PoolOptions
from agentrl_sandboxes.session import Session
from agentrl_sandboxes.specs import check_spec
from agentrl_sandboxes.starting import ManagedSandbox, Start, Starter
from agentrl_sandboxes.tasks import to_the_end, within
from agentrl_sandboxes.tracking import TrackingBackend

log = logging.getLogger(__name__)
T = TypeVar("T")

CLOSE_S = 60.0
"""Maximum duration of one attempt to close a sandbox, or of one search for sandboxes of dead owners."""
WARM_SHARE = 0.1
"""Share of its lifetime after which an unused warm sandbox is replaced."""
STOP_S = 2 * CLOSE_S
"""Maximum wait, when the service stops, for starts that were cancelled and for closes in progress."""
CLOSE_ATTEMPTS = 2
"""Number of attempts, when the service stops, to close each sandbox that is left."""


@asynccontextmanager
async def serving(
    backend: Backend,
    *,
    run: str = "",
    options: PoolOptions | None = None,
    unenforced: Collection[Limit] = (),
    start: Start = Session.start,
) -> AsyncIterator[Sandboxes]:
    """Serve a back end: remove sandboxes of dead owners, open sandboxes, and close them all in the end.

    ``unenforced`` are the limits that need not be enforced. ``start`` creates a sandbox; by default it is a
    session over the back end's stream.
    """
    service = Service(backend, run=run, options=options or PoolOptions(), unenforced=unenforced, start=start)
    await service.start()
    try:
        yield service
    finally:
        await to_the_end(service.stop())


class Service:
    """The ``Sandboxes`` that ``serving`` yields."""

    def __init__(
        self, backend: Backend, *, run: str, options: PoolOptions, unenforced: Collection[Limit], start: Start
    ) -> None:
        self._backend, self._options, self._unenforced = (
            TrackingBackend(backend),
            options,
            frozenset(unenforced),
        )
        self._metrics = ServiceMetrics()
        self._starter = Starter(self._backend, start, run=run, options=options, metrics=self._metrics)
        self._pool: Pool[ManagedSandbox] = Pool(options.num_open, self._close)
        self._jobs: set[asyncio.Task[Any]] = set()  # Any: their results differ, and are not used here
        self._held: dict[ManagedSandbox, str] = {}
        """Sandboxes that are open, warm, being closed or not closed yet, with their lease's id. Each has a
        slot."""
        self._ending: set[ManagedSandbox] = set()
        self._unclosed: set[ManagedSandbox] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._warming: Counter[SandboxSpec] = Counter()
        self._used: dict[SandboxSpec, float] = {}
        self._stopping = False

    async def start(self) -> None:
        """Remove sandboxes of dead owners, now and on a timer."""
        await self._reap()
        self._job(self._tick())

    async def stop(self) -> None:
        """Close all sandboxes: starting, open and warm ones, and those that could not be closed before."""
        self._stopping = True
        for job in self._jobs:
            if job not in self._closing:
                job.cancel()
        until = time.monotonic() + STOP_S
        while self._jobs and (left := until - time.monotonic()) > 0:
            await asyncio.wait(self._jobs, timeout=left)
        for _ in range(CLOSE_ATTEMPTS):
            await asyncio.gather(*(self._end(sandbox) for sandbox in list(self._held)))
            await self._remove_orphans()
        if left_over := self._backend.orphans(()):
            log.error(
                "%d sandboxes could not be closed; the reaper of a later run removes what is left of them",
                len(left_over),
            )

    @property
    def capabilities(self) -> Capabilities:
        """What the back end really enforces, as it was probed when the back end was opened."""
        return self._backend.capabilities

    async def missing(self, images: Sequence[str]) -> Mapping[str, str]:
        """Prepare images; return the names of those that are not available, with the reasons."""
        names = list(dict.fromkeys(images))
        found = await asyncio.gather(*map(self._starter.prepare, names), return_exceptions=True)
        for problem in found:
            if problem is not None and not isinstance(problem, ImageMissing):
                raise problem
        return {
            image: str(problem) for image, problem in zip(names, found, strict=True) if problem is not None
        }

    def metrics(self) -> Mapping[str, float]:
        """Return the values that ``agentrl_sandboxes.metrics.METRICS`` explains, by name."""
        num_warm = self._pool.num_warm()
        return self._metrics.report(
            quarantined=self._starter.quarantine.num_ever,
            num_open=len(self._held) - num_warm,
            num_warm=num_warm,
            num_waiting=self._pool.num_waiting,
        )

    @asynccontextmanager
    async def open(self, spec: SandboxSpec) -> AsyncIterator[Sandbox]:
        """Open a sandbox: a warm one, or a new one."""
        check_spec(spec, self.capabilities, unenforced=self._unenforced)
        if self._stopping:
            raise SandboxError("the sandbox provider was closed")
        sandbox = await self._handed_over(self._job(self._get(spec)))
        try:
            yield sandbox
        finally:
            await asyncio.shield(self._close(sandbox))

    async def _handed_over(self, job: asyncio.Task[ManagedSandbox]) -> ManagedSandbox:
        """Return the sandbox that a job opens; if the caller is cancelled meanwhile, close that sandbox."""

        def close_late(late: asyncio.Task[ManagedSandbox]) -> None:
            if not late.cancelled() and late.exception() is None:
                self._close(late.result())

        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            if job.cancelled():  # by the service, which is being stopped, and not by the caller
                raise SandboxError("the sandbox provider was closed while the sandbox was started") from None
            job.cancel()
            job.add_done_callback(close_late)
            raise

    async def _get(self, spec: SandboxSpec) -> ManagedSandbox:
        """Return a warm sandbox of a spec, or start one."""
        self._used[spec] = began = time.monotonic()
        try:
            self._starter.quarantine.check(spec.image)
            while True:
                sandbox = await self._pool.take(spec, deadline_s=self._options.wait_deadline_s)
                if sandbox is None or sandbox.alive:
                    break
                self._close(sandbox)
            self._metrics.wait_times.append(time.monotonic() - began)
            if sandbox is None:
                sandbox = await self._start_in_slot(spec, attempts=self._options.attempts)
            else:
                self._metrics.counts["from_pool"] += 1
        except AgentRLError:
            self._metrics.counts["failed"] += 1
            raise
        self._metrics.counts["opened"] += 1
        self._refill(spec)
        return sandbox

    async def _start_in_slot(self, spec: SandboxSpec, *, attempts: int) -> ManagedSandbox:
        """Start a sandbox in a slot that was already taken for it; if that fails, give the slot back."""
        try:
            sandbox, lease_id = await self._starter.start(spec, attempts=attempts)
        except BaseException:
            self._pool.give_back()
            raise
        self._held[sandbox] = lease_id
        return sandbox

    def _refill(self, spec: SandboxSpec) -> None:
        """Start the missing warm sandboxes of a spec, as far as there are slots that no request waits for."""
        while (
            not self._stopping
            and self._pool.num_warm(spec) + self._warming[spec] < self._options.num_warm
            and self._pool.take_spare()
        ):
            self._warming[spec] += 1
            self._job(self._warm(spec))

    async def _warm(self, spec: SandboxSpec) -> None:
        try:
            self._pool.put(spec, await self._start_in_slot(spec, attempts=1))
        except AgentRLError as problem:
            log.info("a warm sandbox of image %r was not started: %s", spec.image, problem)
        finally:
            self._warming[spec] -= 1

    def _job(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine in a task of the service."""

        def done(job: asyncio.Task[T]) -> None:
            self._jobs.discard(job)
            if not job.cancelled():
                job.exception()  # mark it as retrieved: perhaps no other task awaits this job

        job = asyncio.create_task(work)
        self._jobs.add(job)
        job.add_done_callback(done)
        return job

    def _close(self, sandbox: ManagedSandbox) -> asyncio.Task[None]:
        """Close a sandbox in a task of the service, which is never cancelled."""
        job = self._job(self._end(sandbox))
        self._closing.add(job)
        job.add_done_callback(self._closing.discard)
        return job

    async def _end(self, sandbox: ManagedSandbox) -> None:
        """Close a sandbox and give its slot back.

        If closing fails, the sandbox keeps its slot, and closing it is tried again later.
        """
        if sandbox in self._ending or sandbox not in self._held:
            return
        self._ending.add(sandbox)
        try:
            async with within(CLOSE_S, f"closing a sandbox of image {sandbox.spec.image!r}"):
                await sandbox.close()
                await self._backend.remove(self._held[sandbox])  # in case an earlier close gave up
        except SandboxError as problem:
            self._not_closed(problem)
            self._unclosed.add(sandbox)
        else:
            self._unclosed.discard(sandbox)
            del self._held[sandbox]
            self._pool.give_back()
        finally:
            self._ending.discard(sandbox)

    async def _reap(self) -> None:
        """Remove sandboxes of dead owners."""
        try:
            async with within(CLOSE_S, "removing sandboxes of dead owners"):
                self._metrics.counts["reaped"] += await self._backend.reap(time.time())
        except SandboxError as problem:
            log.warning("%s", problem)
            self._metrics.counts["reap_failed"] += 1

    async def _remove_orphans(self) -> None:
        """Remove sandboxes that nothing holds: their start failed, and so did their removal after that."""
        for name in self._backend.orphans({*self._held.values(), *self._starter.lease_ids}):
            try:
                async with within(CLOSE_S, f"removing sandbox {name}, which did not start"):
                    await self._backend.remove(name)
            except SandboxError as problem:
                self._not_closed(problem)

    def _not_closed(self, problem: SandboxError) -> None:
        """Count and log a failed attempt to close a sandbox."""
        log.warning("%s; it is tried again", problem)
        self._metrics.counts["close_failed"] += 1

    async def _tick(self) -> None:
        """Regularly remove sandboxes of dead owners, close unclosed and idle ones, and start warm ones."""
        while True:
            await asyncio.sleep(self._options.reap_every_s)
            await self._reap()
            await self._remove_orphans()
            idle = self._pool.idle(lambda spec: min(self._options.idle_s, WARM_SHARE * spec.lifetime_s))
            for sandbox in (*self._unclosed, *idle):
                self._close(sandbox)
            now = time.monotonic()
            self._used = {
                spec: used for spec, used in self._used.items() if now - used < self._options.idle_s
            }
            for spec in self._used:
                self._refill(spec)
