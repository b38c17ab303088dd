"""Attempts to use up, outlive or break the sandbox: each must be contained."""

from __future__ import annotations

import os
import resource
import select
import signal
import threading
import time
from contextlib import suppress

from agentrl.testing.attacks import Canary, attempt, processes, say

TIMES = 4
"""Multiple of its limit at which a bomb ends by itself."""
MIB = 1 << 20
CHUNK = 8 * MIB
HOARD_S = 20.0
"""Maximum time in which children must have allocated their memory."""
MORE, ALL, HERE = b"+", b".", b"!"


def raise_limits(canary: Canary) -> None:
    """Try to raise the limits on files and processes, and the priority."""
    for name in ("RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_MEMLOCK", "RLIMIT_CORE", "RLIMIT_RTPRIO"):
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            attempt(f"raise {name} from {hard}", resource.setrlimit, kind, (hard + 1, hard + 1))
    attempt("raise its priority", os.setpriority, os.PRIO_PROCESS, 0, -5)
    attempt("run in real time", os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))
    attempt("never be killed for memory", spare_me)
    file_bomb(canary)


def spare_me() -> None:
    """Tell the kernel never to kill this process when memory runs out; then restore the value."""
    with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
        before = file.read()
        file.write(b"-1000")
        file.write(before)


def fork_bomb(canary: Canary) -> None:
    """Start processes, and then threads, until no more can be started."""
    limit = canary["num_processes"]
    children: list[int] = []
    with suppress(OSError):
        while len(children) < TIMES * limit:
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            children.append(pid)
    say("fork", len(children) > limit, f"{len(children)} processes made, of {limit}")
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    for pid in children:
        os.waitpid(pid, 0)
    num_threads, over = 0, threading.Event()
    with suppress(RuntimeError):
        while num_threads < TIMES * limit:
            threading.Thread(target=over.wait, daemon=True).start()
            num_threads += 1
    over.set()
    say("threads", num_threads > limit, f"{num_threads} threads made, of {limit}")


def real_fork_bomb(canary: Canary) -> None:
    """Start processes that start processes, for ever.

    It is run only if the bomb with a bound was stopped, and inside an outer control group.
    """
    say("start", False, "it does not end by itself")
    while True:
        with suppress(OSError):
            os.fork()


