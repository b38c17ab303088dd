"""Images: the root file systems of sandboxes, addressed by their content, and built without a registry.

An image is a folder in the user's cache, named by a digest of everything in it. Names point to digests:

    images/<digest>/rootfs/       the files, of one owner: uid 0 of a one-user namespace can write them
    images/<digest>/image.json    what the image was made from
    images/names/<name>.json      the digest, and the recipe that the image was made by

An image is built in another folder and then renamed into place under a lock, so neither a crash nor another
process ever sees an incomplete one. It changes only when it is built again: upgrading the host changes no
experiment. The ``local`` back end mounts the folder; Docker imports the archive that ``write_tar`` writes, in
which everything belongs to root.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from agentrl.errors import ConfigError, ImageMissing
from agentrl_sandboxes import debian
from agentrl_sandboxes.backend import SANDBOX_UID
from agentrl_sandboxes.image_files import digest, pack, unpack
from agentrl_sandboxes.image_store import Image, forget, keep, known, locked, read, scratch

__all__ = ["BASE", "PACKAGES", "Image", "build", "find", "known", "remove", "rootfs", "write_tar"]

BASE = "base"
"""The image of specs that name none."""

PACKAGES = (
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
    "sed",
    "tar",
    "python3",
    "python3-pytest",
    "git",
    "patch",
    "procps",
)
"""The packages of the base image, which also holds all packages that these depend on."""

_VERSION = 1  # of the rules by which images are made; part of every recipe
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
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/bash\n"
        f"agent:x:{SANDBOX_UID}:{SANDBOX_UID}::/home/agent:/bin/bash\n"
        "nobody:x:65534:65534::/:/bin/false\n"
    ),
    "etc/group": f"root:x:0:\nagent:x:{SANDBOX_UID}:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/hostname": "sandbox\n",
    "etc/resolv.conf": "",
    "etc/gitconfig": "[safe]\n\tdirectory = *\n",  # inside, a repository's owner is never the current user
}
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,118}[a-z0-9])?")


def rootfs(name: str = "") -> Path:
    """Return the folder of an image's files, which must not be written to.

    It raises the same errors as ``find``.
    """
    return find(name).rootfs


def find(name: str = "") -> Image:
    """Return the image of this name. If the base image does not exist yet, it is built, which takes seconds.

    Raises:
        ImageMissing: no image has this name, or the base image cannot be built; the message says how to fix
            it.
    """
    name = name or BASE
    found = read(name)
    if found is None and name == BASE:
        return build()
    if found is None:
        raise ImageMissing(f"{_no_image(name)}; build it with: agentrl images build {name} --add FILES.tar")
    return found


def _no_image(name: str) -> str:
    names = ", ".join(image.name for image in known()) or "none"
    return f"no image is named {name!r}; the images here are: {names}"


def build(
    name: str = BASE,
    *,
    packages: Sequence[str] = (),
    layers: Sequence[Path] = (),
    source: str | Path = "host",
    rebuild: bool = False,
) -> Image:
    """Build an image, or return the existing one that was built from the same ingredients.

    Args:
        name: lower case letters, digits, ``.``, ``_``, ``-``.
        packages: Debian packages in addition to those of the base image.
        layers: tar archives to unpack over the image, in this order. If only layers are given, they are
            unpacked over the base image, whose files the new image shares.
        source: ``host`` for this host's own packages, ``debian`` for those of a mirror (mmdebstrap), or a tar
            archive of a whole root file system.
        rebuild: build the image again even if it exists.

    Raises:
        ConfigError: the name or an ingredient is not usable.
        ImageMissing: the image cannot be built here; the message says how to fix it.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"an image is named with lower case letters, digits, '.', '_' and '-', found {name!r}"
        )
    archives = [*layers, source] if isinstance(source, Path) else layers
    for archive in archives:
        if not archive.is_file():
            raise ConfigError(f"{archive} is not a file; an image is made of tar archives")
    parent = find(BASE) if layers and not packages and source == "host" and name != BASE else None
    recipe = _recipe(packages, layers, source, parent)
    with locked(f"name-{name}"):
        if not rebuild and (found := read(name, recipe)) is not None:
            return found
        with scratch() as folder:
            tree = folder / "rootfs"
            tree.mkdir()
            _fill(tree, folder, packages, source, parent)
            for layer in layers:
                unpack(layer, tree)
            return keep(name, recipe, folder)


def remove(name: str) -> None:
    """Remove a name, and the files of its image unless another name points to them.

    No sandbox may be using the image.

    Raises:
        ImageMissing: no image has this name.
    """
    with locked(f"name-{name}"):
        found = read(name)
        if found is None:
            raise ImageMissing(_no_image(name))
        forget(found)


def write_tar(image: Image, stream: IO[bytes]) -> None:
    """Write an image as a tar archive in which everything belongs to root, as ``docker import`` takes it."""
    pack(image.rootfs, stream)


def _recipe(
    packages: Sequence[str], layers: Sequence[Path], source: str | Path, parent: Image | None
) -> dict[str, object]:
    """Return the ingredients of an image, which determine its content before it is built."""
    recipe: dict[str, object] = {"version": _VERSION, "layers": [digest(layer) for layer in layers]}
    if parent is not None:
        return recipe | {"source": parent.source, "packages": list(parent.packages), "parent": parent.digest}
    names = [*PACKAGES, *packages]
    if source == "host":
        versions = [f"{package.name}={package.version}" for package in debian.closure(names)]
        return recipe | {"source": "host", "packages": versions}
    if source == "debian":
        return recipe | {"source": "debian", "packages": names}
    if isinstance(source, Path):
        return recipe | {"source": digest(source), "packages": []}
    raise ConfigError(f"an image's source is 'host', 'debian' or a tar archive's Path, found {source!r}")


def _fill(
    tree: Path, folder: Path, packages: Sequence[str], source: str | Path, parent: Image | None
) -> None:
    """Fill an empty tree with everything but the layers; ``folder`` is for temporary files."""
    if parent is not None:
        shutil.copytree(parent.rootfs, tree, symlinks=True, copy_function=os.link, dirs_exist_ok=True)
        return
    names = [*PACKAGES, *packages]
    if source == "host":
        debian.copy(debian.closure(names), tree)
    elif source == "debian":
        debian.bootstrap(names, folder / "debian.tar")
        unpack(folder / "debian.tar", tree)
        (folder / "debian.tar").unlink()
    else:
        unpack(Path(source), tree)
    for path in _FOLDERS:
        (tree / path).mkdir(parents=True, exist_ok=True)
    for legacy in ("bin", "sbin", "lib", "lib64"):  # links into /usr, as in all current distributions
        if not os.path.lexists(tree / legacy) and (tree / "usr" / legacy).is_dir():
            (tree / legacy).symlink_to(f"usr/{legacy}")
    if not os.path.lexists(tree / "usr/bin/python") and (tree / "usr/bin/python3").exists():
        (tree / "usr/bin/python").symlink_to("python3")
    for path, text in _FILES.items():
        (tree / path).unlink(missing_ok=True)
        (tree / path).write_text(text)
        os.utime(tree / path, (0, 0))
