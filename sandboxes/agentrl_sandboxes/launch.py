"""The launcher: a small process that starts sandboxes, sees each one end, and leaves nothing when its owner is gone.

A trainer is a bad parent: it is large, has threads, and may be killed. So ``local`` runs one launcher and asks it, over a socket that is
the launcher's standard input, to start and stop sandboxes; what a sandbox says goes straight between it and the trainer. The launcher
adopts orphans (``PR_SET_CHILD_SUBREAPER``): a sandbox is over when both bubblewrap and its first process have been collected, and the
kernel lets the first process of a namespace go only after all others in it. When the owner's process ends, however it ends, the
launcher stops every sandbox and ends too. If the launcher itself is killed, the kernel kills every bubblewrap, which kills what is inside.

Messages are JSON, one per packet. To the launcher: ``{"start": {...}}`` with the descriptor of the sandbox's stream,
``{"stop": id}``. From it: ``{"ready": controllers}``, ``{"started": id}`` once its command runs, ``{"ended": id, "reason": text}``.

Runs as ``python -I -S``; nothing here imports more than the standard library.
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
from agentrl_sandboxes.confine import Order, become
from agentrl_sandboxes.seccomp import program

_PR_SET_CHILD_SUBREAPER = 36
MAX_MESSAGE = 1 << 18
WELL = "exit code 0"
"""The reason of a sandbox that ended by itself, without complaint."""
_MAX_REASON = 2000
_LOOK_S = 0.002


@dataclass(slots=True)
class _Child:
    """A sandbox: ``outer`` is bubblewrap, ``inner`` the first process inside, 0 until it is known."""

    id: str
    outer: int
    info: int
    errors: int
    inner: int = 0
    told: bytes = b""
    complaint: bytes = b""
    status: int | None = None
    inside: set[int] = field(default_factory=set)
    """What must be collected after bubblewrap."""


class Launcher:
    """Everything the launcher knows. One thread, one loop."""

    def __init__(self, control: socket.socket, *, owner: int, uid: int, bwrap: str, folder: Path) -> None:
        self._control, self._uid, self._bwrap, self._records = control, uid, bwrap, folder
        self._program = program()
        self._groups = cgroups.find()
        self._children: dict[str, _Child] = {}
        self._starting: list[_Child] = []
        """Those whose first process is still bubblewrap's, which does not die with its parent until it becomes the command."""
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
        """Serve until the owner is gone, then stop everything."""
        self._tell({"ready": sorted(self._groups.parents)})
        while self._open:
            self._turn()
        for gone in (self._control, self._owner):
            self._selector.unregister(gone)
        for child in self._children.values():
            _kill(child.outer)
        while self._children:
            self._turn()

    def _turn(self) -> None:
        for key, _ in self._selector.select(_LOOK_S if self._starting else None):
            if self._selector.get_map().get(key.fileobj) is key:  # else an earlier one of this turn closed it
                key.data()
        for child in [child for child in self._starting if _runs_another_program(child.inner, self._bwrap)]:
            self._starting.remove(child)
            self._tell({"started": child.id})

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
            # else its end was told already, on the way here: told twice, it would be taken for that of a next one of the same name
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _start(self, wanted: Mapping[str, Any], labels: Mapping[str, str], stream: int) -> None:
        order = Order(**wanted)
        pipes: list[int] = []
        try:
            pipes += os.pipe()
            pipes += os.pipe()
            pid = os.fork()
        except OSError as problem:
            for end in pipes:
                os.close(end)
            self._tell({"ended": order.id, "reason": f"the launcher could not start a process: {problem}"})
            return
        info, info_end, errors, errors_end = pipes
        if pid == 0:
            try:
                self._child(order, labels, stream, info_end, errors_end)
            finally:
                os._exit(1)
        os.close(info_end)
        os.close(errors_end)
        child = self._children[order.id] = _Child(order.id, pid, info, errors)
        for end, reader in ((info, self._on_info), (errors, self._on_errors)):
            os.set_blocking(end, False)
            self._selector.register(end, selectors.EVENT_READ, partial(reader, child))

    def _child(self, order: Order, labels: Mapping[str, str], stream: int, info: int, errors: int) -> None:
        """In the new process: become the sandbox, or say on standard error why not."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(stream, 0)
        os.dup2(stream, 1)
        os.dup2(errors, 2)
        try:
            records.write(self._records, order.id, labels, groups=self._groups.folders(order.id))
            become(
                order,
                bwrap=self._bwrap,
                uid=self._uid,
                groups=self._groups,
                filter_program=self._program,
                info=info,
            )
        except OSError as problem:
            os.write(2, str(problem).encode())

    def _on_info(self, child: _Child) -> None:
        """Bubblewrap says the number of the sandbox's first process."""
        data = _read(child.info)
        child.told += data or b""
        if not child.inner and b"}" in child.told:
            child.inner = json.loads(child.told)["child-pid"]
            self._starting.append(child)
        if data == b"":
            self._selector.unregister(child.info)

    def _on_errors(self, child: _Child) -> None:
        """Bubblewrap, or the sandbox's first process, complains."""
        data = _read(child.errors)
        child.complaint = (child.complaint + (data or b""))[-_MAX_REASON:]
        if data == b"":
            self._selector.unregister(child.errors)

    def _on_collect(self) -> None:
        """Collect what ended. A sandbox is over with bubblewrap and its first process, which becomes ours where bubblewrap went first."""
        self._wake.recv(4096)
        ended: dict[int, int] = {}
        while found := _collected():
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
        """Return our children that are no bubblewraps we started: first processes whose bubblewrap was killed before it named them."""
        known = {child.outer for child in self._children.values() if child.status is None}
        return {
            pid
            for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
            if pid not in known and _is_ours(pid)
        }  # noqa: PTH208

    def _over(self, child: _Child) -> None:
        del self._children[child.id]
        if child in self._starting:
            self._starting.remove(child)
            if not child.complaint.startswith(b"bwrap: "):  # its command ran, and ended before anybody looked
                self._tell({"started": child.id})
        for end in (child.info, child.errors):
            if end in self._selector.get_map():
                self._selector.unregister(end)
            os.close(end)
        if cgroups.remove(self._groups.folders(child.id), deadline_s=0.5):
            records.remove(self._records, child.id)  # else the reaper finds it there
        complaint = child.complaint.decode(errors="replace").strip()
        code = os.waitstatus_to_exitcode(child.status or 0)
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        self._tell({"ended": child.id, "reason": f"{complaint} ({how})" if complaint else how})

    def _tell(self, message: Mapping[str, object]) -> None:
        with suppress(OSError):  # the owner is gone: what follows is the end
            self._control.send(json.dumps(message).encode())


def _read(descriptor: int) -> bytes | None:
    """Return what there is, ``b""`` at the end, ``None`` where there is nothing yet."""
    try:
        return os.read(descriptor, 4096)
    except BlockingIOError:
        return None


def _collected() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def _is_ours(pid: int) -> bool:
    """Whether a process is our child, alive or not collected yet; only then does its number surely still mean it."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _runs_another_program(pid: int, program: str) -> bool:
    """Whether a process that was started as ``program`` runs another one by now."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n") != Path(program).name[:15]
    except OSError:  # it has ended, which is told elsewhere
        return False


def _kill(child: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def main() -> None:
    """Serve the socket that is standard input. Arguments: the owner's process, the uid for sandboxes, bubblewrap, the folder of records."""
    owner, uid, bwrap, folder = sys.argv[1:]
    with socket.socket(fileno=os.dup(0)) as control:
        Launcher(control, owner=int(owner), uid=int(uid), bwrap=bwrap, folder=Path(folder)).run()


if __name__ == "__main__":
    main()
