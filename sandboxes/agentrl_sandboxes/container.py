"""The container of a sandbox, as the Engine API takes it; everything that isolates it is set here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any  # Any: the API's JSON

from agentrl.errors import ConfigError
from agentrl.types import SandboxSpec
from agentrl_sandboxes.backend import SANDBOX_UID, Lease
from agentrl_sandboxes.seccomp_profile import profile

MIB = 1 << 20
NPROC = 16384
"""Maximum number of processes in all sandboxes of a podman service together."""


@dataclass(frozen=True, slots=True)
class DaemonImage:
    """An image that a Docker daemon has."""

    id: str
    volumes: tuple[str, ...] = ()
    """Folders that the image declares as volumes. The daemon would put them on its disk, without a limit on
    their size; so a sandbox gets a small tmpfs in place of each."""


@dataclass(frozen=True, slots=True)
class ContainerEngine:
    """The properties of a daemon on which the description of a container depends, besides the spec."""

    runtime: str = ""
    network: str = ""
    """The network of sandboxes whose spec has ``network="open"``."""
    podman: bool = False
    """Whether the daemon is podman's service. Podman has its own option for the owner of a tmpfs, mounts one
    without a limit at /run and at /var/tmp, and would raise the limit on processes."""


def folders(spec: SandboxSpec) -> tuple[str, ...]:
    """Return the folders that a spec wants to be writable, without those that are inside another of them.

    >>> folders(SandboxSpec(workdir="/repo/main", writable=("/opt", "/repo")))
    ('/opt', '/repo')
    """
    paths = sorted({PurePosixPath(path) for path in (spec.workdir, *spec.writable)})
    if PurePosixPath("/") in paths:
        raise ConfigError(
            "a container's root folder cannot be written; "
            "name the workdir and the folders that must be writable"
        )
    return tuple(str(path) for path in paths if not any(other in path.parents for other in paths))


def container(
    spec: SandboxSpec,
    lease: Lease,
    image: DaemonImage,
    command: Sequence[str],
    *,
    copied: Mapping[str, int],
    engine: ContainerEngine,
) -> Mapping[str, Any]:
    """Return the API's description of a sandbox's container.

    ``copied`` is the number of bytes that are copied from the image into each writable folder.

    Raises:
        ConfigError: the copied bytes leave no room in ``disk_mib``.
    """
    return {
        "Image": image.id,
        "Entrypoint": list(command),
        "Cmd": [],
        "User": f"{SANDBOX_UID}:{SANDBOX_UID}",
        "WorkingDir": spec.workdir,
        "Hostname": "sandbox",
        "Env": [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/tmp",
            "LANG=C.UTF-8",
        ],
        "Tty": False,
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "NetworkDisabled": spec.network == "none",
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGKILL",
        "Labels": dict(lease.labels()),
        "HostConfig": _host_config(spec, image, copied, engine),
    }


def _host_config(
    spec: SandboxSpec, image: DaemonImage, copied: Mapping[str, int], engine: ContainerEngine
) -> Mapping[str, Any]:
    """Return the part of the description that the host enforces: file systems, limits, privileges."""
    others = ("/tmp", *image.volumes, *(("/run", "/var/tmp") if engine.podman else ()))
    sizes, shared = _sizes(spec, others, copied)
    owner = "U,notmpcopyup" if engine.podman else f"mode=755,uid={SANDBOX_UID},gid={SANDBOX_UID}"
    limits = {"nofile": spec.num_files, "core": 0, **({"nproc": NPROC} if engine.podman else {})}
    return {
        "AutoRemove": True,
        "NetworkMode": engine.network if spec.network == "open" else "none",
        "ReadonlyRootfs": True,
        "Tmpfs": {path: f"exec,nosuid,nodev,{owner},size={size}" for path, size in sizes.items()},
        "ShmSize": shared,
        "CapDrop": ["ALL"],
        # podman expects a path on the machine of its service
        "SecurityOpt": ["no-new-privileges", *([] if engine.podman else [f"seccomp={profile()}"])],
        "Privileged": False,
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "Init": False,
        "RestartPolicy": {"Name": "no"},
        "LogConfig": {"Type": "none"},
        "Memory": spec.memory_mib * MIB,
        "MemorySwap": spec.memory_mib * MIB,
        "NanoCpus": round(spec.cpus * 1e9),
        "PidsLimit": spec.num_processes,
        "Ulimits": [{"Name": name, "Soft": value, "Hard": value} for name, value in limits.items()],
        **({"Runtime": engine.runtime} if engine.runtime else {}),
    }


def _sizes(
    spec: SandboxSpec, others: Sequence[str], copied: Mapping[str, int]
) -> tuple[Mapping[str, int], int]:
    """Divide ``disk_mib``, less the copied bytes, among the writable folders.

    The spec's own folders share three quarters, /dev/shm gets a sixteenth, and ``others`` share the rest.
    Return the size of each folder, and that of /dev/shm, in bytes.
    """
    room = spec.disk_mib * MIB - sum(copied.values())
    if room < MIB:
        needed = sum(copied.values()) / MIB
        raise ConfigError(
            f"disk_mib is {spec.disk_mib}, and {needed:.0f} MiB of the image in {', '.join(copied)} "
            "must fit in it; raise it"
        )
    asked, shared = folders(spec), room // 16
    others = [path for path in dict.fromkeys(others) if path not in asked]
    sizes = {path: copied.get(path, 0) + room * 3 // 4 // len(asked) for path in asked}
    sizes |= {path: (room // 4 - shared) // len(others) for path in others}
    return {path: _pages(size) for path, size in sizes.items()}, _pages(shared)


def _pages(size: int) -> int:
    """Round a size in bytes down to whole pages of 4096 bytes, because a tmpfs would round it up."""
    return size // 4096 * 4096
