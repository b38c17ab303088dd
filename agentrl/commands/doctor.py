"""What a machine has and lacks for agentrl, and how to fix it.

Packages are looked up without importing them, except torch.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import platform
import shutil
import socket
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import get_args

import platformdirs

from agentrl.errors import AgentRLError
from agentrl.plugins import make_sandbox
from agentrl.sandbox import Capabilities, Limit, SandboxProvider

_MIN_PYTHON = (3, 11)
_MIN_MEMORY_MIB = 4096
_MIN_DISK_MIB = 2048


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    ``make demo`` works only if every check with ``needed`` set is ``ok``; any other check is for an optional
    part of agentrl. ``fix`` says how to pass the check; it is empty if nothing is to be done.
    """

    name: str
    ok: bool
    found: str
    fix: str = ""
    needed: bool = True


def checks(*, cache: Path | None = None, runs: Path | None = None) -> list[Check]:
    """Check this machine; games will be written to the folder ``cache``, and runs to the folder ``runs``."""
    cache = cache or Path(platformdirs.user_cache_dir("agentrl"))
    return [
        _python(),
        _torch(),
        *(_package(*row) for row in _PACKAGES),
        _threads(),
        _memory(),
        _disk(runs or Path.cwd()),
        _writable("cache folder", cache, "set XDG_CACHE_HOME to a folder you may write to"),
        _writable("run folder", runs or Path.cwd(), "give --out a folder you may write to"),
        _gpu(),
        _local_sandboxes(),
        _docker(),
    ]


def healthy(found: list[Check]) -> bool:
    """Return whether everything that ``make demo`` needs was found."""
    return all(check.ok for check in found if check.needed)


_PACKAGES = (
    ("transformers", "pip install '.[train]'", True),
    (
        "textworld",
        "pip install '.[textworld]' (needs a C compiler and make: apt-get install build-essential)",
        True,
    ),
    ("peft", "pip install '.[train]', for LoRA", False),
    ("vllm", "pip install vllm, for the vLLM engine; the local engine works without it", False),
    ("wandb", "pip install '.[wandb]', to log to Weights & Biases", False),
    ("mlflow", "pip install '.[mlflow]', to log to MLflow", False),
)


def _python() -> Check:
    ok = sys.version_info[:2] >= _MIN_PYTHON
    return Check(
        "python",
        ok,
        platform.python_version(),
        "" if ok else "install Python 3.11 or newer and create the virtual environment again",
    )


def _torch() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("torch", False, "not installed", "pip install '.[train]'")
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as problem:  # a wheel built for another system, or a missing library
        return Check(
            "torch",
            False,
            f"does not load: {problem}",
            "pip install --force-reinstall torch, in the build for this machine",
        )
    return Check("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads")


def _package(name: str, fix: str, needed: bool) -> Check:
    """Look for a package by the name it is imported under, without importing it."""
    if importlib.util.find_spec(name) is None:
        return Check(name, False, "not installed", fix, needed)
    for distribution in (name, f"{name}-skinny", f"{name}-cpu"):
        with suppress(metadata.PackageNotFoundError):
            return Check(name, True, metadata.version(distribution), needed=needed)
    return Check(name, True, "installed", needed=needed)


def _threads() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > usable:
        fix = f"set OMP_NUM_THREADS to at most {usable}: threads would wait for each other"
        return Check("processor", False, f"{usable} cores, OMP_NUM_THREADS={wanted}", fix, needed=False)
    return Check(
        "processor",
        True,
        f"{usable} of {os.cpu_count()} cores usable" + (f", OMP_NUM_THREADS={wanted}" if wanted else ""),
    )


def _memory() -> Check:
    found = _available_mib()
    if found is None:
        return Check("memory", True, "unknown on this system")
    ok = found >= _MIN_MEMORY_MIB
    return Check(
        "memory",
        ok,
        f"{found:,} MiB available",
        "" if ok else f"close other programs until {_MIN_MEMORY_MIB:,} MiB are available",
    )


def _available_mib() -> int | None:
    """Return the MiB available to this process: on the machine, or in its control group if that is less."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    found = int(fields["MemAvailable"].split()[0]) // 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (most := limit.read_text().strip()).isdigit():
        found = min(found, (int(most) - int(used.read_text())) >> 20)
    return found


def _disk(folder: Path) -> Check:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free >> 20
    ok = free >= _MIN_DISK_MIB
    return Check(
        "disk",
        ok,
        f"{free:,} MiB free",
        "" if ok else f"free {_MIN_DISK_MIB:,} MiB, or write runs to another disk with --out",
    )


def _writable(name: str, folder: Path, fix: str) -> Check:
    """Check that files can be written to ``folder``: write and remove one, as a run would.

    The permission bits alone do not decide: root ignores them, and mounts can be read-only or have quotas.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as problem:
        return Check(name, False, f"{folder}: {problem.strerror}", fix)
    return Check(name, True, str(folder))


def _gpu() -> Check:
    fix = "a GPU is optional; to use one, install an NVIDIA driver and torch's CUDA build"
    if importlib.util.find_spec("torch") is None:
        return Check("gpu", False, "torch is not installed", fix, needed=False)
    try:
        cuda = importlib.import_module("torch").cuda
    except (ImportError, OSError):
        return Check("gpu", False, "torch does not load", fix, needed=False)
    if not cuda.is_available():
        return Check("gpu", False, "torch finds no GPU", fix, needed=False)
    memory = cuda.get_device_properties(0).total_memory >> 20
    return Check(
        "gpu", True, f"{cuda.device_count()} x {cuda.get_device_name(0)}, {memory:,} MiB", needed=False
    )


def _local_sandboxes() -> Check:
    """Check local sandboxes: their provider, once opened, probes its isolation and limits on this machine."""
    try:
        found = asyncio.run(asyncio.wait_for(_capabilities(make_sandbox("local")), 60))
    except (AgentRLError, TimeoutError) as problem:
        reason = " ".join(str(problem).split()) or "the probe did not end within 60 s"
        return Check(
            "local sandboxes",
            False,
            reason,
            "only sandboxed environments need them; do what the message says, or use Docker",
            needed=False,
        )
    lacking = sorted(set(get_args(Limit)) - found.limits)
    note = f"; not enforced: {', '.join(lacking)}" if lacking else ""
    fix = "run as root or in a delegated control group to enforce these too" if lacking else ""
    return Check("local sandboxes", not lacking, f"isolated by {found.isolation}{note}", fix, needed=False)


async def _capabilities(provider: SandboxProvider) -> Capabilities:
    async with provider.serve() as sandboxes:
        return sandboxes.capabilities


def _docker() -> Check:
    """Check Docker by connecting to its daemon's socket; an installed client does not show that it runs."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    fix = (
        "only sandboxed environments need it: install Docker or Podman, start the daemon, "
        "and join the group of its socket"
    )
    if not host.startswith("unix://"):
        return Check("docker", True, f"DOCKER_HOST={host} (not tried)", needed=False)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(2.0)
            client.connect(host.removeprefix("unix://"))
    except OSError as problem:
        return Check(
            "docker", False, f"no daemon at {host}: {problem.strerror or problem}", fix, needed=False
        )
    return Check("docker", True, host, needed=False)
