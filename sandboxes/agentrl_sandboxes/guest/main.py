"""The guest: one loop, and the requests under way in it."""

from __future__ import annotations

import fcntl
import gc
import os
import sys
import time

from agentrl_sandboxes.guest.channels import Exec, KillAll
from agentrl_sandboxes.guest.files import Read, Write
from agentrl_sandboxes.guest.light import deque, dumps, loads, signal
from agentrl_sandboxes.guest.loop import Loop, Sink, Source
from agentrl_sandboxes.guest.ports import Connect
from agentrl_sandboxes.guest.processes import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_DUMPABLE,
    below,
    prctl,
    processes,
    save_memory,
    strike,
)
from agentrl_sandboxes.guest.shell import CloseShell, OpenShell, Run, Shell
from agentrl_sandboxes.guest.tar import Get, Put
from agentrl_sandboxes.guest.wire import (
    CANCEL,
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
"""How long to go on killing what does not die, such as a process stuck in the kernel."""


class Guest:
    """The one loop, and the requests under way."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.loop = Loop()
        self.config = config
        self.disk_bytes = config["disk_mib"] << 20
        self.workdir, self.num_files = config["workdir"], config["num_files"]
        self.channels: dict[int, Any] = {}
        self.shells: dict[int, Shell] = {}
        self.supervisors: set[int] = set()
        self.waiting: deque[Callable[[], object]] = deque()
        self.received = bytearray()
        self.heard = time.monotonic()
        link_in, link_out = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (0, 1))
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        self.source = Source(self.loop, link_in, self.receive, over=self.exit)
        self.out = Sink(self.loop, link_out, self.sent)
        wake, woken = os.pipe()
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        Source(self.loop, wake, lambda data: self.reap())
        self.loop.after(config["lifetime_s"], self.exit)
        self.watch_host()

    def watch_host(self) -> None:
        """End when the host is gone or silent."""
        silence = time.monotonic() - self.heard
        if self.source.fd < 0 or silence > self.config["heartbeat_s"]:
            self.exit()
        self.loop.after(self.config["heartbeat_s"] - silence + 0.01, self.watch_host)

    def exit(self) -> None:
        """End, with everything inside. As the first process, ending is enough."""
        if os.getpid() == 1:
            os._exit(0)
        self.sweep(lambda: below([os.getpid()]), lambda num: os._exit(0))

    def reap(self) -> None:
        """Take the dead away."""
        try:
            while True:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                self.supervisors.discard(pid)
        except ChildProcessError:
            pass

    def everything(self) -> set[int]:
        """Return what runs here, but for the sandbox's own."""
        me = os.getpid()
        if me > 1:
            return below([me]) - self.supervisors
        return (
            {pid for pid, (state, _, _) in processes().items() if state not in "ZX"} - self.supervisors - {me}
        )

    def strays(self) -> set[int]:
        """Return what no supervisor vouches for."""
        return self.everything() - below(self.supervisors)

    def sweep(self, choose: Callable[[], set[int]], then: Callable[[int], object]) -> None:
        """Kill what is chosen, and goes on being chosen, until nothing is. It is stopped first, so that it cannot breed."""
        killed: set[int] = set()
        give_up = time.monotonic() + KILL_S

        def again() -> None:
            frozen: set[int] = set()
            alive = choose()
            while alive - frozen and time.monotonic() < give_up:
                strike(alive - frozen, signal.SIGSTOP)
                frozen |= alive
                alive = choose()
            strike(alive, signal.SIGKILL)
            killed.update(alive)
            if alive and time.monotonic() < give_up:
                self.loop.after(0.001, again)
            else:
                then(len(killed))

        again()

    def send(self, kind: int, channel: int, body: bytes = b"") -> None:
        """Send a frame, as soon as there is room."""
        header = HEADER.pack(kind, channel, len(body))
        if len(body) > 4096:
            self.out.write(header)
            self.out.write(body)
        else:
            self.out.write(header + body)

    def sent(self, num: int) -> None:
        """Let those go on who waited for room."""
        if self.out.fd < 0:
            self.exit()
        for _ in range(len(self.waiting)):
            if self.out.size < WINDOW:
                self.loop.after(0.0, self.waiting.popleft())

    def when_room(self, callback: Callable[[], object]) -> None:
        """Call back, later, when not much waits to be sent."""
        if self.out.size < WINDOW:
            self.loop.after(0.0, callback)
        else:
            self.waiting.append(callback)

    def receive(self, data: bytes) -> None:
        """Take in what the host sent."""
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
        """Act on a frame."""
        channel = self.channels.get(number)
        if kind == PING:
            self.send(PING, number)
        elif kind == OPEN:
            request = loads(str(body, "utf-8"))
            channel = self.channels[number] = OPERATIONS[request.pop("op")](self, number)
            try:
                channel.open(**request)
            except OSError as problem:
                channel.fail(problem)
        elif channel is None:  # it is over, and the host does not know yet
            return
        elif kind == DATA:
            channel.data(body)
        elif kind == END:
            channel.end()
        elif kind == CREDIT:
            channel.credited(NUMBER.unpack(body)[0])
        elif kind == CANCEL:
            del self.channels[number]
            channel.cancel()


OPERATIONS: dict[str, type[Any]] = {
    **{
        "exec": Exec,
        "kill_all": KillAll,
        "read": Read,
        "write": Write,
        "put_tar": Put,
        "get_tar": Get,
        "connect": Connect,
    },
    **{"shell": OpenShell, "run": Run, "close_shell": CloseShell},
}


def main() -> None:
    """Say hello and serve."""
    guest = Guest(loads(sys.argv[1]))
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        os.makedirs(guest.workdir, exist_ok=True)
        os.chdir(guest.workdir)
    except OSError as problem:
        guest.send(
            RESULT,
            0,
            dumps({"errno": problem.errno, "error": f"{guest.workdir}: {problem.strerror}"}).encode(),
        )
    else:
        guest.send(RESULT, 0, dumps({"python": sys.version.split()[0], "pid": os.getpid()}).encode())
    save_memory()
    gc.freeze()
    try:
        guest.loop.run()
    except Exception as problem:  # the last word of a broken guest; what it held is killed
        guest.send(RESULT, 0, repr(problem)[:4096].encode())
        guest.exit()
        guest.loop.run()
