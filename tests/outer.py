"""An outer control group for tests with fork bombs, so that this machine never runs out of process ids."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PIDS = Path("/sys/fs/cgroup/pids")
"""The hierarchy of version 1; with version 2 the system's own limit per session is sufficient."""
NUM_PROCESSES = 3000


@contextmanager
def outer_group() -> Iterator[bool]:
    """Enter a group of at most 3000 processes; yields whether that was possible."""
    group, before = PIDS / f"agentrl-tests-{os.getpid()}", _group()
    try:
        group.mkdir()
        (group / "pids.max").write_text(str(NUM_PROCESSES))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        with suppress(OSError):
            group.rmdir()
        yield False
        return
    try:
        yield True
    finally:
        for process in (group / "cgroup.procs").read_text().split():
            with suppress(OSError):
                (before / "cgroup.procs").write_text(process)
        group.rmdir()


def _group() -> Path:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.split(":")[1] == "pids":
            return PIDS / line.split(":")[2].lstrip("/")
    return PIDS
