"""One worker process: an event loop, the opened environment spec, many episodes.

``agentrl.workers`` starts this module in a fresh interpreter (a fork of a process with torch threads and an event loop is not safe)
and talks to it over a socket pair. It imports nothing but the contract and the environment, so it starts in a tenth of a second.

A call is ``(call, kind, episode, payload)`` and its answer ``(call, error name, result or message)``, each a pickle behind its length.
An episode is one task that enters ``EnvSpec.open``, answers its calls in order, and leaves: whatever an author holds over an ``await``
is entered and left in the same place. An environment that blocks only blocks this process.

Nothing outlives the parent: when its end of the socket closes, the whole process group is killed by a thread that needs no event
loop; where that thread cannot run (a call that hangs inside C), an alarm does it, later: the event loop puts it off as long as it runs.
"""

from __future__ import annotations

import asyncio
import copyreg
import io
import math
import os
import pickle
import select
import signal
import socket
import sys
import threading
from collections import ChainMap
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any  # messages are pickles: their types are known to both ends, not to the wire

from agentrl.env import Env, EnvSpec
from agentrl.errors import AgentRLError, ConfigError, EnvError, boundary
from agentrl.sandbox import Sandboxes
from agentrl.types import Message, Observation, Step, Task

CHUNK = 1 << 18
LENGTH = 4
HOLD_S = 0.004
"""Longest that an answer waits for others, beside the call that runs meanwhile."""
START = 0
"""The call number of the start; its answer says that the spec is loaded and its shared resource open."""


_RECORDS: Any = {
    Message: lambda message: (Message, (message.role, message.content, message.images)),
    Observation: lambda seen: (Observation, (seen.messages, seen.actions, seen.plan)),
    Step: lambda step: (Step, (step.observation, step.reward, step.terminated, step.truncated, step.info)),
}
"""How the records of a turn are pickled: in half the time of what dataclasses do for frozen slots."""


class _Pickler(pickle.Pickler):
    dispatch_table: Any = ChainMap(_RECORDS, copyreg.dispatch_table)  # noqa: RUF012


