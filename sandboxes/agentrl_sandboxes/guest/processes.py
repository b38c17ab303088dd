"""Commands, the supervisors they run under, and killing whole trees of them.

A supervisor is a fork of the guest that is a child subreaper: whatever a command's children do (``setsid``, a double fork), they stay below
it while the command runs, so that its tree can be found and killed, and nothing else with it. A supervisor that is itself killed from
inside takes everything with it that no other one vouches for.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import resource
import select
import time

from agentrl_sandboxes.guest.light import signal
from agentrl_sandboxes.guest.wire import NUMBER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any, NoReturn  # Any: C has no types here

    from agentrl_sandboxes.guest.main import Guest

try:
    import ctypes

    LIBC: Any = ctypes.CDLL(None)
except (ImportError, OSError):  # a minimal Python: a tree is then held together by process 1 alone
    LIBC = None

M_MMAP_THRESHOLD = -3
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36
NOT_FOUND, NOT_RUN = 127, 126
ENVIRONMENT = {
    **{
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
    },
    **{"TERM": "dumb", "PAGER": "cat", "GIT_PAGER": "cat", "GIT_TERMINAL_PROMPT": "0"},
}


def raw(text: str) -> bytes:
    """Encode as the file system does; what cannot name anything is an ``OSError``."""
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise OSError(errno.EILSEQ, os.strerror(errno.EILSEQ)) from None
    if b"\0" in encoded:
        raise OSError(errno.EINVAL, "a NUL byte inside")
    return encoded


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process, where that can be done."""
    if LIBC:
        LIBC.prctl(option, value, 0, 0, 0)


def save_memory() -> None:
    """Give back what compiling took, and later large blocks as soon as they are free. There are many guests on a machine."""
    try:
        LIBC.mallopt(M_MMAP_THRESHOLD, 1 << 16)
        LIBC.malloc_trim(0)
    except AttributeError:  # no C library, or not the GNU one
        pass


def processes() -> dict[int, tuple[str, int, int]]:
    """Return what runs, as ``{pid: (state, parent, start time in ticks)}``."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                found[int(name)] = (fields[0].decode(), int(fields[1]), int(fields[19]))
            except (OSError, IndexError):  # it ended meanwhile
                continue
    return found


def below(roots: Iterable[int], since: int = 0) -> set[int]:
    """Return the processes below the ``roots`` that are not dead yet, without them; those only that started at tick ``since`` or later."""
    table, known = processes(), set(roots)
    found = set(known)
    while True:
        more = {pid for pid, (_, parent, _) in table.items() if parent in found} - found
        if not more:
            return {pid for pid in found - known if table[pid][0] not in "ZX" and table[pid][2] >= since}
        found |= more


def strike(pids: Iterable[int], number: int) -> None:
    """Send a signal to each that is still there, parents first as a rule: they shall not see what becomes of their children."""
    for pid in sorted(pids):
        try:
            os.kill(pid, number)
        except OSError:  # it ended meanwhile
            continue


def patiently(start: Callable[[], int], meanwhile: Callable[[], object] = lambda: None) -> int:
    """Start a process, a moment later if there are too many: some may have ended, and not have been taken away yet."""
    for _ in range(20):
        try:
            return start()
        except BlockingIOError:
            meanwhile()
            time.sleep(0.005)
    return start()


def fork() -> int:
    """Fork with every signal blocked in the child, which dies with its parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if not pid:
        signal.set_wakeup_fd(-1)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return pid


def close_all_but(keep: Iterable[int]) -> None:
    """Close every other file of this process."""
    for fd in {int(name) for name in os.listdir("/proc/self/fd")} - set(keep):
        try:
            os.close(fd)
        except OSError:  # the listing's own
            pass


def expendable() -> None:
    """Let the kernel end this process, and not the guest, when memory runs out."""
    prctl(
        PR_SET_DUMPABLE, 1
    )  # until then what is in /proc of it belongs to root, and this user need not be root
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")
    finally:
        prctl(PR_SET_DUMPABLE, 0)


