"""Folders as tar archives, in forks of the guest: those may wait, and may run out of memory, without anybody else noticing."""

from __future__ import annotations

import errno
import os
import resource
import stat

from agentrl_sandboxes.guest.channels import Channel
from agentrl_sandboxes.guest.files import open_regular
from agentrl_sandboxes.guest.light import dumps, loads, signal
from agentrl_sandboxes.guest.loop import Sink, Source
from agentrl_sandboxes.guest.processes import close_all_but, expendable, fork, patiently, raw
from agentrl_sandboxes.guest.wire import WINDOW

TYPE_CHECKING = False
if TYPE_CHECKING:
    import tarfile
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn  # Any: what JSON holds

MAX_MEMBERS = 1 << 18
MEMORY = 1 << 30
"""Address space of a fork, bytes: an archive's header may claim any length."""


class Worker(Channel):
    """A fork that moves data through a pipe, and then says how it went."""

    pid = 0

    def begin(self, work: Callable[[int], None], ours: int, theirs: int, timeout_s: float) -> None:
        """Start ``work(theirs)`` in a fork."""
        self.ours, self.said = ours, bytearray()
        listen, tell = os.pipe()
        try:
            self.pid = patiently(fork, self.guest.reap)
            if not self.pid:
                work_and_tell(work, theirs, tell)
        finally:
            os.close(tell)
            os.close(theirs)
        self.guest.supervisors.add(self.pid)
        self.told = Source(self.loop, listen, self.said.extend, self.over)
        self.loop.after(timeout_s, self.cancel)

    def over(self) -> None:
        """Answer, when it has said everything."""
        if self.said:
            self.finish(**loads(self.said.decode()))
        else:
            self.fail(OSError(errno.ENOMEM, "it took too much memory or time"))

    def cancel(self) -> None:
        """Kill it, if it is still at work."""
        if self.pid in self.guest.supervisors and self.told.fd >= 0:
            os.kill(self.pid, signal.SIGKILL)


def work_and_tell(work: Callable[[int], None], fd: int, tell: int) -> NoReturn:
    """Work in this process, which is a fork, and end it."""
    outcome: dict[str, Any] = {}
    try:
        close_all_but({fd, tell})
        expendable()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        work(fd)
    except MemoryError:
        outcome = {"errno": errno.ENOMEM, "error": os.strerror(errno.ENOMEM)}
    except Exception as problem:  # parsing an archive may raise anything; what the system says has a number
        if isinstance(problem, OSError) and problem.errno:
            outcome = {"errno": problem.errno, "error": problem.strerror or ""}
        else:
            outcome = {"invalid": (str(problem) or type(problem).__name__)[:1000]}
    finally:
        os.write(tell, dumps(outcome or {"done": True}).encode())
        os._exit(0)


class Put(Worker):
    """An archive, unpacked."""

    def open(self, path: str, timeout_s: float) -> None:
        """Start."""
        name = os.fsdecode(raw(path))
        theirs, ours = os.pipe()
        self.sink = Sink(self.loop, ours, self.credit)
        max_bytes = self.guest.disk_bytes
        self.begin(lambda fd: unpack(fd, name, max_bytes), ours, theirs, timeout_s)

    def data(self, body: bytes) -> None:
        """Pass it on."""
        self.sink.write(body)

    def end(self) -> None:
        """Pass on that there is no more."""
        self.sink.end()

    def over(self) -> None:
        """Answer."""
        self.sink.close()
        super().over()


class Get(Worker):
    """A file or folder, packed."""

    def open(self, path: str, max_bytes: int, timeout_s: float) -> None:
        """Start."""
        name = os.fsdecode(raw(path))
        ours, theirs = os.pipe()
        self.source = Source(self.loop, ours, self.pass_on, self.over)
        self.begin(lambda fd: pack(fd, name, max_bytes), ours, theirs, timeout_s)

    def pass_on(self, data: bytes) -> None:
        """Send it, and wait if there is much to send."""
        self.send(data)
        if self.guest.out.size > WINDOW:
            self.source.pause()
            self.guest.when_room(self.source.resume)

    def over(self) -> None:
        """Answer when both the archive and the fork have ended."""
        if self.source.fd < 0 and self.told.fd < 0:
            super().over()


def inside(base: str, name: str) -> str:
    """Return where a member belongs; through whatever links lie on the way, it must be below ``base``."""
    relative = os.path.normpath(name)
    parent = os.path.realpath(os.path.join(base, os.path.dirname(relative)))
    if (
        os.path.isabs(name)
        or relative.split("/")[0] == ".."
        or (parent + "/").find(base.rstrip("/") + "/") != 0
    ):
        raise ValueError(f"{name!r} would be outside the folder")
    return os.path.join(parent, os.path.basename(relative))


def unpack(fd: int, path: str, max_bytes: int) -> None:
    """Unpack an archive, in the order of its members; owners are not kept, and neither are set-user-id bits."""
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
            target = inside(base, member.name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if not (member.isdir() and os.path.isdir(target)) and os.path.lexists(target):
                os.unlink(target)
            if member.isdir():
                os.makedirs(target, exist_ok=True)
                folders.append((target, member))
            elif member.issym():
                os.symlink(member.linkname, target)
            elif member.islnk():
                os.link(inside(base, member.linkname), target, follow_symlinks=False)
            elif member.isreg():
                unpack_file(archive, member, target)
            else:
                raise ValueError(f"{member.name!r} is a device or a pipe")
        while file.read(1 << 16):  # what follows the end of the archive; whoever sends it shall not wait
            continue
    for target, member in reversed(folders):
        os.chmod(target, member.mode & 0o777)
        os.utime(target, (member.mtime, member.mtime))


def unpack_file(archive: tarfile.TarFile, member: tarfile.TarInfo, target: str) -> None:
    """Write one file."""
    with os.fdopen(
        os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb"
    ) as file:
        source = archive.extractfile(member)
        while source:
            data = source.read(1 << 18)
            if not data:
                break
            file.write(data)
    os.chmod(target, member.mode & 0o777)
    os.utime(target, (member.mtime, member.mtime))


def entries(top: str, name: str) -> Iterator[tuple[str, str]]:
    """Return the paths of a tree and their names in the archive, parents first, in the order of their names."""
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
    """Pack a file or a folder; pipes, sockets and devices in it are left out, and so are owners."""
    import tarfile

    top = os.path.realpath(path)
    if not os.path.isdir(path):
        os.close(open_regular(os.fsencode(path), os.O_RDONLY))
    name = os.path.basename(os.path.normpath(path))
    left = max_bytes
    with (
        os.fdopen(fd, "wb") as file,
        tarfile.open(fileobj=file, mode="w|", format=tarfile.GNU_FORMAT) as archive,
    ):
        for entry, inner in entries(
            top, name if name not in ("", ".", "..") else os.path.basename(top) or "."
        ):
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