def _pickled(message: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(message)
    return buffer.getvalue()


class Wire:
    """Length-prefixed pickles over a socket, driven by the running event loop.

    A message is sent at once, unless another was within the last ``hold_s``: it then goes together with those that follow, after ``hold_s``
    or when the event loop has served all that was ready. A worker that answers many fast calls so wakes its parent once for a few of them.
    """

    def __init__(
        self,
        sock: socket.socket,
        receive: Callable[[tuple[Any, ...]], None],
        closed: Callable[[], None],
        *,
        hold_s: float = 0.0,
    ) -> None:
        self._sock, self._receive, self._closed, self._hold_s = sock, receive, closed, hold_s
        self._loop = asyncio.get_running_loop()
        self._incoming, self._outgoing = bytearray(), bytearray()
        self._sent_at = -math.inf
        self._held = self._full = (
            False  # whether a call of flush is coming; whether the socket took less than all
        )
        sock.setblocking(False)
        self._loop.add_reader(sock, self._read)

    def send(self, message: tuple[object, ...]) -> None:
        """Send a message; raises whatever pickling raises, before anything was sent."""
        body = _pickled(message)
        if self._sock.fileno() < 0:
            return
        self._outgoing += len(body).to_bytes(LENGTH, "big") + body
        if self._full:
            return
        if self._loop.time() - self._sent_at >= self._hold_s:
            self.flush()
        elif not self._held:
            self._held = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what was held, as far as the socket takes it; the rest follows when it can."""
        self._held = False
        if not self._outgoing or self._sock.fileno() < 0:
            return
        try:
            del self._outgoing[: self._sock.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:  # the peer is gone; the reader is told, in order, after what it still sent
            self._outgoing.clear()
        self._sent_at = self._loop.time()
        if bool(self._outgoing) != self._full:
            self._full = not self._full
            if self._full:
                self._loop.add_writer(self._sock, self.flush)
            else:
                self._loop.remove_writer(self._sock)

    def close(self) -> None:
        """Close the socket; ``closed`` is not called."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()

    def _read(self) -> None:
        try:
            chunk = self._sock.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self.close()
            self._closed()
            return
        data = self._incoming
        data += chunk
        messages, start = [], 0
        while len(data) - start >= LENGTH:
            end = start + LENGTH + int.from_bytes(data[start : start + LENGTH], "big")
            if len(data) < end:
                break
            messages.append(bytes(data[start + LENGTH : end]))
            start = end
        del data[:start]
        for message in messages:
            self._receive(pickle.loads(message))


@asynccontextmanager
async def opened(
    spec: EnvSpec, task: Task, sandboxes: Sandboxes | None, shared: object
) -> AsyncIterator[Env]:
    """Open an episode with the sandbox that its task asks for. What the body raises passes unchanged.

    Raises:
        ConfigError: the task asks for a sandbox and there is no provider.
        EnvError: the environment broke while it was opened or closed.
    """
    if task.sandbox is not None and sandboxes is None:
        raise ConfigError(
            f"task {task.id!r} asks for a sandbox and no provider is configured; choose one, such as sandbox='docker'"
        )
    stack = AsyncExitStack()
    try:
        with boundary(EnvError, f"opening {task.id!r}"):
            sandbox = None
            if task.sandbox is not None and sandboxes is not None:
                sandbox = await stack.enter_async_context(sandboxes.open(task.sandbox))
            env = await stack.enter_async_context(spec.open(task, sandbox, shared))
        yield env
    except BaseException:
        with (
            suppress(AgentRLError),
            boundary(EnvError, f"closing {task.id!r}"),
        ):  # the first error is the news
            await stack.__aexit__(*sys.exc_info())
        raise
    else:
        with boundary(EnvError, f"closing {task.id!r}"):
            await stack.aclose()


@dataclass(slots=True)
class _Episode:
    calls: asyncio.Queue[tuple[int, str, str]] = field(default_factory=asyncio.Queue)
    job: asyncio.Task[None] | None = None
    busy: bool = True
    closing: int | None = None


class _Server:
    """Answers the calls of one worker."""

    def __init__(self, sock: socket.socket) -> None:
        self.wire = Wire(sock, self.receive, lambda: None, hold_s=HOLD_S)
        self.start: asyncio.Future[tuple[float, bytes]] = asyncio.get_running_loop().create_future()
        self.exit = asyncio.Event()
        self.episodes: dict[int, _Episode] = {}
        self.spec: EnvSpec
        self.sandboxes: Sandboxes | None = None
        self.shared: object = None

    async def run(self) -> None:
        """Load the spec, open what its episodes share, and answer calls until told to exit."""
        alarm_s, pickled = await self.start
        stand_by(alarm_s)
        try:
            async with AsyncExitStack() as stack:
                with boundary(EnvError, "starting a worker"):
                    self.spec, provider = pickle.loads(pickled)
                    if provider is not None:
                        self.sandboxes = await stack.enter_async_context(provider.serve())
                    self.shared = await stack.enter_async_context(self.spec.shared())
                self.answer(START, None)
                await self.exit.wait()
                jobs = [episode.job for episode in self.episodes.values() if episode.job is not None]
                for job in jobs:
                    job.cancel()
                await asyncio.gather(*jobs, return_exceptions=True)
        except AgentRLError as problem:
            self.refuse(START, problem)
        self.wire.flush()

    def receive(self, message: tuple[Any, ...]) -> None:
        """Hand a call to its episode."""
        call, kind, number, payload = message
        if kind == "start":
            self.start.set_result(payload)
            return
        if kind == "exit":
            self.exit.set()
            return
        episode = self.episodes.get(number)
        if kind == "open":
            episode = self.episodes[number] = _Episode()
            episode.job = asyncio.get_running_loop().create_task(self.play(number, episode, call, payload))
        elif episode is None:  # it broke, and was closed then
            self.answer(call, None) if kind == "close" else self.refuse(call, EnvError("the episode is over"))
        elif kind == "close" and episode.busy and episode.job is not None:
            episode.closing = call
            episode.job.cancel()
        else:
            episode.calls.put_nowait((call, kind, payload))

    async def play(self, number: int, episode: _Episode, call: int, task: Task) -> None:
        """Play one episode: open, answer calls, close."""
        try:
            async with opened(self.spec, task, self.sandboxes, self.shared) as env:
                self.answer(call, None)
                while episode.closing is None:
                    episode.busy = False
                    call, kind, action = await episode.calls.get()
                    episode.busy = True
                    if kind == "close":
                        break
                    with boundary(EnvError, f"{kind} of {task.id!r}"):
                        self.answer(call, await (env.reset() if kind == "reset" else env.step(action)))
            self.answer(call, None)
        except AgentRLError as problem:
            self.refuse(call, problem)
        finally:
            del self.episodes[number]
            if episode.closing is not None:
                self.answer(episode.closing, None)

    def answer(self, call: int, result: object) -> None:
        """Send a result; one that cannot be pickled raises, and so breaks its episode."""
        self.wire.send((call, "", result))

    def refuse(self, call: int, problem: AgentRLError) -> None:
        """Send an error by its name; the parent raises the same class."""
        self.wire.send((call, type(problem).__name__, str(problem)))


def stand_by(alarm_s: float) -> None:
    """Have this process killed once its event loop stands still for ``alarm_s``."""
    signal.setitimer(signal.ITIMER_REAL, alarm_s)
    asyncio.get_running_loop().call_later(alarm_s / 4, stand_by, alarm_s)


def _die_with(sock: int, parent: int) -> None:
    """Kill the process group when the parent's end of the socket closes, or the parent is another one."""
    poll = select.poll()
    poll.register(sock, 0)  # no event but the hang-up, which is always reported
    while not poll.poll(5000) and os.getppid() == parent:
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main(fd: int, parent: int) -> None:
    """Run a worker on the socket ``fd`` until it is told to exit or ``parent`` is gone."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    threading.Thread(target=_die_with, args=(os.dup(fd), parent), daemon=True).start()

    async def run() -> None:
        await _Server(socket.socket(fileno=fd)).run()

    asyncio.run(run())


def backstop_s(deadline_s: float) -> float:
    """Seconds that an event loop may stand still before its worker's own alarm ends it: well after its parent would have."""
    return math.ceil(2 * deadline_s + 10)
