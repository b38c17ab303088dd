"""The host's side of the stream to a guest: many requests at the same time, each with a deadline.

What a guest sends comes out of the sandbox, so it is not trusted: a frame that is too long, more data than
was asked for, or a malformed answer ends the link. A link ends once, with a reason; all pending and later
requests raise that reason.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar  # Any: what JSON holds

from agentrl.errors import SandboxError
from agentrl_sandboxes.backend import Stream
from agentrl_sandboxes.guest.wire import (
    CANCEL,
    CHUNK,
    CREDIT,
    DATA,
    END,
    HEADER,
    MAX_FRAME,
    NUMBER,
    OPEN,
    PING,
    RESULT,
    WINDOW,
)

GRACE_S = 10.0
"""Time after a request's deadline in which its answer may arrive; after that the guest counts as lost."""

BEATS = 4
"""Number of heartbeats sent to the guest in each ``heartbeat_s``, the silence after which it exits."""

C = TypeVar("C", bound="Channel")


class RequestTooLong(ValueError):
    """The arguments of a request do not fit into a frame."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The guest's answer to a request: the result, and the data that the guest sent before the result."""

    result: Mapping[str, Any]
    data: bytes

    def raise_for_errno(self, path: str = "") -> None:
        """If the operation failed inside the sandbox with an ``OSError``, raise that error here."""
        if (number := self.result.get("errno")) is not None:
            message = str(self.result.get("error", ""))
            raise OSError(number, message, path) if path else OSError(number, message)


class Channel:
    """One request to the guest that has no result yet."""

    def __init__(self, link: Link, number: int, expect: int) -> None:
        self.link, self.number, self.expect = link, number, expect
        self.room = WINDOW
        self.made_room = asyncio.Event()
        self.data = bytearray()
        self.result: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()

    def take(self, body: bytes) -> None:
        """Keep data that arrived."""
        self.data += body
        if len(self.data) > self.expect:
            raise SandboxError(f"the guest sent more than the {self.expect} bytes it was asked for")

    async def feed(self, data: bytes, *, end: bool = True) -> None:
        """Send data as fast as the guest consumes it; if ``end``, report then that there is no more."""
        view = memoryview(data)
        while view:
            while self.room <= 0:
                self.made_room.clear()
                await self.made_room.wait()
            chunk, view = view[:CHUNK], view[CHUNK:]
            self.room -= len(chunk)
            self.link.post(DATA, self.number, chunk)
        if end:
            self.end()

    def end(self) -> None:
        """Report to the guest that there is no more data."""
        self.link.post(END, self.number)


class Pipe(Channel):
    """A request whose data is read while it arrives."""

    def __init__(self, link: Link, number: int, expect: int) -> None:
        super().__init__(link, number, expect)
        self.news = asyncio.Event()
        self.result.add_done_callback(lambda result: self.news.set())

    def take(self, body: bytes) -> None:
        """Keep data until ``next`` returns it; the guest may send a window more than was consumed."""
        super().take(body)
        self.news.set()

    async def next(self) -> bytes:
        """Return the data that has arrived since the last call; ``b""`` at the end.

        Raises:
            SandboxError: the guest is gone.
        """
        while not self.data and not self.result.done():
            self.news.clear()
            await self.news.wait()
        if not self.data:
            self.result.result()
        data = bytes(self.data)
        self.data.clear()
        return data

    def taken(self, num: int) -> None:
        """Report that ``num`` more bytes were consumed, so that the guest may send as many again."""
        if not self.result.done():
            self.link.post(CREDIT, self.number, NUMBER.pack(num))


