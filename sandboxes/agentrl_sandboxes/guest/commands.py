"""Commands, the supervisors that they run under, and killing whole process trees.

A supervisor is a fork of the guest that is a child subreaper: whatever a command's children do (``setsid``, a
double fork), they stay below their supervisor while the command runs. So its process tree can be found and
killed, and no other. When a supervisor is itself killed from inside, the guest kills every process that is
below no other supervisor.
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
from agentrl_sandboxes.guest.loop import Capture, PipeReader, PipeWriter
from agentrl_sandboxes.guest.processes import (
    PR_SET_CHILD_SUBREAPER,
    close_all_but,
    descendants,
    fork,
    fs_encode,
    prctl,
    raise_oom_score,
    start_with_retries,
)
from agentrl_sandboxes.guest.server import Guest, Operation
from agentrl_sandboxes.guest.wire import NUMBER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn  # Any: the entries of posix_spawn's file actions

NOT_FOUND, NOT_RUN = 127, 126
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "PAGER": "cat",
    "GIT_PAGER": "cat",
    "GIT_TERMINAL_PROMPT": "0",
}


class Command:
    """A program to run.

    ``files`` has, for each file descriptor that the program gets, the guest's descriptor that becomes it. A
    ``terminal``, if given, is the program's controlling terminal and its file descriptor 0.
    """

    def __init__(
        self, argv: Sequence[str], cwd: str, env: Mapping[str, str], files: dict[int, int], terminal: str = ""
    ) -> None:
        self.argv, self.cwd = [fs_encode(word) for word in argv], fs_encode(cwd)
        self.env = {
            fs_encode(name): fs_encode(value) for name, value in {**ENVIRONMENT, **os.environ, **env}.items()
        }
        self.files, self.terminal = files, terminal

    def supervise(self, control: int, num_files: int) -> NoReturn:
        """Run the command as a child of this process, a supervisor, and report its exit code.

        The supervisor stays, as the parent of the processes that the command leaves behind, until the guest
        closes ``control``.
        """
        try:
            close_all_but({control, *self.files.values()})
            prctl(PR_SET_CHILD_SUBREAPER, 1)
            os.write(control, NUMBER.pack(self.wait(num_files)))
            os.read(control, 1)
        finally:
            os._exit(0)

    def wait(self, num_files: int) -> int:
        """Run the command and return its exit code; if it cannot start, write the reason to its stderr."""
        what = self.cwd
        try:
            actions = self.actions()
            raise_oom_score()
            os.umask(0o022)
            os.chdir(self.cwd)
            what = self.argv[0]
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_NOFILE, (num_files, num_files))
            child = start_with_retries(lambda: self.spawn(actions))
        except OSError as problem:
            os.write(self.files[2], what + f": {problem.strerror}\n".encode())
            missing = what is not self.cwd and problem.errno in (errno.ENOENT, errno.ENOTDIR)
            return NOT_FOUND if missing else NOT_RUN
        for fd in set(self.files.values()):
            os.close(fd)
        pid, status = 0, 0
        while pid != child:
            pid, status = os.waitpid(-1, 0)
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

    def actions(self) -> list[tuple[Any, ...]]:
        """Return the file actions that give the new process its file descriptors.

        The guest's descriptors are first duplicated to higher numbers, so that none of them is overwritten.
        """
        # not far above: the C library refuses to move descriptors beyond a process's limit
        above = max(self.files) + 1
        high = {target: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for target, fd in self.files.items()}
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in high.items()]
        if self.terminal:
            actions.append((os.POSIX_SPAWN_OPEN, 0, self.terminal, os.O_RDWR, 0))
        return actions

    def spawn(self, actions: list[tuple[Any, ...]]) -> int:
        """Find the program in ``PATH``, start it, and return its process id.

        ``posix_spawn`` is much faster than a fork.
        """
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


class RunningCommand:
    """A command under its supervisor.

    ``ended`` is called once, with the exit code; if the command was killed, after its whole process tree is
    gone. Processes that the command leaves in the background live on, unless ``whole`` is set: then they are
    killed when the command ends.
    """

    def __init__(
        self, guest: Guest, command: Command, ended: Callable[[int], object], whole: bool = False
    ) -> None:
        self.guest, self.ended, self.whole = guest, ended, whole
        self.code: int | None = None
        self.killing, self.num_killed = False, 0
        control, theirs = (end.detach() for end in _socket.socketpair())
        try:
            self.pid = start_with_retries(fork, guest.reap)
            if not self.pid:
                command.supervise(theirs, guest.num_files)
        except OSError:
            os.close(control)
            raise
        finally:
            os.close(theirs)
        self.control = control
        guest.supervisors.add(self.pid)
        guest.loop.watch(control, select.EPOLLIN, self.reported)

    def reported(self) -> None:
        """Read the exit code from the supervisor; an end of file means that the supervisor was killed."""
        report = os.read(self.control, NUMBER.size)
        self.guest.loop.watch(self.control, select.EPOLLIN, None)
        if report:
            self.code = NUMBER.unpack(report)[0]
            if self.whole:
                self.kill()
            self.release()
        else:
            self.code = -signal.SIGKILL
            self.killing = True
            # a process that exits closes its files before its children get a new parent: until then they are
            # still below it
            self.guest.supervisors.discard(self.pid)
            self.guest.sweep(lambda: self.guest.strays() - {self.pid}, self.killed)

    def kill(self) -> None:
        """Kill the command's whole process tree."""
        if not self.killing and self.control >= 0:
            self.killing = True
            self.guest.sweep(lambda: descendants([self.pid]), self.killed)

    def killed(self, num: int) -> None:
        """Release the supervisor, whose tree is gone: at once if it has reported, else in a second.

        ``num`` is the number of processes that were killed.
        """
        self.killing, self.num_killed = False, self.num_killed + num
        self.guest.loop.after(0.0 if self.code is not None else 1.0, self.release)

    def release(self) -> None:
        """Let the supervisor exit, unless its process tree is still being killed."""
        if not self.killing and self.control >= 0:
            self.guest.loop.close(self.control)
            self.control = -1
            self.ended(-signal.SIGKILL if self.code is None else self.code)


