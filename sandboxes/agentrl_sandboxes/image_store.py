"""The store of images in the user's cache, safe for many processes and for builders that are killed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from agentrl_sandboxes.backend import SANDBOX_UID
from agentrl_sandboxes.image_files import measure, walk


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image in the store."""

    name: str
    digest: str
    """Digest of everything in the image, as 32 hexadecimal digits."""
    rootfs: Path
    source: str
    """``host``, ``debian``, or the digest of the tar archive that the image was made from."""
    packages: tuple[str, ...]
    """The packages that the image was made from, if any, each as ``name`` or ``name=version``."""
    layers: tuple[str, ...]
    """Digests of the tar archives that were unpacked over the image."""
    num_files: int
    num_bytes: int


def store() -> Path:
    """Return the folder of this user's images."""
    return platformdirs.user_cache_path("agentrl") / "images"


def read(name: str, recipe: dict[str, object] | None = None) -> Image | None:
    """Return the image of a name, or ``None`` if there is none.

    If ``recipe`` is given and the image was made by another one, return ``None``, too.
    """
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


def known() -> tuple[Image, ...]:
    """Return all images, sorted by name."""
    names = (path.stem for path in sorted((store() / "names").glob("*.json")))
    return tuple(image for image in map(read, names) if image is not None)


def keep(name: str, recipe: dict[str, object], folder: Path) -> Image:
    """Move the finished tree in ``folder`` to the folder of its digest, and make ``name`` point to it."""
    tree = folder / "rootfs"
    digest, num_files, num_bytes = measure(tree)
    if os.getuid() == 0:
        for path in [tree, *walk(tree)]:
            os.chown(path, SANDBOX_UID, SANDBOX_UID, follow_symlinks=False)
    facts = {"source": recipe["source"], "packages": recipe["packages"], "layers": recipe["layers"]}
    about = facts | {"digest": digest, "num_files": num_files, "num_bytes": num_bytes}
    (folder / "image.json").write_text(json.dumps(about, indent=1))
    with locked("store"):
        place = store() / digest
        if not place.exists():
            folder.rename(place)
        names = store() / "names"
        names.mkdir(exist_ok=True)
        entry = store() / "building" / f"{name}.json"
        entry.write_text(json.dumps({"digest": digest, "recipe": recipe}))
        entry.rename(names / f"{name}.json")
    found = read(name)
    assert found is not None
    return found


def forget(image: Image) -> None:
    """Remove the name of an image, and its files unless another name points to them."""
    (store() / "names" / f"{image.name}.json").unlink()
    with locked("store"):
        if all(other.digest != image.digest for other in known()):
            _delete(image.rootfs.parent)


@contextmanager
def locked(what: str) -> Iterator[None]:
    """Hold the lock named ``what``, which only one process can hold at a time.

    The kernel releases it when the process ends.
    """
    folder = store() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / what).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a new folder to build in, after deleting those of builders that died.

    A live builder holds a lock on its folder.
    """
    place = store() / "building"
    place.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with locked("store"):
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
    """Try to lock a folder, and hold the lock in the context; yield whether the lock was free."""
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
    """Delete a file or a tree, whatever modes its folders have. An image is first moved out of the store."""
    if path.is_dir():
        if path.parent == store():
            path = path.rename(store() / "building" / f"{path.name}.gone")
        for folder, _, _ in os.walk(path):
            Path(folder).chmod(0o700)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
