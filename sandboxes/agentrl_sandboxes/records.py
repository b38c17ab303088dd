"""Records of local sandboxes: one small file for each that exists, from which the reaper can remove it.

A record is written before anything else of its sandbox is created, and removed last, so that every part of a
sandbox can be found from it. This module imports the standard library only.
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
    """A sandbox as its launcher recorded it."""

    id: str
    labels: Mapping[str, str]
    pid: int
    """Process id of the sandbox's bubblewrap."""
    groups: tuple[Path, ...]
    """Folders of the sandbox's control groups."""


def place() -> Path:
    """Return this user's folder of records; create it if it does not exist. Other users cannot read it.

    It is in ``/run``, which is empty after a boot, or in the folder for temporary files if this user has no
    folder in ``/run``.

    Raises:
        PermissionError: a folder of that name belongs to another user.
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
    """Record that the calling process becomes the sandbox ``name``."""
    record = {"labels": dict(labels), "pid": os.getpid(), "groups": [str(group) for group in groups]}
    (folder / f"{name}.json").write_text(json.dumps(record))


def read(folder: Path) -> Iterator[Record]:
    """Yield the records of all sandboxes."""
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, KeyError):  # removed meanwhile, or not written by us
            found = json.loads(path.read_text())
            groups = tuple(Path(group) for group in found["groups"])
            yield Record(path.stem, found["labels"], found["pid"], groups)


def exists(name: str) -> bool:
    """Whether sandbox ``name`` of this user has a record; then parts of the sandbox may be left."""
    return (place() / f"{name}.json").exists()


def remove(folder: Path, name: str) -> None:
    """Remove a sandbox's record."""
    (folder / f"{name}.json").unlink(missing_ok=True)
