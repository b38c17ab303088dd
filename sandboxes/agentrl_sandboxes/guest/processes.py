"""Processes: listing, signalling and forking them. Nothing here depends on the guest's requests."""

from __future__ import annotations

import errno
import os
import time

from agentrl_sandboxes.guest.light import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any  # C functions have no types here

try:
    import ctypes

    LIBC: Any = ctypes.CDLL(None)
except (ImportError, OSError):  # a minimal Python: then only process 1 adopts orphans
    LIBC = None

M_MMAP_THRESHOLD = -3
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36


def fs_encode(text: str) -> bytes:
    """Encode text as file names are; raise ``OSError`` for text that no file name or argument can hold."""
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise OSError(errno.EILSEQ, os.strerror(errno.EILSEQ)) from None
    if b"\0" in encoded:
        raise OSError(errno.EINVAL, "a NUL byte inside")
    return encoded


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process; without a C library this does nothing."""
    if LIBC:
        LIBC.prctl(option, value, 0, 0, 0)


def save_memory() -> None:
    """Free the memory that compiling took, and let later large blocks be freed at once.

    A machine may run many guests.
    """
    try:
        LIBC.mallopt(M_MMAP_THRESHOLD, 1 << 16)
        LIBC.malloc_trim(0)
    except AttributeError:  # no C library, or one other than the GNU C library
        pass


def processes() -> dict[int, tuple[str, int, int]]:
    """Return all processes, as ``{pid: (state, parent, start time in ticks)}``."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                found[int(name)] = (fields[0].decode(), int(fields[1]), int(fields[19]))
            except (OSError, IndexError):  # it has ended meanwhile
                continue
    return found


def descendants(roots: Iterable[int], since: int = 0) -> set[int]:
    """Return the live descendants of ``roots`` (without these) that started at tick ``since`` or later."""
    table, known = processes(), set(roots)
    found = set(known)
    while True:
        more = {pid for pid, (_, parent, _) in table.items() if parent in found} - found
        if not more:
            return {pid for pid in found - known if table[pid][0] not in "ZX" and table[pid][2] >= since}
        found |= more


def signal_all(pids: Iterable[int], number: int) -> None:
    """Send a signal to each process that still exists.

    They are signalled in the order of process ids, so that parents usually come first and cannot react to
    the end of their children.
    """
    for pid in sorted(pids):
        try:
            os.kill(pid, number)
        except OSError:  # it has ended meanwhile
            continue


def start_with_retries(start: Callable[[], int], meanwhile: Callable[[], object] = lambda: None) -> int:
    """Call ``start``, and retry for a moment when the limit on processes is reached.

    Some of the processes that count towards the limit may have ended without having been reaped yet;
    ``meanwhile`` may reap them.
    """
    for _ in range(20):
        try:
            return start()
        except BlockingIOError:
            meanwhile()
            time.sleep(0.005)
    return start()


def fork() -> int:
    """Fork a child that has every signal blocked and dies with its parent."""
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
    """Close every file descriptor of this process that is not in ``keep``."""
    for fd in {int(name) for name in os.listdir("/proc/self/fd")} - set(keep):
        try:
            os.close(fd)
        except OSError:  # the descriptor of the listing itself
            pass


def raise_oom_score() -> None:
    """Make the kernel kill this process, and not the guest, when memory runs out."""
    # while a process is not dumpable its files in /proc belong to root, and this user may not be root
    prctl(PR_SET_DUMPABLE, 1)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")
    finally:
        prctl(PR_SET_DUMPABLE, 0)
