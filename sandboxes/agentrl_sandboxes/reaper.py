"""What removes a sandbox from outside its launcher: because the launcher was killed, or because its time is over."""

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
    """Remove what is left of sandboxes of this user whose owner is dead or whose deadline passed; return how many there were."""
    folder = records.place()
    found = [record for record in records.read(folder) if leases.reapable(record.labels, now)]
    return sum(remove(folder, record) for record in found)


def remove_by_name(name: str) -> bool:
    """Remove what is left of one sandbox; say whether nothing is left."""
    folder = records.place()
    return all([remove(folder, record) for record in records.read(folder) if record.id == name])


def remove(folder: Path, record: Record) -> bool:
    """Remove one sandbox; say whether nothing is left of it. Its launcher, if there is one, may remove the same things at the same time."""
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
    """Return every process of a sandbox: bubblewrap bears its name, and all that it became sees the disk of that name mounted."""
    found, called, disk = [], name.encode() + b"\0", f" tmpfs {name} ".encode()
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (path / "cmdline").read_bytes().startswith(called) or disk in (
                path / "mountinfo"
            ).read_bytes():
                found.append(int(path.name))
    return found
