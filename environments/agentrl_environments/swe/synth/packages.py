"""The source distributions into which bugs are put: pinned, fetched once, unpacked in memory.

A package is given by its name, version and SHA-256; pip checks the hash before it reads the archive. If no
tasks can be made from a package, because it cannot be fetched or built, has no tests, or its suite does not
pass, that is an outcome with a reason (`UnusablePackage`), and the campaign continues with the next package.

The test runner comes with the tasks (see `tools`): the pinned wheels of pytest. So a sandbox needs only
Python 3.11 or newer, and every machine runs the same suite in the same way.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import marshal
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import platformdirs

from agentrl.errors import ConfigError
from agentrl_environments.swe.rows import PYTEST, SourceDistribution

Reason = Literal["download", "build", "layout", "suite"]
"""Why a package cannot be used: not available, not built by pip, no sources or no tests, or failing tests."""

MAX_BYTES = 64 << 20
"""Maximum size of an unpacked archive, in bytes."""
FETCH_S = 300.0
"""Deadline of one run of pip, in seconds."""
_NOT_SOURCES = frozenset(
    {
        "test",
        "tests",
        "testing",
        "docs",
        "doc",
        "examples",
        "example",
        "benchmark",
        "benchmarks",
        "bench",
        "fuzz",
        "tools",
    }
)


class UnusablePackage(Exception):
    """No tasks can be made from a package.

    ``reason`` is the kind of problem; the message has the details.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedPackage:
    """A pinned source distribution, and how to run its tests."""

    name: str
    version: str
    sha256: str = ""
    """Hash of the archive. If it is empty, any archive is accepted, and its hash is recorded in the rows."""
    licence: str = "unknown"
    ignore: tuple[str, ...] = ()
    """Test files that are not run, such as those that need another package."""

    @property
    def pin(self) -> str:
        """The package and its version as a requirement in pip's syntax."""
        return f"{self.name}=={self.version}"


@dataclass(frozen=True, slots=True)
class Tree:
    """An unpacked package: its files by path, and its layout."""

    package: PinnedPackage
    source: SourceDistribution
    files: Mapping[str, bytes]
    root: str
    """The folder to put on Python's path: ``src`` or ``.``."""
    modules: tuple[str, ...]
    """Paths of the files that may get a bug."""

    @property
    def command(self) -> str:
        """The shell command that runs the tests in the repository's folder, and whose output is graded.

        The test runner must be on Python's path already.
        """
        # -S hides the installed packages, another copy of this package among them.
        python = PYTEST.replace("python3 ", "python3 -S ", 1)
        search_path = f"PYTHONPATH={self.root}${{PYTHONPATH:+:$PYTHONPATH}}"
        ignored = "".join(f" --ignore={path}" for path in self.package.ignore)
        return f"{search_path} PYTHONDONTWRITEBYTECODE=1 {python}{ignored}"


PACKAGES: tuple[PinnedPackage, ...] = (
    PinnedPackage(
        name="h11",
        version="0.16.0",
        licence="MIT",
        sha256="4e35b956cf45792e4caa5885e69fba00bdbc6ffafbfa020300e549b208ee5ff1",
    ),
    PinnedPackage(
        name="voluptuous",
        version="0.16.0",
        licence="BSD-3-Clause",
        sha256="006535e22fed944aec17bef6e8725472476194743c87bd233e912eb463f8ff05",
    ),
    PinnedPackage(
        name="parse",
        version="1.22.4",
        licence="MIT",
        sha256="706d458feed5a81b02768d3156e8070baf6cee7d150a3a3c0cd43101a875c3b5",
    ),
    PinnedPackage(
        name="xmltodict",
        version="1.0.4",
        licence="MIT",
        sha256="6d94c9f834dd9e44514162799d344d815a3a4faec913717a9ecbfa5be1bb8e61",
    ),
    PinnedPackage(
        name="semver",
        version="3.1.1",
        licence="BSD-3-Clause",
        sha256="149b26cabada6f63212f97e94505d21578cb1d280cf714827f328d5e70765fea",
    ),
    PinnedPackage(
        name="cachetools",
        version="8.0.1",
        licence="MIT",
        sha256="deb1d376d4d28c2f33f3e3058043b005e0af75c35c094bd54053e27d2906ad95",
    ),
    PinnedPackage(
        name="toolz",
        version="1.0.0",
        licence="BSD-3-Clause",
        sha256="2c86e3d9a04798ac556793bced838816296a2f085017664e4995cb40a1047a02",
    ),
    PinnedPackage(
        name="tomlkit",
        version="0.15.2",
        licence="MIT",
        sha256="83e32755ba1d20d9340bd069ee97e9f6232ba2346b63ffcba425de01f7e327a6",
    ),
)
"""The default packages. None of them needs another package; all have permissive licences."""

