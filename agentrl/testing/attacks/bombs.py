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
"""How far over its limit a bomb goes before it ends by itself."""
MIB = 1 << 20
CHUNK = 8 * MIB
HOARD_S = 20.0
"""The longest that children may take to take their memory."""
MORE, ALL, HERE = b"+", b".", b"!"


def raise_limits(canary: Canary) -> None:
    """Ask for more files, processes and priority than were given."""
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
    """Ask the kernel never to kill this process for memory; and take it back."""
    with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
        before = file.read()
        file.write(b"-1000")
        file.write(before)


def fork_bomb(canary: Canary) -> None:
    """Make processes, and then threads, until no more can be made."""
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
    """Make processes that make processes, for ever; run only where the bounded one was stopped, and inside an outer group."""
    say("start", False, "it does not end by itself")
    while True:
        with suppress(OSError):
            os.fork()


def memory_bomb(canary: Canary) -> None:
    """Take memory in one process, then in several that each stay below the limit."""
    limit = canary["memory_mib"] * MIB
    one = held_by([TIMES * limit])
    say("one process", one > 1.1 * limit, f"held {one // MIB} MiB of {limit // MIB}")
    several = held_by([limit // 2] * 6)
    say("several processes", several > 1.1 * limit, f"held {several // MIB} MiB of {limit // MIB} together")


def held_by(sizes: list[int]) -> int:
    """Have one child for each size take that much memory; return the most bytes that one held, or that all still alive at the end did.

    What children held at different moments is not summed: one that is being killed has given its memory back before its parent hears of it.

    Raises:
        TimeoutError: some neither took their memory nor died in time, so that what was held cannot be told.
    """
    children = [Hoard(size) for size in sizes]
    until = time.monotonic() + HOARD_S
    try:
        while growing := [child for child in children if child.growing]:
            ready, _, _ = select.select(growing, [], [], max(until - time.monotonic(), 0.0))
            if not ready:
                raise TimeoutError(
                    f"{len(growing)} of {len(children)} children neither took their memory nor died within {HOARD_S:g} s"
                )
            for child in ready:
                child.hear()
        together = sum(child.held for child in children if child.answers())
    finally:
        for child in children:
            child.end()
    return max(together, *(child.held for child in children))


class Hoard:
    """A child that takes ``size`` bytes and keeps them until its end."""

    def __init__(self, size: int) -> None:
        self.held, self.growing = 0, True
        self._told, told = os.pipe()
        asked, self._ask = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._ask)
            hoard(size, told, asked)
        os.close(told)
        os.close(asked)

    def fileno(self) -> int:
        """Return the end at which it is heard, for ``select``."""
        return self._told

    def hear(self) -> bytes:
        """Wait for what the child tells next, and return it; nothing at its death."""
        heard = os.read(self._told, 1 << 16)
        self.held += CHUNK * heard.count(MORE)
        self.growing = self.growing and bool(heard) and ALL not in heard
        return heard

    def answers(self) -> bool:
        """Return whether a child that has ended growing is alive."""
        with suppress(BrokenPipeError):
            os.write(self._ask, HERE)
            return bool(select.select([self], [], [], HOARD_S)[0]) and HERE in self.hear()
        return False

    def end(self) -> None:
        """Kill the child."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._told)
        os.close(self._ask)


def hoard(size: int, told: int, asked: int) -> None:
    """Take memory and tell of each chunk and of the end, answer when asked, and stay until killed."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # to be killed before the process that reports
    kept = []
    with suppress(OSError, MemoryError):
        for _ in range(size // CHUNK):
            kept.append(bytearray(os.urandom(4096)) * (CHUNK // 4096))
            os.write(told, MORE)
    with suppress(OSError):
        os.write(told, ALL)
        while answer := os.read(asked, 1):
            os.write(told, answer)
    os._exit(0)


def disk_fill(canary: Canary) -> None:
    """Write wherever one may, until no more can be written."""
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
        after.write("there is room again")


def file_bomb(canary: Canary) -> None:
    """Open files until no more may be."""
    limit = canary["num_files"]
    files: list[int] = []
    with suppress(OSError):
        while len(files) < TIMES * limit:
            files.append(os.open("/dev/null", os.O_RDONLY))
    say("open files", len(files) > limit, f"{len(files)} files open, of {limit}")
    for file in files:
        os.close(file)


def output_flood(canary: Canary) -> None:
    """Write much more output than anybody asked for, on both streams."""
    say("flood", False, "it is counted outside")
    chunk = b"x" * (MIB - 1) + b"\n"
    for _ in range(canary["flood_mib"]):
        write_all(1, chunk)
        write_all(2, chunk)
    say("end", False, "all was taken")


def endless_flood(canary: Canary) -> None:
    """Write output for ever."""
    while True:
        write_all(1, b"y\n" * 4096)


def write_all(file: int, data: bytes) -> None:
    """Write all of ``data``."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def ignore_signals(canary: Canary) -> None:
    """Go on whatever is asked, in several sessions."""
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
    """Leave a child behind that nothing connects to its maker, and stay away from its end."""
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
    """Do the same, and be there until the deadline."""
    daemonise(canary)
    time.sleep(3600)


def look_for_leftovers(canary: Canary) -> None:
    """Find what an earlier attack should have lost."""
    time.sleep(0.2)
    left = [pid for pid, line in processes() if canary["token"].encode() in line]
    say("processes of the attack that are left", left, left)


def kill_the_helper(canary: Canary) -> None:
    """Stop, and then kill, the sandbox's own first program, and everything else there is."""
    for pid in {1, os.getppid()}:
        for number in (signal.SIGSTOP, signal.SIGSEGV, signal.SIGTERM, signal.SIGKILL):
            with suppress(OSError):
                os.kill(pid, number)
    with suppress(OSError):
        os.kill(-1, signal.SIGKILL)
    say("kill", False, "everything was tried")


def unpack_a_bomb(canary: Canary) -> None:
    """Unpack a small archive of much nothing, as the tools of a task would."""
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
