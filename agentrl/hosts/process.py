"""The parent's side of one worker process: starts it, calls its episodes, and notices when it is lost."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

from agentrl import errors
from agentrl.errors import AgentRLError, EnvError, SharedBroken, boundary
from agentrl.hosts.wire import START, Wire
from agentrl.types import Observation, Step

log = logging.getLogger(__name__)

EXIT_S = 5.0
"""Maximum number of seconds that a worker may take to exit when it is asked to; then it is killed."""
MAX_QUOTED = 2000
"""Maximum length of the end of a lost worker's output that its error message quotes."""
_BOOT = (
    "import sys; sys.path[:] = {path!r}; "
    "from agentrl.hosts.worker import run_worker; run_worker({fd}, {parent})"
)


class WorkerProcess:
    """One worker process, as its parent sees it."""

    def __init__(self, deadline_s: float) -> None:
        self.num_episodes = 0
        self.num_answers = 0
        self.counted: Mapping[str, float] = {}
        """Metrics of the worker's sandboxes, as it reported them when an episode was last closed."""
        self.ready = False
        self.lost = asyncio.Event()
        self._deadline_s = deadline_s
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, tuple[asyncio.Future[object], float]] = {}
        """The calls that are not answered yet, by number: the future of the answer, and when it was sent."""
        self._numbers = itertools.count(START)
        self._heard_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._reason = ""
        """Why the worker was lost; empty while it is alive."""
        self._output = bytearray()
        ours, theirs = socket.socketpair()
        reading, writing = os.pipe()
        boot = _BOOT.format(path=sys.path, fd=theirs.fileno(), parent=os.getpid())
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", boot],
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                pass_fds=[theirs.fileno()],
                # in its own process group, which can be killed as a whole and which an interrupt from the
                # terminal does not reach
                start_new_session=True,
                env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONHASHSEED": "0"},
            )
        except BaseException:
            os.close(reading)
            ours.close()
            raise
        finally:
            os.close(writing)
            theirs.close()
        os.set_blocking(reading, False)
        self._output_fd: int | None = reading
        self._loop.add_reader(reading, self._read_output)
        self._wire = Wire(ours, self._receive, lambda: self.lose("died"))

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    async def start(self, payload: object) -> None:
        """Send the start call, and wait until the worker has loaded its spec."""
        await self.call("start", -1, payload)
        self.ready = True

    async def call(self, kind: str, episode: int, payload: object = None) -> object:
        """Make one call of an episode and return its result.

        Raises:
            EnvError: the environment broke, the worker was lost, or there was no answer within the deadline.
        """
        if self._reason:
            raise EnvError(self._reason)
        number = next(self._numbers)
        with boundary(EnvError, f"sending a call to worker {self.pid}"):
            self._wire.send((number, kind, episode, payload))
        now = self._loop.time()
        if not self._waiting:
            self._heard_at = now
        future = self._loop.create_future()
        self._waiting[number] = (future, now)
        if self._timer is None:
            self._timer = self._loop.call_at(now + self._deadline_s, self._check, now + self._deadline_s)
        try:
            return await future
        finally:
            self._waiting.pop(number, None)

    async def close_episode(self, number: int) -> None:
        """Close an episode and keep the sandbox metrics in the answer; do nothing if the worker is lost."""
        if not self._reason:
            counted = await self.call("close", number)
            assert isinstance(counted, Mapping)
            self.counted = counted

    def lose(self, how: str) -> None:
        """Fail every waiting call and kill the worker's process group, because its state is unknown.

        ``how`` completes the sentence "worker N ..." in the error.
        """
        if self._reason:
            return
        if how == "died":
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # it closed its socket, so it has ended or is about to
                how = f"died ({_exit_status(self._process.wait(timeout=0.2))})"
        self._read_output()
        output = self._output.decode(errors="replace").strip()
        self._reason = f"worker {self.pid} {how}" + (f"; its last output: {output}" if output else "")
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
            self.lose("was asked to exit")
        if self._timer is not None:
            self._timer.cancel()
        self._close_output()
        for _ in range(1000):
            if self._process.poll() is not None:
                return
            await asyncio.sleep(0.005)
        log.warning("worker %d was killed and is still running", self.pid)

    def _receive(self, message: tuple[object, ...]) -> None:
        number, error, result = message
        assert isinstance(number, int)
        self._heard_at = self._loop.time()
        future, _ = self._waiting.get(number, (None, 0.0))
        if error:
            problem = _error(str(error), str(result))
            if isinstance(problem, SharedBroken):
                self.lose(f"is replaced because the environment's shared resource broke: {problem}")
            elif future is not None and not future.done():
                future.set_exception(problem)
            return
        self.num_answers += number != START
        if future is not None and not future.done():
            future.set_result(result)

    def _check(self, due: float) -> None:
        """Fail what missed its deadline: the worker if it answers nothing, otherwise each late call."""
        self._timer = None
        if self._reason or not self._waiting:
            return
        now = self._loop.time()
        if now - due > 0.1 * self._deadline_s:
            # this event loop itself was busy, so answers may have arrived that it has not read yet
            due = now + 0.1 * self._deadline_s
        elif now - self._heard_at >= self._deadline_s:
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
            due = min(oldest, self._heard_at) + self._deadline_s
        self._timer = self._loop.call_at(due, self._check, due)

    def _read_output(self) -> None:
        """Read what the worker printed, and keep its last ``MAX_QUOTED`` bytes."""
        if self._output_fd is None:
            return
        try:
            chunk = os.read(self._output_fd, 1 << 16)
        except BlockingIOError:
            return
        if not chunk:
            self._close_output()
        log.debug("worker %d: %s", self.pid, chunk)
        self._output = (self._output + chunk)[-MAX_QUOTED:]

    def _close_output(self) -> None:
        if self._output_fd is not None:
            self._loop.remove_reader(self._output_fd)
            os.close(self._output_fd)
            self._output_fd = None


class RemoteEnv:
    """The environment of an episode in a worker process."""

    __slots__ = ("_episode", "_worker")

    def __init__(self, worker: WorkerProcess, episode: int) -> None:
        self._worker, self._episode = worker, episode

    async def reset(self) -> Observation:
        """Have the worker reset the environment."""
        observation = await self._worker.call("reset", self._episode)
        if not isinstance(observation, Observation):
            raise EnvError(f"reset must return an Observation, found {type(observation).__name__}")
        return observation

    async def step(self, action: str) -> Step:
        """Have the worker play one action."""
        step = await self._worker.call("step", self._episode, action)
        if not isinstance(step, Step):
            raise EnvError(f"step must return a Step, found {type(step).__name__}")
        return step


def _error(name: str, text: str) -> AgentRLError:
    """Return the error of the class ``name`` in ``agentrl.errors``, or an ``EnvError`` if there is none."""
    kind = getattr(errors, name, EnvError)
    return kind(text) if isinstance(kind, type) and issubclass(kind, AgentRLError) else EnvError(text)


def _exit_status(code: int) -> str:
    """Return in words how a process ended."""
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