MORE: tuple[PinnedPackage, ...] = (
    PinnedPackage(
        name="sqlparse",
        version="0.6.1",
        licence="BSD-3-Clause",
        sha256="ca722573f848ff2d30e40ea30f53a104b7dea7635ea9285891263eb2c58fb6e7",
    ),
    PinnedPackage(
        name="boltons",
        version="26.2.0",
        licence="BSD-3-Clause",
        sha256="d39cfd15c1a1c3bd4d705c82252fa9edb8e4f5e8cc039f8e39afac7b1b47e92c",
    ),
    PinnedPackage(
        name="mistune",
        version="3.4.0",
        licence="BSD-3-Clause",
        sha256="2eaf7952af928ca8d33b779762effc1da517b62c6ad85ec8ca957e3b07b9782a",
    ),
)
"""Further packages that are known to work. They are larger or slower than the default packages."""

TOOLS: Mapping[str, str] = {
    "pytest==8.3.5": "c69214aa47deac29fad6c2a4f590b9c4a9fdb16a403176fe154b79c0b4d4d820",
    "iniconfig==2.0.0": "b6a85871a79d2e3b22d2d1b94ac2824226a63c6b741c88f7ae975f18b6778374",
    "pluggy==1.5.0": "44e1ad92c8ca002de6377e165f3e0f1be63266ab4d554740532335b9d75ea669",
    "packaging==24.2": "09abb1bccd265c01f4a3aa3f7a7db064b36514d2cba19a2f694fe6150451a759",
}
"""SHA-256 of each wheel of the test runner, by its requirement. All wheels are pure Python."""


def named(text: str) -> PinnedPackage:
    """Return a known package by its name, or a package by ``name==version`` or ``name==version:sha256``.

    >>> named("h11").version, named("six==1.16.0").pin
    ('0.16.0', 'six==1.16.0')

    Raises:
        ConfigError: the name is unknown and no version is given.
    """
    for package in (*PACKAGES, *MORE):
        if text in (package.name, package.pin):
            return package
    name, _, version = text.partition("==")
    version, _, sha256 = version.partition(":")
    if not name or not version:
        known = ", ".join(package.name for package in (*PACKAGES, *MORE))
        raise ConfigError(
            f"no version is known for package {text!r} (known packages: {known}); "
            f"pin one, as in {name or 'name'}==1.0"
        )
    return PinnedPackage(name=name, version=version, sha256=sha256)


def fetch(package: PinnedPackage, folder: Path | None = None) -> Tree:
    """Return an unpacked package, from the cache or, if it is not there, through pip.

    ``folder`` is the cache, by default the user's cache folder.

    Raises:
        UnusablePackage: the package is not available, pip cannot build its metadata, its hash differs, or it
            has no sources or no tests.
    """
    kept = (folder or cache_folder()) / f"{package.name}-{package.version}.tar.gz"
    data = kept.read_bytes() if kept.is_file() else b""
    if not data or (package.sha256 and hashlib.sha256(data).hexdigest() != package.sha256):
        data = _download(package.pin, package.sha256, ("--no-binary", package.name))
        _keep(kept, data)
    return unpack(package, data)


