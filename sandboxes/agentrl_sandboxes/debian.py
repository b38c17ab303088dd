"""Debian packages as the source of root file systems: this host's own, or those of a mirror.

The files of installed packages, and of all that they depend on, are copied from this host. That takes
seconds, and needs neither network nor root. The little that the packages' scripts would do on a new system is
done here and in ``images``: accounts, empty mount points, alternatives.
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
class DebianPackage:
    """An installed package. For each dependency, ``needs`` has the names of packages that can satisfy it."""

    name: str
    architecture: str
    version: str
    needs: tuple[tuple[str, ...], ...]
    provides: tuple[str, ...]

    @property
    def files(self) -> Path:
        """Path of dpkg's list of the package's files."""
        plain = _INFO / f"{self.name}.list"
        return plain if plain.exists() else _INFO / f"{self.name}:{self.architecture}.list"


def closure(names: Sequence[str]) -> tuple[DebianPackage, ...]:
    """Return the packages of these names and all that they depend on, sorted by name.

    Raises:
        ImageMissing: this is not a Debian system, or some of the packages are not installed.
    """
    by_name = _installed()
    if missing := sorted({name for name in names if name not in by_name}):
        raise ImageMissing(
            "the image is made of this host's own packages, "
            f"and some are not installed: {', '.join(missing)}; "
            f"as root: apt-get install {' '.join(missing)}"
        )
    wanted = list(names)
    found: dict[str, DebianPackage] = {}
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


def _installed() -> Mapping[str, DebianPackage]:
    """Return the installed packages by their names and by the virtual packages that they provide."""
    if shutil.which("dpkg-query") is None:
        raise ImageMissing(
            "the image is made of the host's own Debian packages, and this host has no dpkg-query; "
            "use a root file system such as 'docker export' writes: "
            "agentrl images build base --source ROOTFS.tar"
        )
    form = (
        "${db:Status-Abbrev}\t${Package}\t${Architecture}\t${Version}\t"
        "${Pre-Depends}, ${Depends}\t${Provides}\n"
    )
    listed = subprocess.run(
        ["dpkg-query", "-W", "-f", form], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    packages = []
    for line in listed.splitlines():
        status, name, architecture, version, needs, provides = line.split("\t")
        if status[1] in "iWt":  # installed, perhaps with triggers pending
            packages.append(
                DebianPackage(
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


def copy(packages: Iterable[DebianPackage], root: Path) -> None:
    """Copy the packages' files below ``root``, with their times and hard links, and their bytecode.

    Only files that every user of this host may read are copied: so nothing private gets into the image, and
    root and other users build the same image.
    """
    known: dict[tuple[int, int], Path] = {}
    for package in packages:
        for path in _listed(package):
            _copy(path, root, known)
    for link in _alternatives(root):
        _copy(link, root, known)


def _listed(package: DebianPackage) -> Iterator[str]:
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
        return  # not part of this installation, as is common for documentation
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
            target.chmod(0o755 if status.st_mode & stat.S_IXUSR else 0o644)  # drops set-user-id bits
            os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _alternatives(root: Path) -> Iterator[str]:
    """Yield the links of programs with alternatives, such as awk, if the chosen program is in the image.

    For each there are two: the link to ``/etc/alternatives``, and the link there to the program.
    """
    for folder in _LINK_FOLDERS:
        for link in sorted(Path(folder).iterdir()):
            target = str(link.readlink()) if link.is_symlink() else ""
            if target.startswith(_ALTERNATIVES) and Path(f"{root}{os.path.realpath(target)}").exists():
                yield str(link)
                yield target


def bootstrap(packages: Sequence[str], archive: Path) -> None:
    """Write a root file system of a mirror's packages to a tar archive with mmdebstrap, which takes minutes.

    Raises:
        ImageMissing: mmdebstrap is not installed, or failed; the message ends with its error.
    """
    if shutil.which("mmdebstrap") is None:
        raise ImageMissing(
            "building from a Debian mirror needs mmdebstrap, which is not installed; "
            "as root: apt-get install mmdebstrap"
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
    """Return the Debian release to install: the host's own if it runs Debian, else ``stable``.

    The host's own release suits its kernel, and its mirror is known to work.
    """
    text = Path("/etc/os-release").read_text() if Path("/etc/os-release").exists() else ""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return values.get("VERSION_CODENAME", "stable") if values.get("ID") == "debian" else "stable"
