"""Worker processes, with many episodes each, for environments that block.

An environment that blocks, or is not thread-safe, would stop the loop that serves every other episode and the engine. ``Workers`` puts
such environments behind the same ``Env`` interface in a few processes. What can go wrong there, and what happens then:

- *an environment raises*: ``EnvError`` for that episode, nothing else;
- *what episodes share breaks* (``SharedBroken``), *a worker dies*, or *a worker says nothing for a whole deadline while calls wait*:
  all its episodes get ``EnvError`` at once, its process group is killed and reaped, and a fresh worker takes its place;
- *one call passes the deadline in a worker that still answers others*: ``EnvError`` for that episode, which the worker cancels;
- *a worker cannot start*: ``open_host`` raises; a replacement is tried a few times, slower each time, and then given up.

Episodes go to the worker with the fewest; one that is to be played alone has a worker of its own for its time. They are deterministic
functions of their task, and every worker runs under the same hash seed, so a trajectory does not depend on which worker played it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress

from agentrl import errors
from agentrl.env import Env, EnvSpec
from agentrl.errors import AgentRLError, ConfigError, EnvError, SharedBroken, boundary
from agentrl.hosts.wire import START, Wire, backstop_s
from agentrl.sandbox import SandboxProvider
from agentrl.types import Observation, Step, Task

log = logging.getLogger(__name__)

MAX_STARTS = 3
"""Times in a row that a replacement may fail to start before its place is given up."""
EXIT_S = 5.0
"""Longest wait for a worker that was told to exit, before it is killed."""
LAST_WORDS = 2000
"""Characters of a dead worker's output that its error quotes."""
_SECONDS = re.compile(r"_s(_p\d+)?$")
_PRESENT = ("open", "warm", "waiting")
"""Sandbox metrics that say what is there now, and end with their process; the others count since the start."""
BOOT = "import sys; sys.path[:] = {path!r}; from agentrl.hosts.worker import main; main({fd}, {parent})"


