"""The guest's server: reads frames, starts the operation that each request asks for, and kills processes."""

from __future__ import annotations

import errno
import fcntl
import os
import time

from agentrl_sandboxes.guest.light import deque, dumps, loads, signal
from agentrl_sandboxes.guest.loop import Loop, PipeReader, PipeWriter
from agentrl_sandboxes.guest.processes import descendants, processes, signal_all
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any  # what JSON holds

KILL_S = 5.0
"""How long to keep killing processes that do not die, such as one that is blocked in the kernel."""


class Guest:
    """The guest: its event loop and the requests in progress.

    ``operations`` maps an operation's name to its class.
    """

    def __init__(self, config: Mapping[str, Any], operations: Mapping[str, type[Any]]) -> None:
        self.loop = Loop()
        self.config, self.operations = config, operations
        self.disk_bytes = config["disk_mib"] << 20
        self.workdir, self.num_files = config["workdir"], config["num_files"]
        self.channels: dict[int, Any] = {}  # each an Operation, whose open() has its own arguments
        self.shells: dict[int, Any] = {}  # each a BashSession, which is defined in a module above this one
        self.supervisors: set[int] = set()
        self.waiting: deque[Callable[[], object]] = deque()
        self.received = bytearray()
        self.heard = time.monotonic()
        link_in, link_out = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (0, 1))
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        self.reader = PipeReader(self.loop, link_in, self.receive, over=self.exit)
        self.writer = PipeWriter(self.loop, link_out, self.sent)
        wake, woken = os.pipe()
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        PipeReader(self.loop, wake, lambda data: self.reap())
        self.loop.after(config["lifetime_s"], self.exit)
        self.watch_host()

    def watch_host(self) -> None:
        """Exit when the host is gone or has been silent for too long."""
        silence = time.monotonic() - self.heard
        if self.reader.fd < 0 or silence > self.config["heartbeat_s"]:
            self.exit()
        self.loop.after(self.config["heartbeat_s"] - silence + 0.01, self.watch_host)

    def exit(self) -> None:
        """Exit, and end everything inside. As process 1 it only has to exit: the kernel kills the rest."""
        if os.getpid() == 1:
            os._exit(0)
        self.sweep(lambda: descendants([os.getpid()]), lambda num: os._exit(0))

    def reap(self) -> None:
        """Reap all children that have ended."""
        try:
            while True:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                self.supervisors.discard(pid)
        except ChildProcessError:
            pass

    def everything(self) -> set[int]:
        """Return all live processes except the guest and its supervisors."""
        me = os.getpid()
        if me > 1:
            return descendants([me]) - self.supervisors
        return (
            {pid for pid, (state, _, _) in processes().items() if state not in "ZX"} - self.supervisors - {me}
        )

    def strays(self) -> set[int]:
        """Return the live processes that are below no supervisor."""
        return self.everything() - descendants(self.supervisors)

    def sweep(self, choose: Callable[[], set[int]], then: Callable[[int], object]) -> None:
        """Kill the processes that ``choose`` returns until there are none; then call ``then(number killed)``.

        The processes are first stopped, so that they cannot start new ones. After ``KILL_S`` this gives up.
        """
        killed: set[int] = set()
        give_up = time.monotonic() + KILL_S

        def again() -> None:
            frozen: set[int] = set()
            alive = choose()
            while alive - frozen and time.monotonic() < give_up:
                signal_all(alive - frozen, signal.SIGSTOP)
                frozen |= alive
                alive = choose()
            signal_all(alive, signal.SIGKILL)
            killed.update(alive)
            if alive and time.monotonic() < give_up:
                self.loop.after(0.001, again)
            else:
                then(len(killed))

        again()

    def send(self, kind: int, channel: int, body: bytes = b"") -> None:
        """Send a frame as soon as there is room."""
        header = HEADER.pack(kind, channel, len(body))
        if len(body) > 4096:
            self.writer.write(header)
            self.writer.write(body)
        else:
            self.writer.write(header + body)

    def sent(self, num: int) -> None:
        """Resume the operations that waited for room, because ``num`` more bytes were sent."""
        if self.writer.fd < 0:
            self.exit()
        for _ in range(len(self.waiting)):
            if self.writer.size < WINDOW:
                self.loop.after(0.0, self.waiting.popleft())

    def when_room(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` in a later turn of the loop, once less than a window of data waits to be sent."""
        if self.writer.size < WINDOW:
            self.loop.after(0.0, callback)
        else:
            self.waiting.append(callback)

    def receive(self, data: bytes) -> None:
        """Split what the host sent into frames."""
        self.heard = time.monotonic()
        self.received += data
        start = 0
        while len(self.received) - start >= HEADER.size:
            kind, number, length = HEADER.unpack_from(self.received, start)
            end = start + HEADER.size + length
            if length > MAX_FRAME:
                self.exit()
            if len(self.received) < end:
                break
            body = bytes(memoryview(self.received)[start + HEADER.size : end])
            start = end
            self.frame(kind, number, body)
        del self.received[:start]

    def frame(self, kind: int, number: int, body: bytes) -> None:
        """Act on a frame from the host."""
        operation = self.channels.get(number)
        if kind == PING:
            self.send(PING, number)
        elif kind == OPEN:
            request = loads(str(body, "utf-8"))
            operation = self.channels[number] = self.operations[request.pop("op")](self, number)
            try:
                operation.open(**request)
            except OSError as problem:
                operation.fail(problem)
        elif operation is None:  # it has finished, and the host has not read that yet
            return
        elif kind == DATA:
            operation.data(body)
        elif kind == END:
            operation.end()
        elif kind == CREDIT:
            operation.credited(NUMBER.unpack(body)[0])
        elif kind == CANCEL:
            del self.channels[number]
            operation.cancel()


class Operation:
    """One request in progress: it receives the request's data, and sends data and one result."""

    def __init__(self, guest: Guest, number: int) -> None:
        self.guest, self.loop, self.number = guest, guest.loop, number

    def data(self, body: bytes) -> None:
        """Receive data. Operations that take none discard it."""
        self.credit(len(body))

    def end(self) -> None:
        """Handle the end of the data."""

    def credited(self, num: int) -> None:
        """Handle that the host has consumed ``num`` more bytes."""

    def cancel(self) -> None:
        """Stop: the host does not want a result any more."""

    def credit(self, num: int) -> None:
        """Report to the host that ``num`` more bytes were consumed."""
        self.guest.send(CREDIT, self.number, NUMBER.pack(num))

    def send(self, data: bytes) -> None:
        """Send data to the host."""
        for start in range(0, len(data), CHUNK):
            self.guest.send(DATA, self.number, data[start : start + CHUNK])

    def finish(self, **result: Any) -> None:
        """Send the result, at most once, and not after a cancel."""
        if self.guest.channels.pop(self.number, None):
            self.guest.send(RESULT, self.number, dumps(result).encode())

    def fail(self, problem: OSError) -> None:
        """Send an error as the result."""
        self.finish(errno=problem.errno or errno.EIO, error=problem.strerror or str(problem))
