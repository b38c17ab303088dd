"""What a root file system is made from without a registry: this host's own Debian packages, or a mirror's.

A package's files, and those of all it depends on, are copied as they lie here: seconds, no network, no root. What the packages' scripts
would have done on a new system is little, and is done by ``images``: accounts, empty mount points, alternatives.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentrl.errors import ImageMissing

_INFO = Path("/var/lib/dpkg/info")
_LEFT_OUT = (
    "/usr/share/doc/",
    "/usr/share/man/",
    "/usr/share/locale/",
    "/usr/share/info/",
    "/usr/share/lintian/",
    "/usr/share/bug/",
)
_LINK_FOLDERS = ("/usr/bin", "/usr/sbin")
_ALTERNATIVES = "/etc/alternatives/"


@dataclass(frozen=True, slots=True)
class Package:
    """An installed package and what it needs: a tuple of alternatives for each dependency."""

    name: str
    architecture: str
    version: str
    needs: tuple[tuple[str, ...], ...]
    provides: tuple[str, ...]

    @property
    def files(self) -> Path:
        """The list of its files in dpkg's records."""
        plain = _INFO / f"{self.name}.list"
        return plain if plain.exists() else _INFO / f"{self.name}:{self.architecture}.list"


def closure(names: Sequence[str]) -> tuple[Package, ...]:
    """Return the packages of these names and all they depend on, sorted by name.

    Raises:
        ImageMissing: this is no Debian system, or some are not installed.
    """
    by_name = _installed()
    if missing := sorted({name for name in names if name not in by_name}):
        raise ImageMissing(
            f"the image is made of this host's own packages, and some are not installed: {', '.join(missing)}; "
            f"as root: apt-get install {' '.join(missing)}"
        )
    wanted = list(names)
    found: dict[str, Package] = {}
    while wanted:
        package = by_name[wanted.pop()]
        if package.name not in found:
            found[package.name] = package
            wanted += [
                next(one for one in any_of if one in by_name)
                for any_of in package.needs
                if any(one in by_name for one in any_of)
            ]
    return tuple(found[name] for name in sorted(found))


def _installed() -> Mapping[str, Package]:
    """Return the installed packages by name and by what they provide."""
    if shutil.which("dpkg-query") is None:
        raise ImageMissing(
            "the image is made of the host's own Debian packages, and this host has no dpkg-query; "
            "give a root file system instead: agentrl images build base --source ROOTFS.tar (such as 'docker export' writes)"
        )
    form = "${db:Status-Abbrev}\t${Package}\t${Architecture}\t${Version}\t${Pre-Depends}, ${Depends}\t${Provides}\n"
    listed = subprocess.run(
        ["dpkg-query", "-W", "-f", form], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    packages = []
    for line in listed.splitlines():
        status, name, architecture, version, needs, provides = line.split("\t")
        if status[1] in "iWt":  # installed, even if triggers are still to run
            packages.append(
                Package(
                    name, architecture, version, tuple(map(_names, _parts(needs, ","))), _names(provides, ",")
                )
            )
    provided = {virtual: package for package in packages for virtual in package.provides}
    return provided | {package.name: package for package in packages}


def _parts(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]


def _names(text: str, separator: str = "|") -> tuple[str, ...]:
    """Return package names without versions and architectures.

    >>> _names("python3-tomli (>= 1) | python3:any")
    ('python3-tomli', 'python3')
    """
    return tuple(re.split(r"[\s:(]", part, maxsplit=1)[0] for part in _parts(text, separator))


def copy(packages: Iterable[Package], root: Path) -> None:
    """Copy the packages' files below ``root``, with their times and hard links, and the bytecode that lies beside them.

    Only what everybody on this host may read is taken: nothing private of the host gets in, and root and users get the same image.
    """
    known: dict[tuple[int, int], Path] = {}
    for package in packages:
        for path in _listed(package):
            _copy(path, root, known)
    for link in _alternatives(root):
        _copy(link, root, known)


def _listed(package: Package) -> Iterator[str]:
    for path in package.files.read_text().splitlines():
        if path.startswith(_LEFT_OUT) or path == "/.":
            continue
        yield path
        if path.endswith(".py"):
            folder, _, name = path.rpartition("/")
            yield from map(str, Path(folder, "__pycache__").glob(f"{name[:-3]}.cpython-*.pyc"))


def _copy(path: str, root: Path, known: dict[tuple[int, int], Path]) -> None:
    folder, name = os.path.split(path)
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return  # left out of this installation, as documents often are
    target = Path(f"{root}{os.path.realpath(folder)}", name)
    if stat.S_ISLNK(status.st_mode):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_symlink():
            target.symlink_to(Path(path).readlink())
    elif stat.S_ISDIR(status.st_mode):
        target.mkdir(parents=True, exist_ok=True)
    elif stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        same = known.setdefault((status.st_dev, status.st_ino), target) if status.st_nlink > 1 else target
        if same is not target:
            target.hardlink_to(same)
        else:
            shutil.copyfile(path, target)
            target.chmod(
                0o755 if status.st_mode & stat.S_IXUSR else 0o644
            )  # neither set-user-id nor anything but files
            os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _alternatives(root: Path) -> Iterator[str]:
    """Yield the links through /etc/alternatives that end at something in the image (awk, for one)."""
    for folder in _LINK_FOLDERS:
        for link in sorted(Path(folder).iterdir()):
            target = str(link.readlink()) if link.is_symlink() else ""
            if target.startswith(_ALTERNATIVES) and Path(f"{root}{os.path.realpath(target)}").exists():
                yield str(link)
                yield target


def bootstrap(packages: Sequence[str], archive: Path) -> None:
    """Write a root file system of a mirror's packages to a tar archive, with mmdebstrap: minutes, and needs the mirror.

    Raises:
        ImageMissing: mmdebstrap is not installed, or failed; the message ends with its own.
    """
    if shutil.which("mmdebstrap") is None:
        raise ImageMissing(
            "building from a Debian mirror needs mmdebstrap, which is not installed; as root: apt-get install mmdebstrap"
        )
    left_out = [f"--dpkgopt=path-exclude={folder}*" for folder in _LEFT_OUT]
    command = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        '--aptopt=APT::Install-Recommends "0"',
        f"--include={','.join(packages)}",
    ]
    done = subprocess.run(
        [*command, *left_out, _suite(), str(archive)],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    if done.returncode:
        raise ImageMissing(
            f"mmdebstrap failed with exit code {done.returncode}: {done.stderr.strip()[-600:]}"
        )


def _suite() -> str:
    """Return the host's Debian release where it is one; it is built for the same kernel, and the mirror is known to work."""
    text = Path("/etc/os-release").read_text() if Path("/etc/os-release").exists() else ""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return values.get("VERSION_CODENAME", "stable") if values.get("ID") == "debian" else "stable"
