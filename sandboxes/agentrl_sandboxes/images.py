"""Root file systems, content-addressed, made and kept without a registry.

An image is a folder in the user's cache, named by a digest of everything in it, and names point to digests:

    images/<digest>/rootfs/       the files, all of one owner ("flat"): writable to uid 0 of a one-user namespace
    images/<digest>/image.json    what it was made of
    images/names/<name>.json      the digest, and the recipe that gave it

An image is made in a folder beside and renamed into place under a lock, so that neither a crash nor another process ever shows half of one.
It changes only when it is built anew: an upgraded host changes no experiment. The ``local`` back end mounts the folder; Docker imports
``write_tar``, in which everything belongs to root.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import platformdirs

from agentrl.errors import ConfigError, ImageMissing
from agentrl_sandboxes import debian

BASE = "base"
"""The image of specs that name none."""

USER = 61000
"""Whom an image's files belong to where root made it, and as whom sandboxes run: no account of the host has this uid."""

PACKAGES = (
    *(
        "bash",
        "coreutils",
        "dash",
        "debianutils",
        "diffutils",
        "findutils",
        "gzip",
        "grep",
        "hostname",
        "libc-bin",
        "mawk",
        "ncurses-base",
    ),
    *("sed", "tar", "python3", "python3-pytest", "git", "patch", "procps"),
)
"""What the base image holds, besides what these need."""

_VERSION = 1  # of the rules by which an image is made; part of its recipe
_FOLDERS = (
    "dev",
    "etc",
    "home/agent",
    "mnt",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr/bin",
    "var/tmp",
    "workspace",
)
_FILES = {
    "etc/passwd": f"root:x:0:0:root:/root:/bin/bash\nagent:x:{USER}:{USER}::/home/agent:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n",
    "etc/group": f"root:x:0:\nagent:x:{USER}:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/hostname": "sandbox\n",
    "etc/resolv.conf": "",
    "etc/gitconfig": "[safe]\n\tdirectory = *\n",  # a repository's owner is never the user that git sees inside
}
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,118}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One that is here."""

    name: str
    digest: str
    """Of everything in it: 32 hexadecimal digits."""
    rootfs: Path
    source: str
    """``host``, ``debian``, or the digest of the archive it came from."""
    packages: tuple[str, ...]
    """``name=version``, where it was made of packages."""
    layers: tuple[str, ...]
    """Digests of the archives that were unpacked over it."""
    num_files: int
    num_bytes: int


def store() -> Path:
    """Return the folder that holds this user's images."""
    return platformdirs.user_cache_path("agentrl") / "images"


def rootfs(name: str = "") -> Path:
    """Return an image's folder, to be mounted and never written to. The base image is built if it is not here yet: seconds.

    Raises:
        ImageMissing: there is no image of this name, or the base image cannot be built; the message says how to mend it.
    """
    return find(name).rootfs


def find(name: str = "") -> Image:
    """Return the image of this name; as ``rootfs``."""
    name = name or BASE
    found = _read(name)
    if found is None and name == BASE:
        return build()
    if found is None:
        have = ", ".join(image.name for image in known()) or "none"
        raise ImageMissing(
            f"no image is named {name!r}; here are: {have}. build it: agentrl images build {name} --add FILES.tar"
        )
    return found


def known() -> tuple[Image, ...]:
    """Return the images that are here, by name."""
    names = (path.stem for path in sorted((store() / "names").glob("*.json")))
    return tuple(image for image in map(_read, names) if image is not None)


