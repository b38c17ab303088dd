"""What the local back end leaves on disk while a sandbox is there: one small file each, for the reaper.

A record is written before anything else is made, so that whatever a sandbox consists of can be found from it, and removed last. Nothing
here imports more than the standard library.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Record:
    """A sandbox as its launcher wrote it down."""

    id: str
    labels: Mapping[str, str]
    pid: int
    """Of bubblewrap."""
    started: str
    """When that process was started, in clock ticks since the boot."""
    boot: str
    groups: tuple[Path, ...]

    @property
    def running(self) -> bool:
        """Whether this very process is still there."""
        return self.boot == boot() and started(self.pid) == self.started != ""


def place() -> Path:
    """Return this user's folder of records, made if need be: of this user alone, and gone with the next boot.

    Raises:
        PermissionError: somebody else made a folder of that name.
    """
    uid = os.geteuid()
    user = Path(f"/run/user/{uid}")
    if uid == 0:
        folder = Path("/run/agentrl")
    else:
        folder = (
            user / "agentrl" if os.access(user, os.W_OK) else Path(tempfile.gettempdir(), f"agentrl-{uid}")
        )
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != uid or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077:
        raise PermissionError(f"{folder} must be a folder of uid {uid} with mode 700; remove it")
    return folder


def write(folder: Path, name: str, labels: Mapping[str, str], *, groups: Iterable[Path]) -> None:
    """Write down that the calling process becomes the sandbox ``name``."""
    pid = os.getpid()
    record = {
        "labels": dict(labels),
        "pid": pid,
        "started": started(pid),
        "boot": boot(),
        "groups": [str(group) for group in groups],
    }
    (folder / f"{name}.json").write_text(json.dumps(record))


def read(folder: Path) -> Iterator[Record]:
    """Yield the records that are there."""
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, KeyError):  # removed meanwhile, or not written by us
            found = json.loads(path.read_text())
            groups = tuple(Path(group) for group in found["groups"])
            yield Record(path.stem, found["labels"], found["pid"], found["started"], found["boot"], groups)


def exists(name: str) -> bool:
    """Whether anything may be left of a sandbox of this user."""
    return (place() / f"{name}.json").exists()


def remove(folder: Path, name: str) -> None:
    """Forget a sandbox."""
    (folder / f"{name}.json").unlink(missing_ok=True)


def boot() -> str:
    """Return what tells apart where the numbers of processes mean something else: boots, and namespaces."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}.{Path('/proc/self/ns/pid').stat().st_ino}"


def started(pid: int) -> str:
    """Return when a process was started, in clock ticks since the boot; empty where there is none any more."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    fields = line[line.rindex(")") + 2 :].split()  # the name in brackets may hold anything
    return "" if fields[0] in {"Z", "X"} else fields[19]