class Workers:
    """Episodes in ``num_workers`` processes."""

    def __init__(
        self, spec: EnvSpec, num_workers: int, deadline_s: float, sandboxes: SandboxProvider | None = None
    ) -> None:
        if type(spec).__module__ == "__main__":
            raise ConfigError(
                f"{type(spec).__name__} is defined in the program itself, where a worker cannot import it; move it to a module"
            )
        with boundary(ConfigError, f"pickling {type(spec).__name__} for a worker"):
            self._start = (backstop_s(deadline_s), pickle.dumps((spec, sandboxes), protocol=5))
        self._num_workers, self._deadline_s = num_workers, deadline_s
        self._live: list[Worker] = []
        self._given_up: list[AgentRLError] = []
        self._changed = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []
        self._retiring: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self._past: Mapping[str, float] = {}
        """What the sandboxes of workers that are gone counted."""

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that live now."""
        return tuple(worker.pid for worker in self._live if not worker.lost.is_set())

    async def __aenter__(self) -> Workers:
        first = [asyncio.get_running_loop().create_future() for _ in range(self._num_workers)]
        self._keepers = [asyncio.create_task(self._keep(started)) for started in first]
        try:
            await asyncio.gather(*first)
        except BaseException:
            await self.__aexit__()
            for started in first:  # the others' errors are the same news
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
        """Return what the workers' sandboxes counted, as of each worker's last closed episode."""
        counted = added_up([self._past, *(worker.counted for worker in self._live)])
        return {f"sandbox/{name}": value for name, value in counted.items()}

    @asynccontextmanager
    async def open(self, task: Task, *, alone: bool = False) -> AsyncIterator[Env]:
        """Open one episode of ``task`` in the worker with the fewest, or ``alone`` in a new one."""
        async with self._start_one() if alone else nullcontext(await self._choose()) as worker:
            number = next(self._numbers)
            worker.num_episodes += 1
            try:
                await worker.call("open", number, task)
                yield _Remote(worker, number)
            except BaseException:
                with suppress(AgentRLError):  # the first error is the news
                    await worker.close_episode(number)
                raise
            else:
                await worker.close_episode(number)
            finally:
                worker.num_episodes -= 1

    @asynccontextmanager
    async def _start_one(self) -> AsyncIterator[Worker]:
        """Start a worker; leaving retires it."""
        with boundary(EnvError, "starting a process"):
            worker = Worker(self._deadline_s)
        try:
            await worker.start(self._start)
            yield worker
        finally:
            lasting = {name: value for name, value in worker.counted.items() if name not in _PRESENT}
            self._past = added_up([self._past, lasting])
            job = asyncio.create_task(worker.retire())
            self._retiring.add(job)
            job.add_done_callback(self._retiring.discard)
            await asyncio.shield(job)

    async def _choose(self) -> Worker:
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
        """Keep one place filled with a living worker, until cancelled or starting fails too often."""
        failures, deaths = 0, 0
        while True:
            try:
                async with self._start_one() as worker:
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

    async def _serve(self, worker: Worker, started: asyncio.Future[None]) -> None:
        """Lend ``worker`` to episodes until it is lost."""
        self._live.append(worker)
        self._changed.set()
        if not started.done():
            started.set_result(None)
        try:
            await worker.lost.wait()
        finally:
            self._live.remove(worker)


class Worker:
    """The parent's end of one worker process."""

    def __init__(self, deadline_s: float) -> None:
        self.num_episodes = 0
        self.num_answers = 0
        self.counted: Mapping[str, float] = {}
        """What its sandboxes counted, as of the last closed episode."""
        self.ready = False
        self.lost = asyncio.Event()
        self._deadline_s = deadline_s
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, tuple[asyncio.Future[object], float]] = {}
        self._numbers = itertools.count(START)
        self._heard = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._reason = ""
        self._output = bytearray()
        ours, theirs = socket.socketpair()
        output, noise = os.pipe()
        boot = BOOT.format(path=sys.path, fd=theirs.fileno(), parent=os.getpid())
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", boot],
                stdin=subprocess.DEVNULL,
                stdout=noise,
                stderr=noise,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a group of its own: killed whole, and deaf to the terminal's interrupt
                env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONHASHSEED": "0"},
            )
        os.close(noise)
        os.set_blocking(output, False)
        self._noise: int | None = output
        self._loop.add_reader(output, self._listen)
        self._wire = Wire(ours, self._receive, lambda: self.lose("died"))

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def start(self, payload: object) -> None:
        """Wait until the worker has loaded its spec."""
        await self.call("start", -1, payload)
        self.ready = True

    async def call(self, kind: str, episode: int, payload: object = None) -> object:
        """Make one call of an episode and return its result.

        Raises:
            EnvError: the environment broke, the worker was lost, or nothing came within the deadline.
        """
        if self._reason:
            raise EnvError(self._reason)
        number = next(self._numbers)
        with boundary(EnvError, f"sending a call to worker {self.pid}"):
            self._wire.send((number, kind, episode, payload))
        now = self._loop.time()
        if not self._waiting:
            self._heard = now
        future = self._loop.create_future()
        self._waiting[number] = (future, now)
        if self._timer is None:
            self._timer = self._loop.call_at(now + self._deadline_s, self._check, now + self._deadline_s)
        try:
            return await future
        finally:
            self._waiting.pop(number, None)

    async def close_episode(self, number: int) -> None:
        """Close an episode, unless it went with its worker."""
        if not self._reason:
            counted = await self.call("close", number)
            assert isinstance(counted, Mapping)
            self.counted = counted

    def lose(self, how: str) -> None:
        """Fail every waiting call and kill the process group. What cannot be told apart is not kept."""
        if self._reason:
            return
        if how == "died":
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # it closed its socket: it is gone, or as good as
                how = f"died ({_exit(self._process.wait(timeout=0.2))})"
        self._listen()
        words = self._output.decode(errors="replace").strip()
        self._reason = f"worker {self.pid} {how}" + (f"; its last words: {words}" if words else "")
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._wire.close()
        for future, _ in self._waiting.values():
            if not future.done():
                future.set_exception(EnvError(self._reason))
        self.lost.set()

    async def retire(self) -> None:
        """Ask the worker to exit, kill what is left of its process group, and reap it."""
        try:
            if not self._reason and self.ready:
                self._wire.send((next(self._numbers), "exit", -1, None))
                with suppress(TimeoutError):
                    async with asyncio.timeout(EXIT_S):
                        await self.lost.wait()
        finally:
            self.lose("was told to exit")
        if self._timer is not None:
            self._timer.cancel()
        self._mute()
        for _ in range(1000):
            if self._process.poll() is not None:
                return
            await asyncio.sleep(0.005)
        log.warning("worker %d was killed and is still there", self.pid)

    def _receive(self, message: tuple[object, ...]) -> None:
        number, error, result = message
        assert isinstance(number, int)
        self._heard = self._loop.time()
        future, _ = self._waiting.get(number, (None, 0.0))
        if error:
            problem = _error(str(error), str(result))
            if isinstance(problem, SharedBroken):
                self.lose(f"is replaced, for what its episodes share broke: {problem}")
            elif future is not None and not future.done():
                future.set_exception(problem)
            return
        self.num_answers += number != START
        if future is not None and not future.done():
            future.set_result(result)

    def _check(self, due: float) -> None:
        """Find what is late: the whole worker, or single calls."""
        self._timer = None
        if self._reason or not self._waiting:
            return
        now = self._loop.time()
        if now - due > 0.1 * self._deadline_s:  # this loop itself was busy: hear first what came meanwhile
            due = now + 0.1 * self._deadline_s
        elif now - self._heard >= self._deadline_s:
            self.lose(f"did not answer within {self._deadline_s:g} s")
            return
        else:
            late = [
                future
                for future, sent in self._waiting.values()
                if now - sent >= self._deadline_s and not future.done()
            ]
            for future in late:
                future.set_exception(
                    EnvError(f"worker {self.pid} did not answer a call within {self._deadline_s:g} s")
                )
            oldest = min((sent for future, sent in self._waiting.values() if not future.done()), default=now)
            due = min(oldest, self._heard) + self._deadline_s
        self._timer = self._loop.call_at(due, self._check, due)

    def _listen(self) -> None:
        """Take what the worker printed; keep the end of it."""
        if self._noise is None:
            return
        try:
            chunk = os.read(self._noise, 1 << 16)
        except BlockingIOError:
            return
        if not chunk:
            self._mute()
        log.debug("worker %d: %s", self.pid, chunk)
        self._output = (self._output + chunk)[-LAST_WORDS:]

    def _mute(self) -> None:
        if self._noise is not None:
            self._loop.remove_reader(self._noise)
            os.close(self._noise)
            self._noise = None