def build(
    name: str = BASE,
    *,
    packages: Sequence[str] = (),
    layers: Sequence[Path] = (),
    source: str | Path = "host",
    rebuild: bool = False,
) -> Image:
    """Make an image, or return the one that these ingredients already gave.

    Args:
        name: lower case letters, digits, ``.``, ``_``, ``-``.
        packages: Debian packages beyond those of the base image.
        layers: tar archives to unpack over it, in this order. An image of layers only is the base image plus these, and shares its files.
        source: ``host`` for this host's own packages, ``debian`` for a mirror's (mmdebstrap), or a tar archive of a whole root file system.
        rebuild: make it anew even if it is here.

    Raises:
        ConfigError: the name or an ingredient is not usable.
        ImageMissing: it cannot be made here; the message says how to mend it.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"an image is named with lower case letters, digits, '.', '_' and '-', found {name!r}"
        )
    for archive in [*layers, *([source] if isinstance(source, Path) else [])]:
        if not archive.is_file():
            raise ConfigError(f"{archive} is no file; an image is made of tar archives")
    parent = find(BASE) if layers and not packages and source == "host" and name != BASE else None
    recipe = _recipe(packages, layers, source, parent)
    with _locked(f"name-{name}"):
        if not rebuild and (found := _read(name, recipe)) is not None:
            return found
        with _scratch() as folder:
            tree = folder / "rootfs"
            tree.mkdir()
            _fill(tree, folder, packages, source, parent)
            for layer in layers:
                _unpack(layer, tree)
            return _keep(name, recipe, folder)


def remove(name: str) -> None:
    """Forget a name, and delete its files unless another name has them too. No sandbox may be using it.

    Raises:
        ImageMissing: there is no image of this name.
    """
    with _locked(f"name-{name}"):
        found = _read(name)
        if found is None:
            raise ImageMissing(
                f"no image is named {name!r}; here are: {', '.join(image.name for image in known()) or 'none'}"
            )
        (store() / "names" / f"{name}.json").unlink()
        with _locked("store"):
            if all(image.digest != found.digest for image in known()):
                _delete(found.rootfs.parent)


def write_tar(image: Image, stream: IO[bytes]) -> None:
    """Write the image as a tar archive in which everything belongs to root: what ``docker import`` takes. Same image, same bytes."""
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT) as archive:
        for path in _walk(image.rootfs):
            member = archive.gettarinfo(str(path), str(path.relative_to(image.rootfs)))
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime = int(member.mtime)
            if member.isreg():
                with path.open("rb") as content:
                    archive.addfile(member, content)
            else:
                archive.addfile(member)


def _recipe(
    packages: Sequence[str], layers: Sequence[Path], source: str | Path, parent: Image | None
) -> dict[str, object]:
    """Return the ingredients: what decides, before anything is made, what will be made."""
    recipe: dict[str, object] = {"version": _VERSION, "layers": [_digest(layer) for layer in layers]}
    if parent is not None:
        return recipe | {"source": parent.source, "packages": list(parent.packages), "parent": parent.digest}
    names = [*PACKAGES, *packages]
    if source == "host":
        versions = [f"{package.name}={package.version}" for package in debian.closure(names)]
        return recipe | {"source": "host", "packages": versions}
    if source == "debian":
        return recipe | {"source": "debian", "packages": names}
    if isinstance(source, Path):
        return recipe | {"source": _digest(source), "packages": []}
    raise ConfigError(f"an image's source is 'host', 'debian' or a tar archive's Path, found {source!r}")


def _fill(
    tree: Path, folder: Path, packages: Sequence[str], source: str | Path, parent: Image | None
) -> None:
    if parent is not None:
        shutil.copytree(parent.rootfs, tree, symlinks=True, copy_function=os.link, dirs_exist_ok=True)
        return
    names = [*PACKAGES, *packages]
    if source == "host":
        debian.copy(debian.closure(names), tree)
    elif source == "debian":
        debian.bootstrap(names, folder / "debian.tar")
        _unpack(folder / "debian.tar", tree)
        (folder / "debian.tar").unlink()
    else:
        _unpack(Path(source), tree)
    for path in _FOLDERS:
        (tree / path).mkdir(parents=True, exist_ok=True)
    for legacy in ("bin", "sbin", "lib", "lib64"):  # one /usr, as every current distribution has it
        if not os.path.lexists(tree / legacy) and (tree / "usr" / legacy).is_dir():
            (tree / legacy).symlink_to(f"usr/{legacy}")
    if not os.path.lexists(tree / "usr/bin/python") and (tree / "usr/bin/python3").exists():
        (tree / "usr/bin/python").symlink_to("python3")
    for path, text in _FILES.items():
        (tree / path).unlink(missing_ok=True)
        (tree / path).write_text(text)
        os.utime(tree / path, (0, 0))


def _unpack(archive: Path, tree: Path) -> None:
    """Unpack a tar archive over a tree: nothing outside it, no devices, and never into a file that another image shares.

    Raises:
        ConfigError: it is no tar archive, or it would write outside.
    """
    try:
        with tarfile.open(archive) as members:
            for member in members:
                _unpack_one(members, member, tree)
    except (tarfile.TarError, EOFError, NotADirectoryError, IsADirectoryError) as problem:
        raise ConfigError(
            f"cannot unpack {archive}: {problem}; an image is made of tar archives of files, folders and links"
        ) from problem


def _unpack_one(members: tarfile.TarFile, member: tarfile.TarInfo, tree: Path) -> None:
    target = _inside(tree, member.name)
    if target == tree or not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        return  # a device has no place in an image
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
        target.hardlink_to(_inside(tree, member.linkname))
    else:
        content = members.extractfile(member)
        assert content is not None  # of a regular file there always is one
        with target.open("wb") as file:
            shutil.copyfileobj(content, file)
        target.chmod(0o755 if member.mode & stat.S_IXUSR else 0o644)
        os.utime(target, (member.mtime, member.mtime))


def _inside(tree: Path, name: str) -> Path:
    """Return where a member goes, whatever links are on its way."""
    path = tree / name.strip("/")
    place = path if path == tree else Path(os.path.realpath(path.parent)) / path.name
    if path.name == ".." or not place.is_relative_to(os.path.realpath(tree)):
        raise ConfigError(
            f"the archive would write {name!r} outside of the image; make it of paths that stay inside"
        )
    return place


def _keep(name: str, recipe: dict[str, object], folder: Path) -> Image:
    """Address a finished tree by its content, rename it into place, and point the name to it."""
    tree = folder / "rootfs"
    digest, num_files, num_bytes = _measure(tree)
    if os.getuid() == 0:
        for path in [tree, *_walk(tree)]:
            os.chown(path, USER, USER, follow_symlinks=False)
    facts = {"source": recipe["source"], "packages": recipe["packages"], "layers": recipe["layers"]}
    about = facts | {"digest": digest, "num_files": num_files, "num_bytes": num_bytes}
    (folder / "image.json").write_text(json.dumps(about, indent=1))
    with _locked("store"):
        place = store() / digest
        if not place.exists():
            folder.rename(place)
        names = store() / "names"
        names.mkdir(exist_ok=True)
        entry = store() / "building" / f"{name}.json"
        entry.write_text(json.dumps({"digest": digest, "recipe": recipe}))
        entry.rename(names / f"{name}.json")
    found = _read(name)
    assert found is not None
    return found


def _read(name: str, recipe: dict[str, object] | None = None) -> Image | None:
    """Return the image of a name, if it is here and, where a recipe is given, was made by it."""
    try:
        entry = json.loads((store() / "names" / f"{name}.json").read_text())
        about = json.loads((store() / entry["digest"] / "image.json").read_text())
    except FileNotFoundError:
        return None
    if recipe is not None and entry["recipe"] != recipe:
        return None
    packages, layers = (tuple(about.pop(key)) for key in ("packages", "layers"))
    return Image(
        name=name, rootfs=store() / entry["digest"] / "rootfs", packages=packages, layers=layers, **about
    )


def _measure(tree: Path) -> tuple[str, int, int]:
    """Return the digest of a tree, the number of its files and their size. Owners, and the times of folders and links, do not count."""
    whole = hashlib.sha256()
    num_files = num_bytes = 0
    for path in _walk(tree):
        status = path.lstat()
        name = os.fsencode(path.relative_to(tree))
        if stat.S_ISLNK(status.st_mode):
            entry = b"link " + os.fsencode(path.readlink())
        elif stat.S_ISDIR(status.st_mode):
            entry = b"folder"
        else:
            num_files, num_bytes = num_files + 1, num_bytes + status.st_size
            entry = f"file {status.st_mode & 0o777:o} {int(status.st_mtime)} {_digest(path)}".encode()
        whole.update(b"%d %s %d %s\n" % (len(name), name, len(entry), entry))
    return whole.hexdigest()[:32], num_files, num_bytes


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _walk(tree: Path) -> Iterator[Path]:
    """Yield everything below ``tree``, folders before what is in them, sorted."""
    for folder, folders, files in os.walk(tree):
        folders.sort()
        for name in sorted([*folders, *files]):
            yield Path(folder, name)


@contextmanager
def _locked(what: str) -> Iterator[None]:
    """Hold a lock between processes; it ends with the process."""
    folder = store() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / what).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _scratch() -> Iterator[Path]:
    """Open a folder to build in, and delete those of builders that died: a living one holds a lock on its own."""
    place = store() / "building"
    place.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with _locked("store"):
            for left in place.iterdir():
                with _held(left) as free:
                    if free:
                        _delete(left)
            folder = Path(tempfile.mkdtemp(dir=place))
            folder.chmod(0o755)
            stack.enter_context(_held(folder))
        try:
            yield folder
        finally:
            _delete(folder)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Try to hold a lock on a folder itself; say whether it was free."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(handle)


def _delete(path: Path) -> None:
    """Delete a file or tree, out of sight first where it is an image, and whatever the modes in it are."""
    if path.is_dir():
        if path.parent == store():
            path = path.rename(store() / "building" / f"{path.name}.gone")
        for folder, _, _ in os.walk(path):
            Path(folder).chmod(0o700)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