def tools(folder: Path | None = None) -> dict[str, bytes]:
    """Return the files of the test runner by path, from the cache or, if they are not there, through pip.

    They include compiled files for this interpreter's version of Python. In a sandbox with the same version,
    pytest starts in half the time.

    Raises:
        UnusablePackage: a wheel is not available, or its hash differs.
    """
    files: dict[str, bytes] = {}
    for pin, sha256 in TOOLS.items():
        kept = (folder or cache_folder()) / f"{pin.replace('==', '-')}.whl"
        data = kept.read_bytes() if kept.is_file() else b""
        if hashlib.sha256(data).hexdigest() != sha256:
            data = _download(pin, sha256, ("--only-binary", ":all:"))
            _keep(kept, data)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files |= {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    return files | {
        importlib.util.cache_from_source(name): _compiled(name, data)
        for name, data in files.items()
        if name.endswith(".py")
    }


def _compiled(name: str, data: bytes) -> bytes:
    """Return the content of the compiled file (``.pyc``) of a module.

    The file is hash-based and unchecked (PEP 552), so that its content depends only on the source.
    """
    code = compile(data, name, "exec", dont_inherit=True, optimize=0)
    return (
        importlib.util.MAGIC_NUMBER
        + (1).to_bytes(4, "little")
        + importlib.util.source_hash(data)
        + marshal.dumps(code)
    )


def cache_folder() -> Path:
    """Return the default folder in which archives are cached."""
    return platformdirs.user_cache_path("agentrl") / "swe"


def unpack(package: PinnedPackage, data: bytes) -> Tree:
    """Return a package from its archive, without the top folder and without generated metadata.

    Raises:
        UnusablePackage: ``data`` is not an archive, unpacks to more than `MAX_BYTES`, or has no sources or no
            tests.
    """
    files: dict[str, bytes] = {}
    total = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                parts = PurePosixPath(member.name).parts[1:]
                metadata = any(part.endswith(".egg-info") for part in parts) or parts[-1:] == ("PKG-INFO",)
                if not member.isfile() or not parts or ".." in parts or metadata:
                    continue
                total += member.size
                if total > MAX_BYTES:
                    raise UnusablePackage(
                        "layout", f"{package.pin} unpacks to more than {MAX_BYTES >> 20} MiB"
                    )
                stream = archive.extractfile(member)
                files["/".join(parts)] = stream.read() if stream else b""
    except (tarfile.TarError, EOFError, OSError, zlib.error) as problem:
        raise UnusablePackage(
            "layout", f"the archive of {package.pin} cannot be read: {problem}"
        ) from problem
    return arrange(
        package, SourceDistribution(package.name, package.version, hashlib.sha256(data).hexdigest()), files
    )


def arrange(package: PinnedPackage, source: SourceDistribution, files: Mapping[str, bytes]) -> Tree:
    """Return a package as a `Tree`: find the folder of its modules, and make sure that it has tests.

    Raises:
        UnusablePackage: the package has no modules or no tests.
    """
    root = "src" if any(path.startswith("src/") and path.endswith(".py") for path in files) else "."
    below = "src/" if root == "src" else ""
    modules = tuple(
        path
        for path in sorted(files)
        if path.startswith(below)
        and path.endswith(".py")
        and not _is_test(path)
        and _is_module(path.removeprefix(below), files, below)
    )
    if not modules:
        raise UnusablePackage("layout", f"{package.pin} has no Python modules")
    if not any(_is_test(path) and path.endswith(".py") for path in files):
        raise UnusablePackage("layout", f"the source distribution of {package.pin} has no tests")
    return Tree(package, source, dict(sorted(files.items())), root, modules)


def _is_test(path: str) -> bool:
    parts = PurePosixPath(path).parts
    name = parts[-1]
    return (
        bool({"test", "tests", "testing"} & set(parts[:-1]))
        or name.startswith("test_")
        or name in ("conftest.py", "tests.py")
    )


def _is_module(path: str, files: Mapping[str, bytes], below: str) -> bool:
    """Whether a file is a top-level module or part of a package, and not a script such as ``setup.py``.

    ``path`` is relative to the folder ``below``, which holds the modules.
    """
    parts = path.split("/")
    if _NOT_SOURCES & set(parts[:-1]) or path in ("setup.py", "noxfile.py", "tasks.py"):
        return False
    return len(parts) == 1 or below + parts[0] + "/__init__.py" in files


def _keep(path: Path, data: bytes) -> None:
    """Write a file into the cache, so that other processes see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)


def _download(pin: str, sha256: str, options: tuple[str, ...]) -> bytes:
    """Return the archive of a pinned requirement, fetched by pip, which checks the hash before reading it."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(pin + (f" --hash=sha256:{sha256}" if sha256 else "") + "\n")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--disable-pip-version-check",
            "--no-input",
            *options,
        ]
        command += ["-d", f"{folder}/got", "-r", str(requirements)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S, check=False)
        except subprocess.TimeoutExpired:
            raise UnusablePackage("download", f"pip did not fetch {pin} within {FETCH_S:.0f} s") from None
        got = sorted((Path(folder) / "got").glob("*")) if done.returncode == 0 else []
        if got:
            return got[0].read_bytes()
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        building = any("metadata" in line or "build" in line for line in lines)
        problem = next(
            (line for line in lines if line.upper().startswith("ERROR")),
            lines[-1] if lines else f"exit code {done.returncode}",
        )
        raise UnusablePackage(
            "build" if building else "download", f"pip could not fetch {pin}: {problem.strip()}"
        )
