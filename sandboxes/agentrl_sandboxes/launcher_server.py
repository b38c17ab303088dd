"""The launcher: a small process that starts and stops local sandboxes, and stops all when its owner ends.

A trainer is not suited as the parent of sandboxes: it is large, has threads, and may be killed. So the local
back end runs one launcher, and asks it over a socket, which is the launcher's standard input, to start and
stop sandboxes. The stream of a sandbox does not pass through the launcher. The launcher adopts orphans
(``PR_SET_CHILD_SUBREAPER``). A sandbox has ended when both bubblewrap and the sandbox's first process have
been reaped, because the kernel lets the first process of a namespace be reaped only after all others in it.
When the owner ends, for whatever reason, the launcher stops every sandbox and exits. If the launcher itself
is killed, the kernel kills every bubblewrap, and so everything inside.

Messages are JSON, one in each packet. To the launcher: ``{"start": {...}, "labels": {...}}`` with the file
descriptor of the sandbox's stream, and ``{"stop": id}``. From the launcher: ``{"ready": controllers}``,
``{"started": id}`` once the sandbox's command runs, and ``{"ended": id, "reason": text}``.

It runs as ``python -I -S`` and imports the standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from agentrl_sandboxes import cgroups, records
from agentrl_sandboxes.confine import StartRequest, become
from agentrl_sandboxes.seccomp import program

_PR_SET_CHILD_SUBREAPER = 36
MAX_MESSAGE = 1 << 18
ENDED_WELL = "exit code 0"
"""The reason reported for a sandbox that ended by itself, without an error."""
_MAX_REASON = 2000
_POLL_S = 0.002


@dataclass(slots=True)
class _Child:
    """A sandbox: ``outer`` is the pid of bubblewrap, ``inner`` that of the first process inside."""

    id: str
    outer: int
    info: int
    errors: int
    inner: int = 0
    """0 until bubblewrap has reported this pid."""
    info_text: bytes = b""
    error_text: bytes = b""
    status: int | None = None
    inside: set[int] = field(default_factory=set)
    """Pids of the processes that, after bubblewrap, must be reaped before the sandbox has ended."""


class LauncherServer:
    """The launcher's state and its event loop, in one thread."""

    def __init__(self, control: socket.socket, *, owner: int, uid: int, bwrap: str, folder: Path) -> None:
        self._control, self._uid, self._bwrap, self._records = control, uid, bwrap, folder
        self._program = program()
        self._groups = cgroups.find()
        self._children: dict[str, _Child] = {}
        self._starting: list[_Child] = []
        """Sandboxes whose first process still runs bubblewrap's program. It dies with its parent only once it
        runs the sandbox's command."""
        self._open = True
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._wake, self._wake_end = socket.socketpair()
        self._wake_end.setblocking(False)
        signal.set_wakeup_fd(self._wake_end.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGTERM, lambda number, frame: self._on_orphaned())
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, self._on_request)
        self._selector.register(self._wake, selectors.EVENT_READ, self._on_collect)
        self._owner = os.pidfd_open(owner)
        self._selector.register(self._owner, selectors.EVENT_READ, self._on_orphaned)

    def run(self) -> None:
        """Serve until the owner has ended, then stop all sandboxes."""
        self._send({"ready": sorted(self._groups.parents)})
        while self._open:
            self._turn()
        for gone in (self._control, self._owner):
            self._selector.unregister(gone)
        for child in self._children.values():
            _kill(child.outer)
        while self._children:
            self._turn()

    def _turn(self) -> None:
        for key, _ in self._selector.select(_POLL_S if self._starting else None):
            if self._selector.get_map().get(key.fileobj) is key:  # else an earlier callback has closed it
                key.data()
        for child in [child for child in self._starting if _runs_another_program(child.inner, self._bwrap)]:
            self._starting.remove(child)
            self._send({"started": child.id})

    def _on_orphaned(self) -> None:
        self._open = False

    def _on_request(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE, 1)
        except OSError:
            data, descriptors = b"", []
        try:
            if not data:
                self._on_orphaned()
                return
            request = json.loads(data)
            if "start" in request:
                self._start(request["start"], request["labels"], descriptors[0])
            elif request["stop"] in self._children:
                _kill(self._children[request["stop"]].outer)
            # else its end has already been reported, while the request was on its way: a second report would
            # be taken for the end of the next sandbox with the same id
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _start(self, fields: Mapping[str, Any], labels: Mapping[str, str], stream: int) -> None:
        request = StartRequest(**fields)
        pipes: list[int] = []
        try:
            pipes += os.pipe()
            pipes += os.pipe()
            pid = os.fork()
        except OSError as problem:
            for end in pipes:
                os.close(end)
            self._send({"ended": request.id, "reason": f"the launcher could not start a process: {problem}"})
            return
        info, info_end, errors, errors_end = pipes
        if pid == 0:
            try:
                self._child(request, labels, stream, info_end, errors_end)
            finally:
                os._exit(1)
        os.close(info_end)
        os.close(errors_end)
        child = self._children[request.id] = _Child(request.id, pid, info, errors)
        for end, reader in ((info, self._on_info), (errors, self._on_errors)):
            os.set_blocking(end, False)
            self._selector.register(end, selectors.EVENT_READ, partial(reader, child))

    def _child(
        self, request: StartRequest, labels: Mapping[str, str], stream: int, info: int, errors: int
    ) -> None:
        """Turn the calling process, a new one, into the sandbox, or write to its stderr why it cannot."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(stream, 0)
        os.dup2(stream, 1)
        os.dup2(errors, 2)
        try:
            records.write(self._records, request.id, labels, groups=self._groups.folders(request.id))
            become(
                request,
                bwrap=self._bwrap,
                uid=self._uid,
                groups=self._groups,
                filter_program=self._program,
                info=info,
            )
        except OSError as problem:
            os.write(2, str(problem).encode())

    def _on_info(self, child: _Child) -> None:
        """Read from bubblewrap the pid of the sandbox's first process."""
        data = _read(child.info)
        child.info_text += data or b""
        if not child.inner and b"}" in child.info_text:
            child.inner = json.loads(child.info_text)["child-pid"]
            self._starting.append(child)
        if data == b"":
            self._selector.unregister(child.info)

    def _on_errors(self, child: _Child) -> None:
        """Read what bubblewrap or the sandbox's first process writes to standard error."""
        data = _read(child.errors)
        child.error_text = (child.error_text + (data or b""))[-_MAX_REASON:]
        if data == b"":
            self._selector.unregister(child.errors)

    def _on_collect(self) -> None:
        """Reap children, and report the sandboxes that have ended.

        A sandbox has ended when both bubblewrap and the sandbox's first process have ended; if bubblewrap
        ends first, the launcher adopts the first process.
        """
        self._wake.recv(4096)
        ended: dict[int, int] = {}
        while found := _reaped():
            ended[found[0]] = found[1]
        for child in list(self._children.values()):
            if child.outer in ended:
                child.status = ended[child.outer]
                for end, reader in ((child.info, self._on_info), (child.errors, self._on_errors)):
                    if end in self._selector.get_map():
                        reader(child)
                child.inside = {child.inner} if child.inner else self._orphans()
                for pid in filter(_is_ours, child.inside):
                    _kill(pid)
            if child.status is not None and not any(map(_is_ours, child.inside)):
                self._over(child)

    def _orphans(self) -> set[int]:
        """Return our children other than bubblewrap.

        They are first processes of sandboxes whose bubblewrap was killed before it reported them.
        """
        known = {child.outer for child in self._children.values() if child.status is None}
        pids = map(int, filter(str.isdigit, os.listdir("/proc")))  # noqa: PTH208 - only names
        return {pid for pid in pids if pid not in known and _is_ours(pid)}

    def _over(self, child: _Child) -> None:
        del self._children[child.id]
        if child in self._starting:
            self._starting.remove(child)
            if not child.error_text.startswith(b"bwrap: "):  # its command ran, and ended before the next poll
                self._send({"started": child.id})
        for end in (child.info, child.errors):
            if end in self._selector.get_map():
                self._selector.unregister(end)
            os.close(end)
        if cgroups.remove(self._groups.folders(child.id), deadline_s=0.5):
            records.remove(self._records, child.id)  # else the reaper needs the record
        error = child.error_text.decode(errors="replace").strip()
        code = os.waitstatus_to_exitcode(child.status or 0)
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        self._send({"ended": child.id, "reason": f"{error} ({how})" if error else how})

    def _send(self, message: Mapping[str, object]) -> None:
        with suppress(OSError):  # the owner has ended, and so the loop is about to end
            self._control.send(json.dumps(message).encode())


def _read(descriptor: int) -> bytes | None:
    """Return the data that can be read now, ``b""`` at the end of the file, ``None`` if there is none yet."""
    try:
        return os.read(descriptor, 4096)
    except BlockingIOError:
        return None


def _reaped() -> tuple[int, int] | None:
    """Reap one child that has ended; return its pid and status, or ``None`` if there is no such child."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def _is_ours(pid: int) -> bool:
    """Whether a process is our child and not reaped yet; after that its pid may belong to another process."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _runs_another_program(pid: int, program: str) -> bool:
    """Whether a process that was started as ``program`` has executed another program since."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n") != Path(program).name[:15]
    except OSError:  # it has ended, which is reported elsewhere
        return False


def _kill(child: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def main() -> None:
    """Serve the socket that is standard input.

    Arguments: the owner's pid, the uid of sandboxes, the path of bubblewrap, the folder of records.
    """
    owner, uid, bwrap, folder = sys.argv[1:]
    with socket.socket(fileno=os.dup(0)) as control:
        LauncherServer(control, owner=int(owner), uid=int(uid), bwrap=bwrap, folder=Path(folder)).run()


if __name__ == "__main__":
    main()
