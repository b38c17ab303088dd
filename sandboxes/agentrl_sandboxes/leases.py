"""Leases: which process holds a sandbox, and whether that process is certainly dead.

A lease is stored with the sandbox as labels. The reaper of any later process reads them, and removes a
sandbox when its deadline has passed, or when its owner was a process of this machine that no longer exists.
About owners elsewhere nothing is known, so only the deadline counts: a run on another machine, or in another
container of this one, never loses a sandbox to a reaper here.

A process is named ``host/boot id/pid/start time``. The start time distinguishes a process from a later one
with the same pid. The boot id, followed by the number of the pid namespace, shows whether two pids belong to
the same numbering.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from agentrl_sandboxes.backend import Lease

PREFIX = "agentrl-"
"""Prefix of every lease's id, and so of the names of everything that a back end creates."""
GRACE_S = 60.0
"""Time from the end of a sandbox's lifetime, at which it ends by itself, until any process may reap it."""
DEAD = frozenset("ZX")
"""Process states in ``/proc/<pid>/stat`` that mean: dead, and not yet reaped by its parent."""


def new_lease(*, run: str = "", lifetime_s: float) -> Lease:
    """Return a new lease, held by this process."""
    return Lease(
        id=PREFIX + secrets.token_hex(10), owner=owner(), run=run, deadline=time.time() + lifetime_s + GRACE_S
    )


def owner(pid: int | None = None) -> str:
    """Return the name of process ``pid``, by default of this process: ``host/boot id/pid/start time``."""
    pid = os.getpid() if pid is None else pid
    return f"{_numbering()}/{pid}/{_start_time(pid)}"


def dead(name: str) -> bool:
    """Whether a process, as ``owner`` names it, is certainly dead.

    That is known only of processes of this machine, boot and pid namespace.

    >>> dead(owner())
    False
    >>> dead("another-host/some-boot/1/1")
    False
    """
    before, _, start_time = name.rpartition("/")
    numbering, _, pid = before.rpartition("/")
    if numbering != _numbering() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)  # sends nothing, and also finds processes that /proc hides from this user
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return _start_time(int(pid)) not in {"", start_time}


def reapable(labels: Mapping[str, str], now: float) -> bool:
    """Whether a sandbox with these labels is ours and may be removed at Unix time ``now``.

    >>> reapable({"another": "label"}, now=2e9)
    False
    >>> reapable(Lease(id="agentrl-1", owner=owner(), run="", deadline=1e9).labels(), now=2e9)
    True
    """
    lease = from_labels(labels)
    return lease is not None and (lease.deadline < now or dead(lease.owner))


def from_labels(labels: Mapping[str, str]) -> Lease | None:
    """Return the lease that ``labels`` describe, or ``None`` if they describe none.

    >>> lease = Lease(id="agentrl-1", owner="host/boot/1/2", run="demo", deadline=5.0)
    >>> from_labels(lease.labels()) == lease
    True
    """
    try:
        return Lease(
            id=labels["agentrl.lease"],
            owner=labels["agentrl.owner"],
            run=labels["agentrl.run"],
            deadline=float(labels["agentrl.deadline"]),
        )
    except (KeyError, ValueError):
        return None


@cache
def _numbering() -> str:
    """Return what identifies the numbering of processes here: ``host/boot id.pid namespace``."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return f"{socket.gethostname()}/{boot.read_text().strip()}.{namespace.stat().st_ino}"
    except OSError:  # not Linux: names stay unique, and no process is ever considered dead
        return f"{socket.gethostname()}/unknown-{secrets.token_hex(8)}"


def _start_time(pid: int) -> str:
    """Return when a process started, in clock ticks since the boot; ``dead`` for a zombie, empty if unknown.

    The second field of ``/proc/<pid>/stat`` is the program's name in brackets, which may itself contain
    brackets and spaces. So fields are counted from the last closing bracket.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    state, *fields = stat[stat.rindex(")") + 1 :].split()
    return "dead" if state in DEAD else fields[18]
