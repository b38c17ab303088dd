"""The event loop of the guest, and pipes that are read and written without blocking."""

from __future__ import annotations

import heapq
import os
import select
import time
from itertools import count, islice

from agentrl_sandboxes.guest.light import deque
from agentrl_sandboxes.guest.wire import CHUNK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn


class Loop:
    """An event loop over file descriptors and timers."""

    def __init__(self) -> None:
        self.poll = select.epoll()
        self.watched: dict[int, dict[int, Callable[[], object]]] = {}
        self.timers: list[tuple[float, int, Callable[[], object]]] = []
        self.order = count()

    def watch(self, fd: int, event: int, callback: Callable[[], object] | None) -> None:
        """Call ``callback`` whenever ``fd`` is readable (``EPOLLIN``) or writable (``EPOLLOUT``).

        With ``None`` as ``callback``, ``fd`` is no longer watched for this event.
        """
        events = self.watched.setdefault(fd, {})
        before = sum(events)
        if callback:
            events[event] = callback
        else:
            events.pop(event, None)
        if not events:
            del self.watched[fd]
        if sum(events) != before:
            if not before:
                self.poll.register(fd, sum(events))
            elif events:
                self.poll.modify(fd, sum(events))
            else:
                self.poll.unregister(fd)

    def close(self, fd: int) -> None:
        """Close a file descriptor that may be watched."""
        for event in list(self.watched.get(fd, ())):
            self.watch(fd, event, None)
        os.close(fd)

    def after(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call ``callback`` once, after this number of seconds.

        There is no way to cancel it: the callback must check whether it still applies.
        """
        heapq.heappush(self.timers, (time.monotonic() + seconds, next(self.order), callback))

    def run(self) -> NoReturn:
        """Run for ever."""
        while True:
            wait = self.timers[0][0] - time.monotonic() if self.timers else 60.0
            for fd, mask in self.poll.poll(max(wait, 0.0)):
                for event, callback in list(self.watched.get(fd, {}).items()):
                    if mask & (event | select.EPOLLHUP | select.EPOLLERR):
                        callback()
            now = time.monotonic()
            while self.timers and self.timers[0][0] <= now:
                heapq.heappop(self.timers)[2]()


class PipeWriter:
    """A pipe or socket that is written to without blocking.

    ``taken`` is called with the number of bytes whenever more bytes were written or dropped.
    """

    def __init__(self, loop: Loop, fd: int, taken: Callable[[int], object]) -> None:
        self.loop, self.fd, self.taken = loop, fd, taken
        self.waiting: deque[bytes | memoryview] = deque()
        self.size, self.ending = 0, False
        os.set_blocking(fd, False)

    def write(self, data: bytes) -> None:
        """Write now, or as soon as there is room."""
        if self.fd < 0:
            self.taken(len(data))
        elif data:
            self.waiting.append(data)
            self.size += len(data)
            if len(self.waiting) == 1:
                self.flush()

    def flush(self) -> None:
        """Write as much as there is room for."""
        written = 0
        while self.waiting:
            try:
                left = os.writev(self.fd, list(islice(self.waiting, 64)))
            except BlockingIOError:
                break
            except OSError:  # the reading end is closed
                written += self.size
                self.size = 0
                self.close()
                break
            written += left
            self.size -= left
            while left:
                first = self.waiting[0]
                if left >= len(first):
                    self.waiting.popleft()
                else:
                    self.waiting[0] = memoryview(first)[left:]
                left -= min(left, len(first))
        if self.fd >= 0:
            self.loop.watch(self.fd, select.EPOLLOUT, self.flush if self.waiting else None)
            if self.ending and not self.waiting:
                self.close()
        if written:
            self.taken(written)

    def end(self) -> None:
        """Close once everything is written."""
        self.ending = True
        if not self.waiting:
            self.close()

    def close(self) -> None:
        """Close now, and drop what is not written yet."""
        self.waiting.clear()
        if self.fd >= 0:
            self.loop.close(self.fd)
            self.fd = -1


class Capture:
    """The beginning and the end of an output, together at most ``limit`` bytes, and its whole length."""

    def __init__(self, limit: int) -> None:
        self.limit, self.total = limit, 0
        self.head, self.tail = bytearray(), bytearray()

    def add(self, data: bytes) -> None:
        """Add more output."""
        self.total += len(data)
        room = max(self.limit // 2 - len(self.head), 0)
        self.head += data[:room]
        self.tail += data[room:]
        keep = self.limit - self.limit // 2
        if len(self.tail) > 2 * keep + CHUNK:
            del self.tail[: len(self.tail) - keep]

    def kept(self) -> bytes:
        """Return what is kept of the beginning and of the end, joined."""
        keep = self.limit - self.limit // 2
        return bytes(self.head + self.tail[max(len(self.tail) - keep, 0) :])


class PipeReader:
    """A pipe that is read as soon as it has data, which is passed to ``take``.

    At the end of the data the pipe is closed, and ``over`` is called.
    """

    def __init__(
        self, loop: Loop, fd: int, take: Callable[[bytes], object], over: Callable[[], object] = lambda: None
    ) -> None:
        self.loop, self.fd, self.take, self.over = loop, fd, take, over
        os.set_blocking(fd, False)
        loop.watch(fd, select.EPOLLIN, self.read)

    def read(self) -> bool:
        """Read once; return whether there may be more data now."""
        try:
            data = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # a terminal whose other end is closed
            data = b""
        if data:
            self.take(data)
        else:
            self.close()
            self.over()
        return bool(data)

    def drain(self) -> None:
        """Read what the pipe holds now.

        The reads are bounded: a background process may never stop writing.
        """
        for _ in range(16):
            if self.fd < 0 or not self.read():
                break

    def ignore(self) -> None:
        """Keep reading, and discard the data, so that processes that still write to the pipe do not fail."""
        self.take, self.over = lambda data: None, lambda: None

    def pause(self) -> None:
        """Stop reading until ``resume``."""
        if self.fd >= 0:
            self.loop.watch(self.fd, select.EPOLLIN, None)

    def resume(self) -> None:
        """Continue reading after ``pause``."""
        if self.fd >= 0:
            self.loop.watch(self.fd, select.EPOLLIN, self.read)

    def close(self) -> None:
        """Stop reading for good."""
        if self.fd >= 0:
            self.loop.close(self.fd)
            self.fd = -1
