"""Leases: who holds a sandbox, and whether that process is surely dead.

A lease is written to the provider as labels. The reaper of any later process reads them and removes a sandbox when its deadline passed,
or when its owner was a process of this machine that is gone. Of an owner elsewhere nothing is known, so only the deadline counts: a
living run on another machine, or in another container of this one, never loses a sandbox to a reaper here.

A process is named by ``host/boot id/pid/start time``. The start time tells a process from a later one with the same number; the boot id,
joined by the number of the process namespace, tells whether numbers seen here and there mean the same.
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
"""What the id of every lease begins with, and so the name of everything that a back end makes."""
GRACE_S = 60.0
"""How long after its lifetime a sandbox, which ends itself, may be reaped by anybody."""
DEAD = frozenset("ZX")
"""Process states, as ``/proc/<pid>/stat`` has them, of what is dead and only not yet collected by its parent."""


def new_lease(*, run: str = "", lifetime_s: float) -> Lease:
    """Return a fresh lease of this process."""
    return Lease(
        id=PREFIX + secrets.token_hex(10), owner=owner(), run=run, deadline=time.time() + lifetime_s + GRACE_S
    )


def owner() -> str:
    """Return this process's name, ``host/boot id/pid/start time``."""
    pid = os.getpid()
    return f"{_place()}/{pid}/{_started(pid)}"


def dead(name: str) -> bool:
    """Whether the process called ``name`` is surely gone: it was of this machine, boot and process namespace, and is no more.

    >>> dead(owner())
    False
    >>> dead("another-host/some-boot/1/1")
    False
    """
    place, _, process = name.rpartition("/")[0].rpartition("/")
    started = name.rpartition("/")[2]
    if place != _place() or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)  # asks only; what /proc hides from this user is there nevertheless
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return _started(int(process)) not in {"", started}


def reapable(labels: Mapping[str, str], now: float) -> bool:
    """Whether what carries these labels is ours and may be removed at Unix time ``now``.

    >>> reapable({"somebody": "else's"}, now=2e9)
    False
    >>> reapable(Lease(id="agentrl-1", owner=owner(), run="", deadline=1e9).labels(), now=2e9)
    True
    """
    lease = from_labels(labels)
    return lease is not None and (lease.deadline < now or dead(lease.owner))


def from_labels(labels: Mapping[str, str]) -> Lease | None:
    """Return the lease that was written as ``labels``, or ``None`` where they are not ours.

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
def _place() -> str:
    """Return where process numbers mean what they mean here: ``host/boot id``, joined by the process namespace."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return f"{socket.gethostname()}/{boot.read_text().strip()}.{namespace.stat().st_ino}"
    except OSError:  # no Linux: owners are told apart, and none is ever found dead
        return f"{socket.gethostname()}/unknown-{secrets.token_hex(8)}"


def _started(pid: int) -> str:
    """Return when a process was started, in clock ticks since the boot; ``dead`` when it is a zombie, empty when it cannot be known.

    The second field is the program's name in brackets and may hold anything, brackets and spaces included: fields are counted from its end.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    state, *fields = stat[stat.rindex(")") + 1 :].split()
    return "dead" if state in DEAD else fields[18]
