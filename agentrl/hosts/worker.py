"""The program of a worker process: an event loop, the opened environment spec, and many episodes.

``agentrl.hosts.process`` starts this module in a new interpreter (forking a process with torch threads and an
event loop is not safe) and talks to it over a socket pair, in the messages that ``agentrl.hosts.wire``
describes. The module imports nothing but the contract and the environment, so it starts in a tenth of a
second.

Each episode is one asyncio task that enters ``EnvSpec.open``, answers its calls in order, and leaves:
whatever an author holds across an ``await`` is entered and left by the same task. An environment that blocks
only blocks this process.

Nothing outlives the parent: when the parent's end of the socket closes, a thread that needs no event loop
kills the whole process group. Where that thread cannot run (a call hangs inside C), an alarm kills the
process later; the event loop postpones it as long as it runs.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import select
import signal
import socket
import threading
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any  # messages are pickles: both ends know their types, the wire does not

from agentrl.env import EnvSpec, open_episode
from agentrl.errors import AgentRLError, EnvError, boundary
from agentrl.hosts.wire import START, Wire
from agentrl.sandbox import Sandboxes
from agentrl.types import Task

HOLD_S = 0.004
"""An answer that follows another one within this number of seconds is held, to be sent with further ones."""


@dataclass(slots=True)
class _ServedEpisode:
    """An episode of this worker: its waiting calls, and the asyncio task that plays it."""

    calls: asyncio.Queue[tuple[int, str, str]] = field(default_factory=asyncio.Queue)
    job: asyncio.Task[None] | None = None
    busy: bool = True
    """Whether a call of the episode is running, so that closing the episode must cancel it."""
    closing: int | None = None
    """Number of the ``close`` call that cancelled the episode."""


class _Server:
    """Answers the calls that the parent makes."""

    def __init__(self, sock: socket.socket) -> None:
        self.wire = Wire(sock, self.receive, lambda: None, hold_s=HOLD_S)
        self.start: asyncio.Future[tuple[float, bytes]] = asyncio.get_running_loop().create_future()
        self.exit = asyncio.Event()
        self.episodes: dict[int, _ServedEpisode] = {}
        self.spec: EnvSpec
        self.sandboxes: Sandboxes | None = None
        self.shared: object = None

    async def run(self) -> None:
        """Load the spec, open its shared resource, and answer calls until the parent asks to exit."""
        alarm_s, pickled = await self.start
        arm_watchdog(alarm_s)
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
            episode = self.episodes[number] = _ServedEpisode()
            episode.job = asyncio.get_running_loop().create_task(self.play(number, episode, call, payload))
        elif episode is None:  # it broke and has been closed already
            self.answer(call, self.counted()) if kind == "close" else self.refuse(
                call, EnvError("the episode is over")
            )
        elif kind == "close" and episode.busy and episode.job is not None:
            episode.closing = call
            episode.job.cancel()
        else:
            episode.calls.put_nowait((call, kind, payload))

    async def play(self, number: int, episode: _ServedEpisode, call: int, task: Task) -> None:
        """Play one episode: open, answer calls, close."""
        try:
            async with open_episode(self.spec, task, self.sandboxes, self.shared) as env:
                self.answer(call, None)
                while episode.closing is None:
                    episode.busy = False
                    call, kind, action = await episode.calls.get()
                    episode.busy = True
                    if kind == "close":
                        break
                    with boundary(EnvError, f"{kind} of {task.id!r}"):
                        self.answer(call, await (env.reset() if kind == "reset" else env.step(action)))
            self.answer(call, self.counted())
        except AgentRLError as problem:
            self.refuse(call, problem)
        finally:
            del self.episodes[number]
            if episode.closing is not None:
                self.answer(episode.closing, self.counted())

    def counted(self) -> Mapping[str, float]:
        """Return the metrics of this process's sandboxes; the answer to every ``close`` call holds them."""
        return {} if self.sandboxes is None else dict(self.sandboxes.metrics())

    def answer(self, call: int, result: object) -> None:
        """Send a result. If it cannot be pickled, raise the error, so that its episode fails."""
        self.wire.send((call, "", result))

    def refuse(self, call: int, problem: AgentRLError) -> None:
        """Send the class name and message of an error; the parent raises an error of the same class."""
        self.wire.send((call, type(problem).__name__, str(problem)))


def arm_watchdog(alarm_s: float) -> None:
    """Have this process killed if its event loop hangs for ``alarm_s``."""
    signal.setitimer(signal.ITIMER_REAL, alarm_s)
    asyncio.get_running_loop().call_later(alarm_s / 4, arm_watchdog, alarm_s)


def _die_with_parent(sock: int, parent: int) -> None:
    """Kill this process group when the parent's end of the socket closes or the parent process changes."""
    poll = select.poll()
    poll.register(sock, 0)  # asks for no event, because a hang-up is always reported
    while not poll.poll(5000) and os.getppid() == parent:
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def run_worker(fd: int, parent: int) -> None:
    """Run a worker on the socket ``fd`` until the parent asks it to exit or is gone."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, args=(os.dup(fd), parent), daemon=True).start()

    async def run() -> None:
        await _Server(socket.socket(fileno=fd)).run()

    asyncio.run(run())
