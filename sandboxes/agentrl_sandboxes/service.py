"""A back end in service: the one implementation of ``agentrl.sandbox.Sandboxes``, over the six members that a back end writes.

Opening a sandbox is: check the spec, stand in line for a warm one or a slot, start it if need be. Starts and closes are tasks of the
service and not of the caller: an episode that is cancelled twice while its sandbox starts or closes leaves nothing, for the service
finishes the job and waits for it before it is left itself. What could not be closed is tried again on a timer, together with the reaper.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from agentrl.errors import AgentRLError, ImageMissing, SandboxError, boundary
from agentrl.sandbox import Capabilities, Limit, Sandbox, Sandboxes
from agentrl.types import SandboxSpec
from agentrl_sandboxes.backend import Backend, Lease
from agentrl_sandboxes.leases import new_lease
from agentrl_sandboxes.ledger import Ledger
from agentrl_sandboxes.pool import Pool, PoolOptions
from agentrl_sandboxes.quarantine import Quarantine
from agentrl_sandboxes.session import Session
from agentrl_sandboxes.specs import check_spec

log = logging.getLogger(__name__)
T = TypeVar("T")

PREPARE_S = 3600.0
"""The longest that an image is pulled or built."""
CLOSE_S = 60.0
"""The longest that one attempt to close a sandbox, or one look for what the dead left, may take."""
WARM_SHARE = 0.1
"""A warm sandbox that used up this share of its lifetime is replaced."""
STOP_S = 2 * CLOSE_S
"""The longest that starts which are cancelled, and closes that are under way, are waited for."""
CLOSE_ATTEMPTS = 2
"""How often everything that is left is closed, when the service is."""
NUM_TIMES = 512
"""Latest starts and waits that the quantiles are of."""

COUNTED = ("opened", "from_pool", "failed", "retried", "reaped", "close_failed", "reap_failed")
METRICS = {
    "opened": "sandboxes that episodes got",
    "from_pool": "of these, warm ones",
    "failed": "sandboxes that episodes asked for and did not get",
    "retried": "starts that failed and were tried again",
    "reaped": "sandboxes of dead owners that were removed",
    "close_failed": "attempts to close a sandbox that failed; each is tried again",
    "reap_failed": "looks for what dead owners left that failed",
    "quarantined": "times that an image was put in quarantine",
    "open": "sandboxes that are open or being closed now",
    "warm": "sandboxes that are kept warm now",
    "waiting": "episodes that wait for a slot now",
    "start_s": "seconds that a start takes, median of the latest",
    "start_s_p95": "the same, 95th percentile",
    "wait_s": "seconds that an episode waits for a warm sandbox or a slot, median of the latest",
    "wait_s_p95": "the same, 95th percentile",
}


class Started(Sandbox, Protocol):
    """A sandbox as the service holds it."""

    @property
    def alive(self) -> bool:
        """Whether it was still there when it was last heard of."""
        ...

    async def close(self) -> None:
        """Destroy it; called again where it failed."""
        ...


Start = Callable[[Backend, SandboxSpec, Lease], Awaitable[Started]]
"""Make a sandbox of a back end; cancelled or failed, it leaves nothing."""


@asynccontextmanager
async def serving(
    backend: Backend,
    *,
    run: str = "",
    options: PoolOptions | None = None,
    unenforced: Collection[Limit] = (),
    start: Start = Session.start,
) -> AsyncIterator[Sandboxes]:
    """Serve a back end: remove what dead owners left, then open sandboxes of it until the context is left; then close them all.

    ``unenforced`` are the limits whose lack the user accepts. ``start`` makes one of them: the session
    over the back end's streams.
    """
    service = Service(backend, run=run, options=options or PoolOptions(), unenforced=unenforced, start=start)
    await service.start()
    try:
        yield service
    finally:
        await _through(service.stop())


class Service:
    """What ``serving`` yields."""

    def __init__(
        self, backend: Backend, *, run: str, options: PoolOptions, unenforced: Collection[Limit], start: Start
    ) -> None:
        self._backend, self._run, self._options, self._unenforced, self._make = (
            Ledger(backend),
            run,
            options,
            frozenset(unenforced),
            start,
        )
        self._pool: Pool[Started] = Pool(options.num_open, self._close)
        self._quarantine = Quarantine(after=options.quarantine_after, refuse_s=options.quarantine_s)
        self._starting = asyncio.Semaphore(options.num_starting)
        self._jitter = random.Random(f"{run}/back-off")
        self._jobs: set[asyncio.Task[Any]] = set()  # their results differ, and are not used here
        self._held: dict[
            Started, str
        ] = {}  # open, warm, being closed, or not closed yet: each has a slot; with its lease's id
        self._starting_ids: set[str] = set()
        self._ending: set[Started] = set()
        self._unclosed: set[Started] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._warming: Counter[SandboxSpec] = Counter()
        self._used: dict[SandboxSpec, float] = {}
        self._preparing: dict[str, asyncio.Lock] = {}
        self._prepared: set[str] = set()
        self._count: Counter[str] = Counter()
        self._starts: deque[float] = deque(maxlen=NUM_TIMES)
        self._waits: deque[float] = deque(maxlen=NUM_TIMES)
        self._leaving = False

    async def start(self) -> None:
        """Remove what dead owners left, and keep doing so."""
        await self._reap()
        self._job(self._tick())

    async def stop(self) -> None:
        """Close everything: what is starting, open, warm, and what could not be closed before."""
        self._leaving = True
        for job in self._jobs:
            if job not in self._closing:
                job.cancel()
        until = time.monotonic() + STOP_S
        while self._jobs and (left := until - time.monotonic()) > 0:
            await asyncio.wait(self._jobs, timeout=left)
        for _ in range(CLOSE_ATTEMPTS):
            await asyncio.gather(*(self._end(sandbox) for sandbox in list(self._held)))
            await self._settle()
        if forgotten := self._backend.forgotten(()):
            log.error(
                "%d sandboxes could not be closed; the reaper of a later run removes what is left of them",
                len(forgotten),
            )

    @property
    def capabilities(self) -> Capabilities:
        """What was probed at the start."""
        return self._backend.capabilities

    async def missing(self, images: Sequence[str]) -> Mapping[str, str]:
        """Return the images that cannot be had, each with the reason, after preparing the others."""
        names = list(dict.fromkeys(images))
        found = await asyncio.gather(*(self._prepare(image) for image in names), return_exceptions=True)
        for problem in found:
            if problem is not None and not isinstance(problem, ImageMissing):
                raise problem
        return {
            image: str(problem) for image, problem in zip(names, found, strict=True) if problem is not None
        }

    def metrics(self) -> Mapping[str, float]:
        """Return what ``METRICS`` explains, by name."""
        return {
            **{name: float(self._count[name]) for name in COUNTED},
            "quarantined": float(self._quarantine.num_ever),
            "open": float(len(self._held) - self._pool.num_warm()),
            "warm": float(self._pool.num_warm()),
            "waiting": float(self._pool.num_waiting),
            "start_s": _quantile(self._starts, 0.5),
            "start_s_p95": _quantile(self._starts, 0.95),
            "wait_s": _quantile(self._waits, 0.5),
            "wait_s_p95": _quantile(self._waits, 0.95),
        }

    @asynccontextmanager
    async def open(self, spec: SandboxSpec) -> AsyncIterator[Sandbox]:
        """Open a sandbox: a warm one, or started now."""
        check_spec(spec, self.capabilities, unenforced=self._unenforced)
        if self._leaving:
            raise SandboxError("the sandbox provider was closed")
        sandbox = await self._handed_over(self._job(self._get(spec)))
        try:
            yield sandbox
        finally:
            await asyncio.shield(self._close(sandbox))

    async def _handed_over(self, job: asyncio.Task[Started]) -> Started:
        """Return what a job of the service makes; a caller that is cancelled meanwhile leaves nothing."""
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            if job.cancelled():  # by the service, which is being left, and not by the caller
                raise SandboxError("the sandbox provider was closed while the sandbox was started") from None
            job.cancel()
            job.add_done_callback(
                lambda late: (
                    None if late.cancelled() or late.exception() else self._close(late.result()) and None
                )
            )
            raise

    async def _get(self, spec: SandboxSpec) -> Started:
        """Return a sandbox of a spec, warm or started now."""
        self._used[spec] = began = time.monotonic()
        try:
            self._quarantine.check(spec.image)
            while (
                sandbox := await self._pool.take(spec, deadline_s=self._options.wait_deadline_s)
            ) and not sandbox.alive:
                self._close(sandbox)
            self._waits.append(time.monotonic() - began)
            if sandbox is None:
                sandbox = await self._started(spec, attempts=self._options.attempts)
            else:
                self._count["from_pool"] += 1
        except AgentRLError:
            self._count["failed"] += 1
            raise
        self._count["opened"] += 1
        self._refill(spec)
        return sandbox

    async def _started(self, spec: SandboxSpec, *, attempts: int) -> Started:
        """Start a sandbox in a slot that was taken for it; without success the slot is given back."""
        try:
            for attempt in range(1, attempts + 1):
                self._quarantine.check(spec.image)
                try:
                    sandbox = await self._attempt(spec)
                except SandboxError as problem:
                    if attempt == attempts:
                        raise SandboxError(
                            f"no sandbox of image {spec.image!r} could be started in {attempts} attempts; the last: {problem}"
                        ) from problem
                    log.info(
                        "starting a sandbox of image %r, attempt %d of %d: %s",
                        spec.image,
                        attempt,
                        attempts,
                        problem,
                    )
                    self._count["retried"] += 1
                    await asyncio.sleep(
                        self._options.backoff_s * 2 ** (attempt - 1) * self._jitter.uniform(0.5, 1.5)
                    )
                else:
                    return sandbox
            raise AssertionError("a start is tried at least once")
        except BaseException:
            self._pool.give_back()
            raise

    async def _attempt(self, spec: SandboxSpec) -> Started:
        """Start a sandbox once, and tell the quarantine how it went."""
        began = time.monotonic()
        lease = new_lease(run=self._run, lifetime_s=spec.lifetime_s)
        self._starting_ids.add(lease.id)
        try:
            await self._prepare(spec.image)
            async with (
                self._starting,
                _within(self._options.start_deadline_s, f"starting a sandbox of image {spec.image!r}"),
            ):
                began = time.monotonic()
                sandbox = await self._make(self._backend, spec, lease)
            self._held[sandbox] = lease.id
        except (SandboxError, ImageMissing) as problem:
            self._quarantine.failed(spec.image, problem)
            self._prepared.discard(spec.image)
            raise
        finally:
            self._starting_ids.discard(lease.id)
        self._quarantine.started(spec.image)
        self._starts.append(time.monotonic() - began)
        return sandbox

    async def _prepare(self, image: str) -> None:
        """Have the back end make an image usable, once."""
        if image and not self.capabilities.images:
            raise ImageMissing(f"this back end has only its own root file system, and no image {image!r}")
        async with self._preparing.setdefault(image, asyncio.Lock()):
            if image not in self._prepared:
                async with _within(PREPARE_S, f"preparing image {image!r}"):
                    await self._backend.prepare(image)
                self._prepared.add(image)

    def _refill(self, spec: SandboxSpec) -> None:
        """Start warm sandboxes of a spec in slots that nobody waits for."""
        while (
            not self._leaving
            and self._pool.num_warm(spec) + self._warming[spec] < self._options.num_warm
            and self._pool.take_spare()
        ):
            self._warming[spec] += 1
            self._job(self._warm(spec))

    async def _warm(self, spec: SandboxSpec) -> None:
        try:
            self._pool.put(spec, await self._started(spec, attempts=1))
        except AgentRLError as problem:
            log.info("a warm sandbox of image %r was not started: %s", spec.image, problem)
        finally:
            self._warming[spec] -= 1

    def _job(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do something in a task of the service."""
        job = asyncio.create_task(work)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        job.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # whoever waits for it gets its error; nobody may
        return job

    def _close(self, sandbox: Started) -> asyncio.Task[None]:
        """Close a sandbox in a task of the service, which nobody cancels."""
        job = self._job(self._end(sandbox))
        self._closing.add(job)
        job.add_done_callback(self._closing.discard)
        return job

    async def _end(self, sandbox: Started) -> None:
        """Close a sandbox and give its slot back; where that fails, it is kept, and tried again."""
        if sandbox in self._ending or sandbox not in self._held:
            return
        self._ending.add(sandbox)
        try:
            async with _within(CLOSE_S, f"closing a sandbox of image {sandbox.spec.image!r}"):
                await sandbox.close()
                await self._backend.settle(self._held[sandbox])  # where an earlier close gave up
        except SandboxError as problem:
            log.warning("%s; it is tried again", problem)
            self._count["close_failed"] += 1
            self._unclosed.add(sandbox)
        else:
            self._unclosed.discard(sandbox)
            del self._held[sandbox]
            self._pool.give_back()
        finally:
            self._ending.discard(sandbox)

    async def _reap(self) -> None:
        """Remove what dead owners left."""
        try:
            async with _within(CLOSE_S, "looking for what dead owners left"):
                self._count["reaped"] += await self._backend.reap(time.time())
        except SandboxError as problem:
            log.warning("%s", problem)
            self._count["reap_failed"] += 1

    async def _settle(self) -> None:
        """Remove sandboxes whose start failed, and whose removal failed then."""
        for name in self._backend.forgotten({*self._held.values(), *self._starting_ids}):
            try:
                async with _within(CLOSE_S, f"removing sandbox {name}, which did not start"):
                    await self._backend.settle(name)
            except SandboxError as problem:
                log.warning("%s; it is tried again", problem)
                self._count["close_failed"] += 1

    async def _tick(self) -> None:
        """Reap, close what could not be closed or was warm for too long, and keep warm what is in use."""
        while True:
            await asyncio.sleep(self._options.reap_every_s)
            await self._reap()
            await self._settle()
            for sandbox in (
                *self._unclosed,
                *self._pool.idle(lambda spec: min(self._options.idle_s, WARM_SHARE * spec.lifetime_s)),
            ):
                self._close(sandbox)
            now = time.monotonic()
            self._used = {
                spec: used for spec, used in self._used.items() if now - used < self._options.idle_s
            }
            for spec in self._used:
                self._refill(spec)


@asynccontextmanager
async def _within(deadline_s: float, what: str) -> AsyncIterator[None]:
    """Give a block a deadline; whatever escapes it is a ``SandboxError`` that says what was going on."""
    try:
        async with asyncio.timeout(deadline_s):
            with boundary(SandboxError, what):
                yield
    except TimeoutError as late:
        raise SandboxError(f"{what} took longer than {deadline_s:g} s") from late


async def _through(work: Coroutine[Any, Any, None]) -> None:
    """Do something to its end, however often this task is cancelled meanwhile; then be cancelled."""
    job, cancelled = asyncio.create_task(work), False
    while not job.done():
        try:
            await asyncio.wait({job})
        except asyncio.CancelledError:
            cancelled = True
    job.result()
    if cancelled:
        raise asyncio.CancelledError


def _quantile(times: Collection[float], share: float) -> float:
    """Return the time that a share of ``times`` does not exceed; zero when there are none.

    >>> _quantile([3.0, 1.0, 2.0], 0.5), _quantile([], 0.5)
    (2.0, 0.0)
    """
    return sorted(times)[math.ceil(share * len(times)) - 1] if times else 0.0