class Command:
    """What to run, and with which files: ``{number inside: ours}``. With a terminal, that is its controlling one, and file 0."""

    def __init__(
        self, argv: Sequence[str], cwd: str, env: Mapping[str, str], files: dict[int, int], terminal: str = ""
    ) -> None:
        self.argv, self.cwd = [raw(word) for word in argv], raw(cwd)
        self.env = {raw(name): raw(value) for name, value in {**ENVIRONMENT, **os.environ, **env}.items()}
        self.files, self.terminal = files, terminal

    def supervise(self, control: int, num_files: int) -> NoReturn:
        """Run the command below this process, a fork, report its exit code, and stay until the guest has seen to what it leaves."""
        try:
            close_all_but({control, *self.files.values()})
            prctl(PR_SET_CHILD_SUBREAPER, 1)
            os.write(control, NUMBER.pack(self.wait(num_files)))
            os.read(control, 1)
        finally:
            os._exit(0)

    def wait(self, num_files: int) -> int:
        """Start the command and return its exit code; one that cannot be started says why on its stderr."""
        what = self.cwd
        try:
            actions = self.actions()
            expendable()
            os.umask(0o022)
            os.chdir(self.cwd)
            what = self.argv[0]
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_NOFILE, (num_files, num_files))
            child = patiently(lambda: self.spawn(actions))
        except OSError as problem:
            os.write(self.files[2], what + f": {problem.strerror}\n".encode())
            return (
                NOT_FOUND
                if what is not self.cwd and problem.errno in (errno.ENOENT, errno.ENOTDIR)
                else NOT_RUN
            )
        for fd in set(self.files.values()):
            os.close(fd)
        pid, status = 0, 0
        while pid != child:
            pid, status = os.waitpid(-1, 0)
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

    def actions(self) -> list[tuple[Any, ...]]:
        """Return how the new process makes its files out of ours, which are moved out of the way first."""
        above = (
            max(self.files) + 1
        )  # and not far above: the C library refuses to move files beyond a process's limit
        high = {target: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for target, fd in self.files.items()}
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in high.items()]
        if self.terminal:
            actions.append((os.POSIX_SPAWN_OPEN, 0, self.terminal, os.O_RDWR, 0))
        return actions

    def spawn(self, actions: list[tuple[Any, ...]]) -> int:
        """Start the program, wherever in ``PATH`` it is, and return its process id. Much faster than a fork."""
        name, problem = self.argv[0], OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        folders = [b""] if b"/" in name else self.env[b"PATH"].split(b":")
        defaults = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
        for folder in folders if name else ():
            path = os.path.join(folder, name)
            try:
                return os.posix_spawn(
                    path,
                    self.argv,
                    self.env,
                    file_actions=actions,
                    setsid=True,
                    setsigmask=(),
                    setsigdef=defaults,
                )
            except OSError as failed:
                if failed.errno not in (errno.ENOENT, errno.ENOTDIR):
                    problem = failed
                    if failed.errno != errno.EACCES:
                        break
        raise problem


class Process:
    """A command that runs under its supervisor; ``ended(exit code)`` is called once, when nothing of a killed one is left.

    What it leaves in the background lives on, unless it is ``whole``: then that is killed when it ends.
    """

    def __init__(
        self, guest: Guest, command: Command, ended: Callable[[int], object], whole: bool = False
    ) -> None:
        self.guest, self.ended, self.whole = guest, ended, whole
        self.code: int | None = None
        self.killing, self.num_killed = False, 0
        control, theirs = (end.detach() for end in _socket.socketpair())
        try:
            self.pid = patiently(fork, guest.reap)
            if not self.pid:
                command.supervise(theirs, guest.num_files)
        except OSError:
            os.close(control)
            raise
        finally:
            os.close(theirs)
        self.control = control
        guest.supervisors.add(self.pid)
        guest.loop.watch(control, select.EPOLLIN, self.told)

    def told(self) -> None:
        """Take the exit code from the supervisor, or see that it was killed."""
        told = os.read(self.control, NUMBER.size)
        self.guest.loop.watch(self.control, select.EPOLLIN, None)
        if told:
            self.code = NUMBER.unpack(told)[0]
            if self.whole:
                self.kill()
            self.release()
        else:
            self.code = -signal.SIGKILL
            self.killing = True
            self.guest.sweep(self.guest.strays, self.killed)

    def kill(self) -> None:
        """Kill the whole tree."""
        if not self.killing and self.control >= 0:
            self.killing = True
            self.guest.sweep(lambda: below([self.pid]), self.killed)

    def killed(self, num: int) -> None:
        """Go on once nothing of the tree is left."""
        self.killing, self.num_killed = False, self.num_killed + num
        self.guest.loop.after(
            0.0 if self.code is not None else 1.0, self.release
        )  # at once, or when its supervisor has seen it end

    def release(self) -> None:
        """Let the supervisor go, unless the tree is being killed."""
        if not self.killing and self.control >= 0:
            self.guest.loop.close(self.control)
            self.control = -1
            self.ended(-signal.SIGKILL if self.code is None else self.code)
