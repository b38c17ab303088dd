"""Control groups: where they may be made here, and one for each sandbox.

Groups are made below the group of the process that makes them, so they never escape a limit that was put on the whole run. Version 1
keeps a tree for each controller, version 2 one for all; hybrids have some controllers here and some there, and each controller is looked
for on its own. Version 2 allows controllers only in groups that hold no process themselves: the launcher, when it is the only process of
its group (as ``systemd-run --scope -p Delegate=yes`` makes it), moves itself into a leaf first.

Nothing here imports more than the standard library: the launcher uses it. Every path is found in ``/proc``, none is assumed.
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
"""Over which the share of the processors is counted."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Where groups may be made: for each controller that may be used, the version and the folder to make them in."""

    parents: Mapping[str, tuple[int, Path]]

    def folders(self, name: str) -> list[Path]:
        """Return the folders that a group called ``name`` consists of."""
        return list(dict.fromkeys(parent / name for _, parent in self.parents.values()))

    def make(self, name: str, *, memory: int, pids: int, cpus: float) -> None:
        """Make a group with its limits: bytes, tasks, processors. What the limits are is read back from the kernel.

        Raises:
            OSError: the kernel refused, or did not take a limit as it was given.
        """
        quota = max(1000, int(cpus * PERIOD_US))
        for folder in self.folders(name):
            folder.mkdir()
        for controller, (version, parent) in self.parents.items():
            folder = parent / name
            if controller == "memory" and version == 1:
                _set(folder / "memory.limit_in_bytes", memory)
                _set(
                    folder / "memory.memsw.limit_in_bytes", memory, optional=True
                )  # there only where swap is accounted
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
        """Move the calling process, of one thread, into the group.

        As a thread where version 1 allows it: to move a whole process the kernel stops all others for an RCU grace period, 10 ms and more.
        """
        for folder in self.folders(name):
            tasks = folder / "tasks"
            (tasks if tasks.exists() else folder / "cgroup.procs").write_text("0")


def find(controllers: Iterable[str] = CONTROLLERS) -> Groups:
    """Return where this process may make groups, after trying. A controller that cannot be used is left out."""
    parents: dict[str, tuple[int, Path]] = {}
    own = _own()
    for controller in controllers:
        for version, names, place in own:
            if version == 1 and controller in names and _may_make(place):
                parents[controller] = (1, place)
    rest = [controller for controller in controllers if controller not in parents]
    for version, _, place in own:
        if version == 2:
            parents |= {controller: (2, where) for controller, where in _delegated(place, rest).items()}
    return Groups(parents)


def remove(folders: Iterable[Path], *, deadline_s: float = 5.0) -> bool:
    """Kill what is in these groups and remove them; say whether all are gone."""
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
    except OSError:  # it, or the group, went meanwhile
        return


def _set(path: Path, value: object, *, optional: bool = False) -> None:
    if optional and not path.exists():
        return
    path.write_text(str(value))
    found = path.read_text().strip()
    if found != str(value):
        raise OSError(errno.EINVAL, f"asked for {value}, the kernel made it {found}", str(path))


def _own() -> list[tuple[int, frozenset[str], Path]]:
    """Return this process's groups as (version, controllers, folder), for the hierarchies that are mounted."""
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


def _may_make(place: Path) -> bool:
    trial = place / f"agentrl-trial-{os.getpid()}"
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError:
        return False
    return True


def _delegated(own: Path, controllers: list[str]) -> dict[str, Path]:
    """Return the version 2 folder in which groups with these controllers may be made: our own group's, or one above it."""
    try:
        there = (own / "cgroup.controllers").read_text().split()
    except OSError:
        return {}
    wanted = [controller for controller in controllers if controller in there]
    if not wanted:
        return {}
    if (own / "cgroup.procs").read_text().split() == [str(os.getpid())]:
        _move_into_leaf(own)
    for place in (own, *own.parents):
        if not (place / "cgroup.subtree_control").exists():
            return {}
        if os.access(place / "cgroup.procs", os.W_OK) and _enable(place, wanted) and _may_make(place):
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
    """Let the groups below ``place`` have these controllers. Refused, and harmless, where it holds processes of its own."""
    control = place / "cgroup.subtree_control"
    try:
        if missing := set(controllers) - set(control.read_text().split()):
            control.write_text(" ".join(f"+{controller}" for controller in sorted(missing)))
    except OSError:
        return False
    return True
