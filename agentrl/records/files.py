"""Atomic writing of files, and clear errors for full disks and missing rights."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentrl.errors import ConfigError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of writing ``path`` in the block into a message that names the file and the fix.

    Raises:
        ConfigError: the disk is full, a quota or file size limit is reached, the right to write is missing,
            or a part of the path is a file.
    """
    try:
        yield
    except OSError as problem:
        if problem.errno in _FULL:
            raise ConfigError(
                f"cannot write {path}: {os.strerror(problem.errno or 0).lower()}; free space on its disk "
                "(old run folders, the cache folder) or write the run to another disk, "
                "then start the same command again"
            ) from problem
        if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ConfigError(
                f"cannot write {path}: {os.strerror(problem.errno).lower()}; choose a folder you may write to"
            ) from problem
        if isinstance(problem, (FileExistsError, NotADirectoryError)):
            raise ConfigError(
                f"cannot write {path}: a part of the path is a file, not a folder; choose another folder"
            ) from problem
        raise


def replace(path: Path, data: bytes) -> None:
    """Write a file atomically and durably: temporary name, fsync, rename, fsync of the folder.

    Creates the parent folders. Readers see either the old file or the new one, never a part of it, even if
    the writer is killed.

    Raises:
        ConfigError: ``writing`` raises it; no temporary file is left behind.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
