"""Packing and unpacking tar archives, in forks of the guest.

A fork may block, and may run out of memory, without disturbing the guest's other requests.
"""

from __future__ import annotations

import errno
import os
import resource
import stat

from agentrl_sandboxes.guest.files import open_regular
from agentrl_sandboxes.guest.light import dumps, loads, signal
from agentrl_sandboxes.guest.loop import PipeReader, PipeWriter
from agentrl_sandboxes.guest.processes import (
    close_all_but,
    fork,
    fs_encode,
    raise_oom_score,
    start_with_retries,
)
from agentrl_sandboxes.guest.server import Operation
from agentrl_sandboxes.guest.wire import WINDOW

TYPE_CHECKING = False
if TYPE_CHECKING:
    import tarfile
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn  # Any: what JSON holds

MAX_MEMBERS = 1 << 18
MEMORY = 1 << 30
"""Maximum address space of a fork, in bytes; needed because an archive's header may claim any length."""


class ForkedOperation(Operation):
    """An operation that a fork performs. It has a pipe for data, and another to report its outcome."""

    pid = 0

    def begin(self, work: Callable[[int], None], theirs: int, timeout_s: float) -> None:
        """Start ``work(theirs)`` in a fork."""
        self.report = bytearray()
        report, to_report = os.pipe()
        # read from before the fork, so that both pipes end and are closed if there can be no fork
        self.report_reader = PipeReader(self.loop, report, self.report.extend, self.over)
        try:
            self.pid = start_with_retries(fork, self.guest.reap)
            if not self.pid:
                work_and_report(work, theirs, to_report)
        finally:
            os.close(to_report)
            os.close(theirs)
        self.guest.supervisors.add(self.pid)
        self.loop.after(timeout_s, self.cancel)

    def over(self) -> None:
        """Send the outcome, now that the report is complete; a fork that was killed has written none."""
        if self.report:
            self.finish(**loads(self.report.decode()))
        else:
            self.fail(OSError(errno.ENOMEM, "it took too much memory or time"))

    def cancel(self) -> None:
        """Kill the fork, if it is still working."""
        if self.pid in self.guest.supervisors and self.report_reader.fd >= 0:
            os.kill(self.pid, signal.SIGKILL)


def work_and_report(work: Callable[[int], None], fd: int, to_report: int) -> NoReturn:
    """Do the work in this process, which is a fork, report the outcome and exit."""
    outcome: dict[str, Any] = {}
    try:
        close_all_but({fd, to_report})
        raise_oom_score()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        work(fd)
    except MemoryError:
        outcome = {"errno": errno.ENOMEM, "error": os.strerror(errno.ENOMEM)}
    except Exception as problem:  # parsing an archive may raise anything; errors of the system have a number
        if isinstance(problem, OSError) and problem.errno:
            outcome = {"errno": problem.errno, "error": problem.strerror or ""}
        else:
            outcome = {"invalid": (str(problem) or type(problem).__name__)[:1000]}
    finally:
        os.write(to_report, dumps(outcome or {"done": True}).encode())
        os._exit(0)


class PutTar(ForkedOperation):
    """Unpack an archive, which is the request's data."""

    def open(self, path: str, timeout_s: float) -> None:
        """Start the fork."""
        name = os.fsdecode(fs_encode(path))
        theirs, ours = os.pipe()
        self.writer = PipeWriter(self.loop, ours, self.credit)
        max_bytes = self.guest.disk_bytes
        self.begin(lambda fd: unpack(fd, name, max_bytes), theirs, timeout_s)

    def data(self, body: bytes) -> None:
        """Pass data to the fork."""
        self.writer.write(body)

    def end(self) -> None:
        """Close the pipe to the fork once everything is written."""
        self.writer.end()

    def over(self) -> None:
        """Send the outcome, after closing the pipe to the fork."""
        self.writer.close()
        super().over()


class GetTar(ForkedOperation):
    """Pack a file or folder, and send the archive."""

    def open(self, path: str, max_bytes: int, timeout_s: float) -> None:
        """Start the fork."""
        name = os.fsdecode(fs_encode(path))
        ours, theirs = os.pipe()
        self.reader = PipeReader(self.loop, ours, self.pass_on, self.over)
        self.begin(lambda fd: pack(fd, name, max_bytes), theirs, timeout_s)

    def pass_on(self, data: bytes) -> None:
        """Send data, and stop reading while more than a window of it waits to be sent."""
        self.send(data)
        if self.guest.writer.size > WINDOW:
            self.reader.pause()
            self.guest.when_room(self.reader.resume)

    def over(self) -> None:
        """Send the outcome at the second call: it is called at the end of the archive and of the report."""
        if self.reader.fd < 0 and self.report_reader.fd < 0:
            super().over()