class Exec(Operation):
    """Run a command with its input, and return the part of its output that is kept."""

    process: RunningCommand | None = None
    timed_out = False

    def open(self, argv: list[str], cwd: str, env: dict[str, str], timeout_s: float, max_output: int) -> None:
        """Start the command."""
        self.started = time.monotonic()
        pipes = [os.pipe() for _ in range(3)]
        (stdin, feed), (out, stdout), (err, stderr) = pipes
        self.stdin = PipeWriter(self.loop, feed, self.credit)
        self.captures = [Capture(max_output), Capture(max_output)]
        self.readers = [
            PipeReader(self.loop, fd, capture.add) for fd, capture in zip((out, err), self.captures)
        ]
        try:
            command = Command(argv, cwd or self.guest.workdir, env, {0: stdin, 1: stdout, 2: stderr})
            self.process = RunningCommand(self.guest, command, self.ended)
        except OSError as problem:  # the command cannot be run, and that is its result
            self.captures[1].add(f"cannot start: {problem.strerror}\n".encode())
            self.ended(NOT_RUN)
        finally:
            for fd in (stdin, stdout, stderr):
                os.close(fd)
        self.loop.after(timeout_s, self.overdue)

    def data(self, body: bytes) -> None:
        """Write to the command's standard input."""
        self.stdin.write(body)

    def end(self) -> None:
        """Close the command's standard input."""
        self.stdin.end()

    def overdue(self) -> None:
        """Kill the command at its deadline, unless it has already ended."""
        if self.process and self.process.code is None and self.number in self.guest.channels:
            self.timed_out = True
            self.process.kill()

    def cancel(self) -> None:
        """Kill the command."""
        if self.process:
            self.process.kill()

    def ended(self, code: int) -> None:
        """Send the result of the command, which has ended with exit code ``code``."""
        self.stdin.close()
        for reader in self.readers:
            reader.drain()
            reader.ignore()
        kept = [capture.kept() for capture in self.captures]
        if self.number in self.guest.channels:
            self.send(kept[0] + kept[1])
        self.finish(
            code=-signal.SIGKILL if self.timed_out else code,
            length=len(kept[0]),
            totals=[capture.total for capture in self.captures],
            timed_out=self.timed_out,
            duration_s=time.monotonic() - self.started,
            num_killed=self.process.num_killed if self.process else 0,
        )


class KillAll(Operation):
    """Kill every process except the guest and its supervisors."""

    def open(self) -> None:
        """Start to kill; send the number of killed processes when no process is left."""
        self.guest.sweep(self.guest.everything, lambda num: self.finish(num=num))