class Link:
    """An open stream to a guest. Opened by ``Link.open``; its opener must close it."""

    def __init__(self, stream: Stream, heartbeat_s: float, lost: Callable[[], None] = lambda: None) -> None:
        self.stream, self.heartbeat_s, self.on_lost = stream, heartbeat_s, lost
        self.reason = ""
        """Why the link has ended; empty while it is open."""
        self.channels: dict[int, Channel] = {}
        self.numbers = 0
        self.waiting: deque[bytes] = deque()
        self.wake = asyncio.Event()
        self.silence = 0
        self.tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def open(cls, stream: Stream, *, heartbeat_s: float = 120.0, start_s: float = 60.0) -> Link:
        """Wait for the guest's greeting and return the open link.

        Raises:
            SandboxError: the guest did not start, or its ``workdir`` cannot be used.
        """
        link = cls(stream, heartbeat_s)
        hello = link.channels[0] = Channel(link, 0, 0)
        link.tasks = [asyncio.create_task(part()) for part in (link._receive, link._send, link._beat)]
        try:
            Answer(await link._answer(hello, start_s, 0.0), b"").raise_for_errno()
        except OSError as problem:
            await link.close()
            raise SandboxError(f"the sandbox's folder cannot be made: {problem.strerror}") from problem
        except BaseException:
            await link.close()
            raise
        return link

    def post(self, kind: int, channel: int, body: bytes | memoryview = b"") -> None:
        """Queue a frame to be sent."""
        self.waiting.append(HEADER.pack(kind, channel, len(body)) + body)
        self.wake.set()

    async def request(
        self, op: str, data: bytes = b"", *, deadline_s: float, expect: int = 0, **arguments: Any
    ) -> Answer:
        """Send a request and wait for its answer.

        Args:
            op: the operation.
            data: the bytes to send with the request.
            deadline_s: maximum time that the operation may take; if no answer arrives within ``GRACE_S``
                after that, the link ends.
            expect: maximum number of bytes of data that may come back.
            arguments: the operation's arguments.

        Raises:
            SandboxError: the guest is gone, or did not answer in time.
            RequestTooLong: the arguments fill more than a frame.
        """
        channel = self._start(op, Channel, expect, arguments)
        feeder = None
        try:
            if len(data) <= WINDOW:
                await channel.feed(data)
            else:
                feeder = asyncio.create_task(channel.feed(data))
            return Answer(await self._answer(channel, deadline_s, GRACE_S), bytes(channel.data))
        finally:
            if feeder:
                feeder.cancel()

    @asynccontextmanager
    async def pipe(self, op: str, **arguments: Any) -> AsyncIterator[Pipe]:
        """Open a channel that carries data in both directions; leaving the context cancels it."""
        channel = self._start(op, Pipe, 2 * WINDOW, arguments)
        try:
            yield channel
        finally:
            self._forget(channel)

    def _start(self, op: str, kind: type[C], expect: int, arguments: Mapping[str, Any]) -> C:
        if self.reason:
            raise SandboxError(self.reason)
        body = json.dumps({"op": op, **arguments}).encode()
        if len(body) > MAX_FRAME:
            raise RequestTooLong(f"{op} with {len(body)} bytes of arguments")
        self.numbers += 1
        channel = kind(self, self.numbers, expect)
        self.channels[channel.number] = channel
        self.post(OPEN, channel.number, body)
        return channel

    async def close(self) -> None:
        """End the link, which makes the guest exit."""
        self._end("the sandbox was closed")
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.stream.close()

    async def _answer(self, channel: Channel, deadline_s: float, grace_s: float) -> Mapping[str, Any]:
        """Wait for a channel's result. If the wait is cancelled, cancel the request.

        If no result arrives within ``deadline_s`` and then ``grace_s`` (at least a second), the link ends.
        """
        loop = asyncio.get_running_loop()

        def overdue() -> None:
            # two timers: if this process was stopped for long, the answer may have arrived and only be unread
            timers.append(loop.call_later(max(grace_s, 1.0), missed))

        def missed() -> None:
            self._end(f"the guest did not answer within {deadline_s + grace_s:.0f} s")

        timers = [loop.call_later(deadline_s, overdue)]
        try:
            return await channel.result
        finally:
            for timer in timers:
                timer.cancel()
            self._forget(channel)

    def _forget(self, channel: Channel) -> None:
        """Cancel a request unless it has been answered."""
        if self.channels.pop(channel.number, None) and not self.reason:
            self.post(CANCEL, channel.number)

    def _end(self, reason: str) -> None:
        """Make all pending and later requests fail with a reason. Only the first call has an effect."""
        if self.reason:
            return
        self.reason = reason
        for channel in self.channels.values():
            if not channel.result.done():
                channel.result.set_exception(SandboxError(reason))
                channel.result.exception()  # mark it as retrieved: perhaps nothing waits for it
        self.on_lost()

    async def _receive(self) -> None:
        received = bytearray()
        try:
            while data := await self.stream.receive():
                received += data
                self.silence = 0
                start = 0
                while len(received) - start >= HEADER.size:
                    kind, number, length = HEADER.unpack_from(received, start)
                    if length > CHUNK:
                        raise SandboxError(f"the guest sent a frame of {length} bytes")
                    if len(received) < (end := start + HEADER.size + length):
                        break
                    self._frame(kind, number, bytes(memoryview(received)[start + HEADER.size : end]))
                    start = end
                del received[:start]
            self._end("the guest is gone")
        except (OSError, SandboxError) as problem:
            self._end(str(problem) or type(problem).__name__)

    def _frame(self, kind: int, number: int, body: bytes) -> None:
        """Act on a frame from the guest."""
        channel = self.channels.get(number)
        if number == 0 and kind == RESULT and channel is None:
            raise SandboxError(f"the guest broke: {body.decode(errors='replace')}")
        if channel is None:  # the answer to a request that was cancelled
            return
        if kind == DATA:
            channel.take(body)
        elif kind == CREDIT and len(body) == NUMBER.size:
            channel.room += NUMBER.unpack(body)[0]
            channel.made_room.set()
        elif kind == RESULT:
            try:
                result = json.loads(body)
            except (ValueError, RecursionError):
                result = None
            if not isinstance(result, dict):
                raise SandboxError("the guest sent a malformed answer")
            del self.channels[number]
            if not channel.result.done():
                channel.result.set_result(result)

    async def _send(self) -> None:
        try:
            while True:
                while self.waiting:
                    await self.stream.send(self.waiting.popleft())
                self.wake.clear()
                await self.wake.wait()
        except OSError as problem:
            self._end(f"the guest is gone: {problem}")

    async def _beat(self) -> None:
        """Send heartbeats to the guest, and end the link when the guest is silent."""
        while self.silence <= BEATS:  # counts beats, not seconds, because this process may itself be stopped
            self.silence += 1
            self.post(PING, 0)
            await asyncio.sleep(self.heartbeat_s / BEATS)
        self._end(f"the guest has been silent for {self.heartbeat_s:.0f} s")
