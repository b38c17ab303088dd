"""Removes local sandboxes whose launcher was killed or whose deadline has passed, without the launcher."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from agentrl_sandboxes import cgroups, leases, records
from agentrl_sandboxes.records import Record

DEADLINE_S = 5.0


def reap(now: float) -> int:
    """Remove this user's sandboxes whose owner is dead or whose deadline has passed; return their number."""
    folder = records.place()
    found = [record for record in records.read(folder) if leases.reapable(record.labels, now)]
    return sum(remove(folder, record) for record in found)


def remove_by_name(name: str) -> bool:
    """Remove what is left of the sandbox ``name``; return whether nothing of it is left now."""
    folder = records.place()
    return all([remove(folder, record) for record in records.read(folder) if record.id == name])


def remove(folder: Path, record: Record) -> bool:
    """Remove one sandbox; return whether nothing is left of it.

    Its launcher, if there is one, may be removing the same things at the same time.
    """
    end = time.monotonic() + DEADLINE_S
    while left := processes(record.id):
        if time.monotonic() > end:
            return False
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    if not cgroups.remove(record.groups, deadline_s=DEADLINE_S):
        return False
    records.remove(folder, record.id)
    return True


def processes(name: str) -> list[int]:
    """Return the ids of all processes of a sandbox.

    Bubblewrap runs under the sandbox's name, and all processes inside see a disk of that name in their mount
    table.
    """
    argv0, disk = name.encode() + b"\0", f" tmpfs {name} ".encode()

    def belongs(process: Path) -> bool:
        if (process / "cmdline").read_bytes().startswith(argv0):
            return True
        return disk in (process / "mountinfo").read_bytes()

    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if belongs(process):
                found.append(int(process.name))
    return found