def member_path(base: str, name: str) -> str:
    """Return where a member is written; after resolving all links on the way, that must be below ``base``."""
    relative = os.path.normpath(name)
    parent = os.path.realpath(os.path.join(base, os.path.dirname(relative)))
    below = (parent + "/").startswith(base.rstrip("/") + "/")
    if os.path.isabs(name) or relative.split("/")[0] == ".." or not below:
        raise ValueError(f"{name!r} would be outside the folder")
    return os.path.join(parent, os.path.basename(relative))


def unpack(fd: int, path: str, max_bytes: int) -> None:
    """Unpack an archive, in the order of its members. Owners and set-user-id bits are dropped."""
    import tarfile

    os.makedirs(path, exist_ok=True)
    base, left, folders = os.path.realpath(path), max_bytes, []
    with os.fdopen(fd, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as archive:
        for number, member in enumerate(archive):
            left -= max(member.size, 0)
            if left < 0 or number >= MAX_MEMBERS:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if os.path.normpath(member.name) == ".":
                continue
            target = member_path(base, member.name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if not (member.isdir() and os.path.isdir(target)) and os.path.lexists(target):
                os.unlink(target)
            if member.isdir():
                os.makedirs(target, exist_ok=True)
                folders.append((target, member))
            elif member.issym():
                os.symlink(member.linkname, target)
            elif member.islnk():
                os.link(member_path(base, member.linkname), target, follow_symlinks=False)
            elif member.isreg():
                unpack_file(archive, member, target)
            else:
                raise ValueError(f"{member.name!r} is a device or a pipe")
        while file.read(1 << 16):  # bytes behind the end of the archive, so that their sender does not block
            continue
    for target, member in reversed(folders):
        os.chmod(target, member.mode & 0o777)
        os.utime(target, (member.mtime, member.mtime))


def unpack_file(archive: tarfile.TarFile, member: tarfile.TarInfo, target: str) -> None:
    """Write the content of one member, a regular file, to ``target``."""
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        source = archive.extractfile(member)
        while source:
            data = source.read(1 << 18)
            if not data:
                break
            file.write(data)
    os.chmod(target, member.mode & 0o777)
    os.utime(target, (member.mtime, member.mtime))


def entries(top: str, name: str) -> Iterator[tuple[str, str]]:
    """Yield the paths of a tree and their names in the archive: parents first, siblings sorted by name."""
    waiting = [(top, name)]
    while waiting:
        path, name = waiting.pop()
        yield path, name
        if os.path.isdir(path) and not os.path.islink(path):
            waiting += [
                (os.path.join(path, entry), os.path.join(name, entry))
                for entry in sorted(os.listdir(path), reverse=True)
            ]


def pack(fd: int, path: str, max_bytes: int) -> None:
    """Pack a file or a folder, without owners, and without the pipes, sockets and devices in it."""
    import tarfile

    top = os.path.realpath(path)
    if not os.path.isdir(path):
        os.close(open_regular(os.fsencode(path), os.O_RDONLY))
    name = os.path.basename(os.path.normpath(path))
    if name in ("", ".", ".."):
        name = os.path.basename(top) or "."
    left, file = max_bytes, os.fdopen(fd, "wb")
    with file, tarfile.open(fileobj=file, mode="w|", format=tarfile.GNU_FORMAT) as archive:
        for entry, inner in entries(top, name):
            info = archive.gettarinfo(entry, inner)
            kind = os.lstat(entry).st_mode
            if info is None or not (stat.S_ISREG(kind) or stat.S_ISDIR(kind) or stat.S_ISLNK(kind)):
                continue
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            left -= tarfile.BLOCKSIZE + info.size
            if left < 0:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            if info.isreg():
                with os.fdopen(open_regular(os.fsencode(entry), os.O_RDONLY), "rb") as content:
                    archive.addfile(info, content)
            else:
                archive.addfile(info)