class _Remote:
    """An episode in a worker."""

    __slots__ = ("_number", "_worker")

    def __init__(self, worker: Worker, number: int) -> None:
        self._worker, self._number = worker, number

    async def reset(self) -> Observation:
        observation = await self._worker.call("reset", self._number)
        if not isinstance(observation, Observation):
            raise EnvError(f"reset must return an Observation, found {type(observation).__name__}")
        return observation

    async def step(self, action: str) -> Step:
        step = await self._worker.call("step", self._number, action)
        if not isinstance(step, Step):
            raise EnvError(f"step must return a Step, found {type(step).__name__}")
        return step


def _error(name: str, text: str) -> AgentRLError:
    """Return the error a worker named; one that only the worker knows is an ``EnvError``."""
    kind = getattr(errors, name, EnvError)
    return kind(text) if isinstance(kind, type) and issubclass(kind, AgentRLError) else EnvError(text)


def _exit(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def added_up(processes: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the sandbox metrics of several processes as one: counts are added, of seconds the largest is taken.

    >>> added_up([{"opened": 2.0, "start_s": 0.1}, {"opened": 3.0, "start_s": 0.2}])
    {'opened': 5.0, 'start_s': 0.2}
    """
    total: dict[str, float] = {}
    for counted in processes:
        for name, value in counted.items():
            total[name] = (
                max(total.get(name, 0.0), value) if _SECONDS.search(name) else total.get(name, 0.0) + value
            )
    return total
