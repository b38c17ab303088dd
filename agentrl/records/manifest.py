"""The manifest of a run: its seed, tasks, software and machine.

It is written once, and compared when the run is resumed. A resumed run repeats the numbers of an
uninterrupted one only with the same software and the same number of threads, because the number of threads
decides the order in which sums over tokens are taken. With other tasks it would be another experiment.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from agentrl.errors import CheckpointError, ConfigError
from agentrl.records.files import replace
from agentrl.types import Json

Manifest = Mapping[str, Json]
_IDENTITY = {
    "seed": "seed",
    "panels": "the tasks' content hashes",
    "missing": "sandbox images that are missing",
}
"""Keys that identify the run, and their names in messages. A difference is an error."""
_EXACTNESS = {
    "python": "Python",
    "packages": "package versions",
    "machine": "machine",
    "threads": "torch threads",
    "commit": "commit of agentrl",
    "dirty": "uncommitted changes of agentrl",
}
"""Keys on which the numbers may depend, and their names in messages. A difference is a warning."""


def make_manifest(*, seed: int, panels: Mapping[str, str], missing: Iterable[str] = ()) -> Manifest:
    """Describe this process, machine and source tree.

    ``panels`` holds the content hash of each split's tasks; ``missing`` the sandbox images that are not
    installed, whose tasks are therefore left out.

    ``threads`` and ``gpu`` are null if torch is not loaded; ``commit`` is null if agentrl does not run from a
    git working tree.
    """
    torch = sys.modules.get("torch")
    gpu = None if torch is None or not torch.cuda.is_available() else torch.cuda.get_device_name(0)
    commit = _git("rev-parse", "HEAD")
    return {
        "seed": seed,
        "panels": dict(panels),
        "missing": sorted(missing),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": package_versions(),
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
            "gpu": gpu,
        },
        "threads": None if torch is None else torch.get_num_threads(),
        "commit": commit,
        "dirty": None if commit is None else bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def package_versions() -> dict[str, str]:
    """Return the versions of agentrl and of its installed dependencies, those of its extras included."""
    dependencies = {
        re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]
        for requirement in metadata.requires("agentrl") or ()
    }
    versions = {}
    for name in sorted({"agentrl"} | dependencies):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def reconcile(path: Path, manifest: Manifest) -> list[str]:
    """Write the manifest of a new run, or compare that of a resumed run with ``manifest``.

    Returns one line for each difference that may change the run's numbers; the list is empty for a new run.

    Raises:
        ConfigError: the seed, the tasks or the missing images differ from those of the run.
        CheckpointError: the manifest in the folder cannot be read.
    """
    if not path.exists():
        replace(path, json.dumps(manifest, indent=2).encode() + b"\n")
        return []
    before = read_manifest(path)
    for key, what in _IDENTITY.items():
        if lines := _differences(before.get(key), manifest.get(key), what):
            raise ConfigError(
                f"the run in {path.parent} cannot be resumed: {'; '.join(lines)}. "
                "Restore what the run was started with, or choose a new folder"
            )
    return [
        line
        for key, what in _EXACTNESS.items()
        for line in _differences(before.get(key), manifest.get(key), what)
    ]


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of a run.

    Raises:
        CheckpointError: the file is missing, unreadable or not a JSON object.
    """
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError) as problem:
        raise CheckpointError(
            f"the manifest {path} cannot be read ({problem}); is {path.parent} a run folder?"
        ) from problem
    if not isinstance(manifest, dict):
        raise CheckpointError(f"the manifest {path} is not a JSON object; is {path.parent} a run folder?")
    return manifest


def _differences(before: Json, now: Json, what: str) -> list[str]:
    """Return one line for each difference between the recorded ``before`` and the present ``now``.

    >>> _differences({"torch": "2.12", "numpy": "2"}, {"torch": "2.13", "numpy": "2"}, "package versions")
    ['package versions: torch was 2.12 and is 2.13']
    """
    if before == now:
        return []
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = sorted({*before, *now})
        return [
            f"{what}: {key} was {before.get(key)} and is {now.get(key)}"
            for key in keys
            if before.get(key) != now.get(key)
        ]
    return [f"{what} was {before} and is {now}"]


def _git(*arguments: str) -> str | None:
    """Return the output of git in agentrl's source tree; ``None`` without git or outside a working tree."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
