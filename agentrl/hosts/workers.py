"""The host for environments that block: they run in worker processes, with many episodes in each.

An environment that blocks, or is not thread-safe, would stop the event loop that serves every other episode
and the engine. ``Workers`` puts such environments behind the same ``Env`` interface in a few processes. What
can go wrong there, and what happens then:

- *an environment raises*: its episode fails with ``EnvError``, no other one is affected;
- *the shared resource breaks* (``SharedBroken``), *a worker dies*, or *a worker answers nothing for a whole
  deadline while calls wait*: all its episodes fail with ``EnvError`` at once, its process group is killed and
  reaped, and a new worker takes its place;
- *one call passes the deadline in a worker that still answers others*: its episode fails with ``EnvError``,
  and the worker cancels it;
- *a worker cannot start*: ``open_host`` raises. A replacement is tried a few times, with growing pauses, and
  then given up.

An episode goes to the worker with the fewest episodes; one that must play alone gets a new worker, which ends
with it. Episodes are deterministic functions of their task, and every worker runs under the same hash seed,
so a trajectory does not depend on which worker played it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress

from agentrl.env import Env, EnvSpec
from agentrl.errors import AgentRLError, ConfigError, EnvError, boundary
from agentrl.hosts.process import RemoteEnv, WorkerProcess
from agentrl.hosts.wire import watchdog_s
from agentrl.sandbox import SandboxProvider
from agentrl.types import Task

log = logging.getLogger(__name__)

MAX_STARTS = 3
"""Number of times in a row that a replacement may fail to start before its place is given up."""
_SECONDS = re.compile(r"_s(_p\d+)?$")
_GAUGES = ("open", "warm", "waiting")
"""Sandbox metrics that describe the present, so they end with their process. Every other sandbox metric
counts events or durations since the start of the process.
"""


class Workers:
    """Plays episodes in ``num_workers`` processes."""

    def __init__(
        self, spec: EnvSpec, num_workers: int, deadline_s: float, sandboxes: SandboxProvider | None = None
    ) -> None:
        if type(spec).__module__ == "__main__":
            raise ConfigError(
                f"{type(spec).__name__} is defined in the main program, where a worker cannot import it; "
                "move it to a module"
            )
        with boundary(ConfigError, f"pickling {type(spec).__name__} for a worker"):
            self._start = (watchdog_s(deadline_s), pickle.dumps((spec, sandboxes), protocol=5))
        self._num_workers, self._deadline_s = num_workers, deadline_s
        self._live: list[WorkerProcess] = []
        self._given_up: list[AgentRLError] = []
        self._changed = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []
        self._retiring: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self._past: Mapping[str, float] = {}
        """Sandbox metrics of the workers that have ended, combined, without those in ``_GAUGES``."""

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are alive now."""
        return tuple(worker.pid for worker in self._live if not worker.lost.is_set())

    async def __aenter__(self) -> Workers:
        first = [asyncio.get_running_loop().create_future() for _ in range(self._num_workers)]
        self._keepers = [asyncio.create_task(self._keep(started)) for started in first]
        try:
            await asyncio.gather(*first)
        except BaseException:
            await self.__aexit__()
            for started in first:  # marks the other errors as retrieved; the first one is raised
                if started.done() and not started.cancelled():
                    started.exception()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*self._retiring)

    def metrics(self) -> Mapping[str, float]:
        """Return the sandbox metrics of all workers together, prefixed with ``sandbox/``.

        Each worker contributes the metrics that it reported when an episode was last closed. Workers that
        have ended contribute theirs, except those that describe the present (``_GAUGES``).
        """
        counted = combined([self._past, *(worker.counted for worker in self._live)])
        return {f"sandbox/{name}": value for name, value in counted.items()}

    @asynccontextmanager
    async def open(self, task: Task, *, alone: bool = False) -> AsyncIterator[Env]:
        """Open an episode of ``task`` in the worker with the fewest episodes; if ``alone``, in a new one."""
        async with self._new_worker() if alone else nullcontext(await self._choose()) as worker:
            episode = next(self._numbers)
            worker.num_episodes += 1
            try:
                await worker.call("open", episode, task)
                yield RemoteEnv(worker, episode)
            except BaseException:
                with suppress(AgentRLError):  # the first error is the one to report
                    await worker.close_episode(episode)
                raise
            else:
                await worker.close_episode(episode)
            finally:
                worker.num_episodes -= 1

    @asynccontextmanager
    async def _new_worker(self) -> AsyncIterator[WorkerProcess]:
        """Start a worker; leaving the context ends it and adds its sandbox metrics to ``_past``."""
        with boundary(EnvError, "starting a process"):
            worker = WorkerProcess(self._deadline_s)
        try:
            await worker.start(self._start)
            yield worker
        finally:
            counts = {name: value for name, value in worker.counted.items() if name not in _GAUGES}
            self._past = combined([self._past, counts])
            job = asyncio.create_task(worker.retire())
            self._retiring.add(job)
            job.add_done_callback(self._retiring.discard)
            await asyncio.shield(job)

    async def _choose(self) -> WorkerProcess:
        """Return the live worker with the fewest episodes; wait for one if there is none."""
        while not (alive := [worker for worker in self._live if not worker.lost.is_set()]):
            if len(self._given_up) == self._num_workers:
                raise EnvError(f"no worker is left: {self._given_up[-1]}")
            self._changed.clear()
            try:
                async with asyncio.timeout(self._deadline_s):
                    await self._changed.wait()
            except TimeoutError:
                raise EnvError(f"no worker was ready within {self._deadline_s:g} s") from None
        return min(alive, key=lambda worker: worker.num_episodes)

    async def _keep(self, started: asyncio.Future[None]) -> None:
        """Keep one place filled with a live worker, until cancelled or until starting one fails too often."""
        failures, deaths = 0, 0
        while True:
            try:
                async with self._new_worker() as worker:
                    await self._serve(worker, started)
                failures, deaths = 0, 0 if worker.num_answers else deaths + 1
            except AgentRLError as problem:
                failures += 1
                if not started.done():
                    started.set_exception(problem)
                    return
                log.warning("a worker could not be replaced, try %d of %d: %s", failures, MAX_STARTS, problem)
                if failures == MAX_STARTS:
                    self._given_up.append(problem)
                    self._changed.set()
                    return
            await asyncio.sleep(
                0.1 * 4 ** max(failures, min(deaths, MAX_STARTS)) if failures or deaths else 0
            )

    async def _serve(self, worker: WorkerProcess, started: asyncio.Future[None]) -> None:
        """Offer ``worker`` to episodes until it is lost."""
        self._live.append(worker)
        self._changed.set()
        if not started.done():
            started.set_result(None)
        try:
            await worker.lost.wait()
        finally:
            self._live.remove(worker)


def combined(processes: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the sandbox metrics of several processes as one: of counts the sum, of durations the maximum.

    >>> combined([{"opened": 2.0, "start_s": 0.1}, {"opened": 3.0, "start_s": 0.2}])
    {'opened': 5.0, 'start_s': 0.2}
    """
    total: dict[str, float] = {}
    for counted in processes:
        for name, value in counted.items():
            total[name] = (
                max(total.get(name, 0.0), value) if _SECONDS.search(name) else total.get(name, 0.0) + value
            )
    return total
