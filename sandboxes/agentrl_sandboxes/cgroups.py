"""Control groups: finds where they can be created on this machine, and creates one for each sandbox.

Groups are created below the group of the process that creates them, so a limit on the whole run also holds
for its sandboxes. Version 1 has a hierarchy for each controller, version 2 one for all; hybrid systems have
some controllers in version 1 and others in version 2, so each controller is searched for separately. Version
2 allows controllers only in groups that contain no processes themselves. Therefore the launcher first moves
itself into a child group, if it is the only process of its group (as under ``systemd-run --scope -p
Delegate=yes``).

This module imports the standard library only, because the launcher uses it. All paths are read from
``/proc``.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

CONTROLLERS = ("memory", "pids", "cpu")
PERIOD_US = 100_000
"""Period over which processor time is limited, in microseconds."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Where groups can be created: for each usable controller, its version and the parent folder."""

    parents: Mapping[str, tuple[int, Path]]

    def folders(self, name: str) -> list[Path]:
        """Return the folders that make up the group ``name``."""
        return list(dict.fromkeys(parent / name for _, parent in self.parents.values()))

    def make(self, name: str, *, memory: int, pids: int, cpus: float) -> None:
        """Create a group with limits on memory (bytes), tasks and processors.

        The limits are read back from the kernel.

        Raises:
            OSError: the kernel refused, or set a limit to another value than it was given.
        """
        quota = max(1000, int(cpus * PERIOD_US))
        for folder in self.folders(name):
            folder.mkdir()
        for controller, (version, parent) in self.parents.items():
            folder = parent / name
            if controller == "memory" and version == 1:
                _set(folder / "memory.limit_in_bytes", memory)
                # exists only if swap is accounted
                _set(folder / "memory.memsw.limit_in_bytes", memory, optional=True)
            elif controller == "memory":
                _set(folder / "memory.max", memory)
                _set(folder / "memory.swap.max", 0, optional=True)
            elif controller == "pids":
                _set(folder / "pids.max", pids)
            elif version == 1:
                _set(folder / "cpu.cfs_period_us", PERIOD_US)
                _set(folder / "cpu.cfs_quota_us", quota)
            else:
                _set(folder / "cpu.max", f"{quota} {PERIOD_US}")

    def join(self, name: str) -> None:
        """Move the calling process, which must have a single thread, into the group.

        With version 1 it is moved as a thread: to move a whole process, the kernel makes all others wait for
        an RCU grace period of 10 ms or more.
        """
        for folder in self.folders(name):
            tasks = folder / "tasks"
            (tasks if tasks.exists() else folder / "cgroup.procs").write_text("0")


def find(controllers: Iterable[str] = CONTROLLERS) -> Groups:
    """Return where this process can create groups, found by trying.

    Controllers that cannot be used are left out.
    """
    parents: dict[str, tuple[int, Path]] = {}
    own = _own()
    for controller in controllers:
        for version, names, place in own:
            if version == 1 and controller in names and _can_create(place):
                parents[controller] = (1, place)
    rest = [controller for controller in controllers if controller not in parents]
    for version, _, place in own:
        if version == 2:
            parents |= {controller: (2, where) for controller, where in _delegated(place, rest).items()}
    return Groups(parents)


def remove(folders: Iterable[Path], *, deadline_s: float = 5.0) -> bool:
    """Kill the processes in these groups and remove the groups; return whether all are gone."""
    left = list(folders)
    end = time.monotonic() + deadline_s
    while left := [folder for folder in left if not _gone(folder)]:
        if time.monotonic() > end:
            return False
        for folder in left:
            _kill(folder)
        time.sleep(0.005)
    return True


def _gone(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _kill(folder: Path) -> None:
    try:
        if (folder / "cgroup.kill").exists():
            (folder / "cgroup.kill").write_text("1")
            return
        for pid in (folder / "cgroup.procs").read_text().split():
            os.kill(int(pid), 9)
    except OSError:  # the process has ended or the group was removed meanwhile
        return


def _set(path: Path, value: object, *, optional: bool = False) -> None:
    if optional and not path.exists():
        return
    path.write_text(str(value))
    found = path.read_text().strip()
    if found != str(value):
        raise OSError(errno.EINVAL, f"asked for {value}, the kernel set it to {found}", str(path))


def _own() -> list[tuple[int, frozenset[str], Path]]:
    """Return this process's groups in all mounted hierarchies, as (version, controllers, folder)."""
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in {"cgroup", "cgroup2"}:
            root, point = before.split(" ")[3:5]
            mounts.append((kind, frozenset(options.split(" ")[-1].split(",")), root, point))
    groups = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, names, path = line.split(":", 2)
        controllers = frozenset(names.split(","))
        version, fitting = (2, "cgroup2") if number == "0" else (1, "cgroup")
        for kind, mounted, root, point in mounts:
            below = os.path.relpath(path, root)
            if kind == fitting and (version == 2 or controllers <= mounted) and not below.startswith(".."):
                groups.append((version, controllers, Path(point, below)))
                break
    return groups


def _can_create(place: Path) -> bool:
    """Whether groups can be created in a folder; found by creating one."""
    trial = place / f"agentrl-trial-{os.getpid()}"
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError:
        return False
    return True


def _delegated(own: Path, controllers: list[str]) -> dict[str, Path]:
    """Return, by usable controller, the version 2 folder in which groups with it can be created.

    This is ``own``, the folder of this process's group, or a folder above it.
    """
    try:
        available = (own / "cgroup.controllers").read_text().split()
    except OSError:
        return {}
    wanted = [controller for controller in controllers if controller in available]
    if not wanted:
        return {}
    if (own / "cgroup.procs").read_text().split() == [str(os.getpid())]:
        _move_into_leaf(own)
    for place in (own, *own.parents):
        if not (place / "cgroup.subtree_control").exists():
            return {}
        if os.access(place / "cgroup.procs", os.W_OK) and _enable(place, wanted) and _can_create(place):
            return dict.fromkeys(wanted, place)
    return {}


def _move_into_leaf(own: Path) -> None:
    leaf = own / "agentrl-launcher"
    try:
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text("0")
    except OSError:
        return


def _enable(place: Path, controllers: list[str]) -> bool:
    """Enable controllers for the groups below ``place``; return whether that worked.

    The kernel refuses this, without any effect, if the group itself contains processes.
    """
    control = place / "cgroup.subtree_control"
    try:
        if missing := set(controllers) - set(control.read_text().split()):
            control.write_text(" ".join(f"+{controller}" for controller in sorted(missing)))
    except OSError:
        return False
    return True