def memory_bomb(canary: Canary) -> None:
    """Allocate memory in one process, then in several that each stay below the limit."""
    limit = canary["memory_mib"] * MIB
    one = held_by([TIMES * limit])
    say("one process", one > 1.1 * limit, f"held {one // MIB} MiB of {limit // MIB}")
    several = held_by([limit // 2] * 6)
    say("several processes", several > 1.1 * limit, f"held {several // MIB} MiB of {limit // MIB} together")


def held_by(sizes: list[int]) -> int:
    """Let a child allocate each of ``sizes``; return the maximum number of bytes held at the same time.

    It is held by one child, or by all that live at the end. What children held at different times is not
    added up: a child that is being killed has freed its memory before its parent notices.

    Raises:
        TimeoutError: a child neither allocated its memory nor died in time, so that the result is unknown.
    """
    children = [Hoard(size) for size in sizes]
    until = time.monotonic() + HOARD_S
    try:
        while growing := [child for child in children if child.growing]:
            ready, _, _ = select.select(growing, [], [], max(until - time.monotonic(), 0.0))
            if not ready:
                raise TimeoutError(
                    f"{len(growing)} of {len(children)} children neither allocated their memory "
                    f"nor died within {HOARD_S:g} s"
                )
            for child in ready:
                child.read()
        together = sum(child.held for child in children if child.answers())
    finally:
        for child in children:
            child.end()
    return max(together, *(child.held for child in children))


class Hoard:
    """A child process that allocates ``size`` bytes and keeps them until it is killed."""

    def __init__(self, size: int) -> None:
        self.held, self.growing = 0, True
        self._reports, reports = os.pipe()
        questions, self._questions = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._questions)
            hoard(size, reports, questions)
        os.close(reports)
        os.close(questions)

    def fileno(self) -> int:
        """Return the pipe from which the child's reports are read, for ``select``."""
        return self._reports

    def read(self) -> bytes:
        """Wait for the child's next reports and return them; empty if it has died."""
        reports = os.read(self._reports, 1 << 16)
        self.held += CHUNK * reports.count(MORE)
        self.growing = self.growing and bool(reports) and ALL not in reports
        return reports

    def answers(self) -> bool:
        """Return whether the child, which has allocated all its memory, is still alive."""
        with suppress(BrokenPipeError):
            os.write(self._questions, HERE)
            return bool(select.select([self], [], [], HOARD_S)[0]) and HERE in self.read()
        return False

    def end(self) -> None:
        """Kill the child."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._reports)
        os.close(self._questions)


def hoard(size: int, reports: int, questions: int) -> None:
    """Allocate ``size`` bytes, report each chunk and the end, echo questions, and stay until killed."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # to be killed before the parent
    kept = []
    with suppress(OSError, MemoryError):
        for _ in range(size // CHUNK):
            kept.append(bytearray(os.urandom(4096)) * (CHUNK // 4096))
            os.write(reports, MORE)
    with suppress(OSError):
        os.write(reports, ALL)
        while question := os.read(questions, 1):
            os.write(reports, question)
    os._exit(0)


def disk_fill(canary: Canary) -> None:
    """Write to all writable folders until no more can be written."""
    limit, written, chunk = canary["disk_mib"] * MIB, 0, os.urandom(MIB)
    places = {
        os.getcwd(),
        "/tmp",
        "/var/tmp",
        "/dev/shm",
        "/run",
        "/root",
        "/home",
        "/",
        "/dev",
        "/mnt",
        "/opt",
        "/usr",
        "/etc",
        "/var",
    }
    for place in sorted(places):
        name = os.path.join(place, "filling")
        with suppress(OSError), open(name, "wb", buffering=0) as file:
            while written < TIMES * limit:
                written += file.write(chunk)
    say("fill", written > 1.1 * limit, f"{written / MIB:.0f} MiB written, of {limit // MIB}")
    for place in places:
        with suppress(OSError):
            os.remove(os.path.join(place, "filling"))
    with open("after", "w") as after:
        after.write("there is room again")  # fails if deleting has not made room


def file_bomb(canary: Canary) -> None:
    """Open files until no more can be opened."""
    limit = canary["num_files"]
    files: list[int] = []
    with suppress(OSError):
        while len(files) < TIMES * limit:
            files.append(os.open("/dev/null", os.O_RDONLY))
    say("open files", len(files) > limit, f"{len(files)} files open, of {limit}")
    for file in files:
        os.close(file)


def output_flood(canary: Canary) -> None:
    """Write much more output than is kept, to both streams."""
    say("flood", False, "it is counted outside")
    chunk = b"x" * (MIB - 1) + b"\n"
    for _ in range(canary["flood_mib"]):
        write_all(1, chunk)
        write_all(2, chunk)
    say("end", False, "all was written")


def endless_flood(canary: Canary) -> None:
    """Write output for ever."""
    while True:
        write_all(1, b"y\n" * 4096)


def write_all(file: int, data: bytes) -> None:
    """Write all of ``data`` to a file descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def ignore_signals(canary: Canary) -> None:
    """Run on in several sessions, and ignore all signals."""
    say("ignore", False, "signals are ignored")
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        with suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", [canary["token"], "3600"])
    while True:
        time.sleep(1)


def daemonise(canary: Canary) -> None:
    """Leave a daemon behind that ignores all signals and has no tie to its parent."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
                with suppress(OSError, ValueError):
                    signal.signal(number, signal.SIG_IGN)
            os.chdir("/")
            os.closerange(0, 64)
            os.execvp("sleep", [canary["token"], "3600"])
        os._exit(0)
    say("daemonise", False, "left to run")


def daemonise_and_wait(canary: Canary) -> None:
    """Leave a daemon behind, and run until the deadline."""
    daemonise(canary)
    time.sleep(3600)


def look_for_leftovers(canary: Canary) -> None:
    """Look for processes of an earlier attack that should be gone."""
    time.sleep(0.2)
    left = [pid for pid, line in processes() if canary["token"].encode() in line]
    say("processes of the attack that are left", left, left)


def kill_the_guest(canary: Canary) -> None:
    """Stop and then kill the sandbox's own first process, and everything else."""
    for pid in {1, os.getppid()}:
        for number in (signal.SIGSTOP, signal.SIGSEGV, signal.SIGTERM, signal.SIGKILL):
            with suppress(OSError):
                os.kill(pid, number)
    with suppress(OSError):
        os.kill(-1, signal.SIGKILL)
    say("kill", False, "everything was tried")


def unpack_a_bomb(canary: Canary) -> None:
    """Unpack a small archive of many zero bytes, as the tools of a task would."""
    import zipfile

    with zipfile.ZipFile("bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for index in range(TIMES):
            with archive.open(f"zeros-{index}", "w") as member:
                for _ in range(canary["disk_mib"]):
                    member.write(bytes(MIB))
    unpacked = 0
    with suppress(OSError), zipfile.ZipFile("bomb.zip") as archive:
        for name in archive.namelist():
            with archive.open(name) as member, open(name, "wb", buffering=0) as file:
                while chunk := member.read(MIB):
                    unpacked += file.write(chunk)
    limit = canary["disk_mib"] * MIB
    say("unpack", unpacked > 1.1 * limit, f"{unpacked / MIB:.0f} MiB unpacked, of {limit // MIB}")
