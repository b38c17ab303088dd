"""The files of an image: walking and measuring a tree, and converting it from and to tar archives."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from agentrl.errors import ConfigError


def walk(tree: Path) -> Iterator[Path]:
    """Yield everything below ``tree``: folders before their content, siblings sorted by name."""
    for folder, folders, files in os.walk(tree):
        folders.sort()
        for name in sorted([*folders, *files]):
            yield Path(folder, name)


def digest(path: Path) -> str:
    """Return the SHA-256 digest of a file, in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def measure(tree: Path) -> tuple[str, int, int]:
    """Return the digest of a tree, the number of its files, and their size in bytes.

    The digest depends neither on owners nor on the times of folders and links.
    """
    whole = hashlib.sha256()
    num_files = num_bytes = 0
    for path in walk(tree):
        status = path.lstat()
        name = os.fsencode(path.relative_to(tree))
        if stat.S_ISLNK(status.st_mode):
            entry = b"link " + os.fsencode(path.readlink())
        elif stat.S_ISDIR(status.st_mode):
            entry = b"folder"
        else:
            num_files, num_bytes = num_files + 1, num_bytes + status.st_size
            entry = f"file {status.st_mode & 0o777:o} {int(status.st_mtime)} {digest(path)}".encode()
        whole.update(b"%d %s %d %s\n" % (len(name), name, len(entry), entry))
    return whole.hexdigest()[:32], num_files, num_bytes


def pack(tree: Path, stream: IO[bytes]) -> None:
    """Write a tree as a tar archive in which everything belongs to root.

    The same tree gives the same bytes.
    """
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT) as archive:
        for path in walk(tree):
            member = archive.gettarinfo(str(path), str(path.relative_to(tree)))
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime = int(member.mtime)
            if member.isreg():
                with path.open("rb") as content:
                    archive.addfile(member, content)
            else:
                archive.addfile(member)


def unpack(archive: Path, tree: Path) -> None:
    """Unpack a tar archive over a tree.

    Nothing is written outside the tree, and no devices are created. Existing files are replaced and not
    written to, because another image may share them.

    Raises:
        ConfigError: ``archive`` is not a tar archive, or would write outside the tree.
    """
    try:
        with tarfile.open(archive) as members:
            for member in members:
                _unpack_member(members, member, tree)
    except (tarfile.TarError, EOFError, NotADirectoryError, IsADirectoryError) as problem:
        needed = "an image is made of tar archives of files, folders and links"
        raise ConfigError(f"cannot unpack {archive}: {problem}; {needed}") from problem


def _unpack_member(members: tarfile.TarFile, member: tarfile.TarInfo, tree: Path) -> None:
    target = _member_path(tree, member.name)
    if target == tree or not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        return  # images contain no devices
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    if member.issym():
        target.symlink_to(member.linkname)
    elif member.islnk():
        target.hardlink_to(_member_path(tree, member.linkname))
    else:
        content = members.extractfile(member)
        assert content is not None  # it is a regular file
        with target.open("wb") as file:
            shutil.copyfileobj(content, file)
        target.chmod(0o755 if member.mode & stat.S_IXUSR else 0o644)
        os.utime(target, (member.mtime, member.mtime))


def _member_path(tree: Path, name: str) -> Path:
    """Return the path to which member ``name`` is written, after resolving the links on the way."""
    path = tree / name.strip("/")
    resolved = path if path == tree else Path(os.path.realpath(path.parent)) / path.name
    if path.name == ".." or not resolved.is_relative_to(os.path.realpath(tree)):
        raise ConfigError(
            f"the archive would write {name!r} outside of the image; make it of paths that stay inside"
        )
    return resolved
