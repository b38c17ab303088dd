"""How one process becomes a sandbox: its own mounts, an unprivileged user, limits, and then bubblewrap.

``become`` runs in a child of the launcher and never returns. The files: a tmpfs of the sandbox's disk size is mounted over ``/tmp`` in a
mount namespace of its own, and an overlay in it shows the image below and takes all that is written. Nothing of this exists outside the
namespace, so nothing of it can be left behind. The user: started by root, the process gives up root *before* bubblewrap starts (bubblewrap
run by root leaves the host's sysctls writable); started by a user, the mounts are made in a user namespace. Either way bubblewrap is run in
a fresh user namespace of an ordinary uid, which also makes the kernel count processes for each sandbox and not for the uid.

Nothing here imports more than the standard library.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from agentrl_sandboxes.cgroups import Groups

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_PRIVATE_REC = 2, 4, (1 << 18) | (1 << 14)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_C = ctypes.CDLL(None, use_errno=True)

DISK = "/tmp"
"""Covered by the sandbox's own tmpfs, in its own mount namespace: nothing here is the host's."""
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}
_HOST_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/hostname": "sandbox\n",
    "etc/resolv.conf": "",
    "etc/gitconfig": "[safe]\n\tdirectory = *\n",
}
_HOST_FOLDERS = (
    "dev",
    "etc",
    "home",
    "mnt",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr",
    "var/tmp",
    "workspace",
)
_HOST_ETC = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime")
_MASKED = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a sandbox is started from: plain data, as it comes over the launcher's socket."""

    id: str
    command: tuple[str, ...]
    workdir: str
    folders: tuple[str, ...]
    """More folders that must be there."""
    image: str
    """The folder of the image; empty for the host's own ``/usr``, read-only."""
    memory: int
    """Bytes."""
    disk: int
    """Bytes."""
    cpus: float
    num_processes: int
    num_files: int


def become(
    order: Order, *, bwrap: str, uid: int, groups: Groups, filter_program: bytes, info: int
) -> NoReturn:
    """Turn this process into the sandbox. Its standard input, output and error are those of the sandbox's first process.

    Args:
        order: what is asked for.
        bwrap: the path of bubblewrap.
        uid: the user to become where this one is root.
        groups: where control groups may be made; the sandbox's is made and joined here.
        filter_program: of the system calls, see ``seccomp``.
        info: descriptor on which bubblewrap tells the number of the first process.

    Raises:
        OSError: the kernel refused a step; the message names it.
    """
    launcher = os.getppid()
    groups.make(
        order.id, memory=order.memory, pids=order.num_processes + 2, cpus=order.cpus
    )  # bubblewrap itself, and one as it starts
    groups.join(order.id)
    Path("/proc/self/oom_score_adj").write_text(
        "200"
    )  # where memory of the host runs short, a sandbox goes before the trainer
    if os.geteuid() == 0:
        _call("unshare", _CLONE_NEWNS)
        _mount_files(order, owner=uid)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        _call(
            "prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0
        )  # lost with root; without it the next lines may not write /proc/self
        _own_user_namespace(uid, uid, 0)
    else:
        uid, gid = os.geteuid(), os.getegid()
        _own_user_namespace(uid, gid, _CLONE_NEWNS)
        _mount_files(order, owner=None)
    _limit(order, memory_too="memory" not in groups.parents)
    _call(
        "prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0
    )  # bubblewrap does the same, but later; lost whenever credentials change
    if os.getppid() != launcher:
        os._exit(1)
    filter_end, end = os.pipe()
    os.write(end, filter_program)  # less than what a pipe holds
    os.close(end)
    os.set_inheritable(filter_end, True)
    os.set_inheritable(info, True)
    arguments = _arguments(order, filter_end, info)
    os.execve(bwrap, arguments, {"PATH": "/usr/bin:/bin"})


def _arguments(order: Order, filter_end: int, info: int) -> list[str]:
    """Return bubblewrap's command line. Its own name is the sandbox's, so that ``ps`` tells which is which."""
    words: list[str] = [
        order.id,
        "--unshare-all",
        "--unshare-user",
        "--disable-userns",
        "--uid",
        "0",
        "--gid",
        "0",
        "--cap-drop",
        "ALL",
    ]
    words += [
        "--die-with-parent",
        "--new-session",
        "--as-pid-1",
        "--hostname",
        "sandbox",
        "--bind",
        f"{DISK}/root",
        "/",
    ]
    if not order.image:
        words += ["--ro-bind", "/usr", "/usr"]
        for name in _HOST_ETC:
            words += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        for top in map(Path, ("/bin", "/sbin", "/lib", "/lib32", "/lib64")):
            if top.is_symlink():
                words += ["--symlink", str(top.readlink()), str(top)]
            else:
                words += ["--ro-bind-try", str(top), str(top)]
    # /dev is small and takes no files; shared memory lies on the sandbox's disk and counts there
    words += ["--proc", "/proc", "--dev", "/dev", "--bind", f"{DISK}/shm", "/dev/shm", "--remount-ro", "/dev"]
    words += ["--ro-bind", "/proc/sys", "/proc/sys"]
    for path in filter(os.path.exists, _MASKED):
        words += ["--ro-bind", "/dev/null", path]
    for folder in (*order.folders, order.workdir):
        words += ["--dir", folder]
    words += ["--chdir", order.workdir, "--clearenv"]
    for name, value in _ENVIRONMENT.items():
        words += ["--setenv", name, value]
    return [*words, "--seccomp", str(filter_end), "--info-fd", str(info), "--", *order.command]


def _own_user_namespace(uid: int, gid: int, more: int) -> None:
    """Enter a new user namespace, in which this user keeps its numbers and, until it runs a program, may mount."""
    _call("unshare", _CLONE_NEWUSER | more)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _mount_files(order: Order, *, owner: int | None) -> None:
    """Mount the sandbox's disk over ``DISK``, with the root file system as ``DISK/root``."""
    _mount("none", "/", "", _MS_PRIVATE_REC)
    if order.image:
        os.chdir(
            order.image
        )  # as a relative path below: nothing inside learns where it lies, and no character of its name matters
    inodes = max(16384, order.disk // 4096)
    mine = "" if owner is None else f",uid={owner},gid={owner}"
    _mount(
        order.id,
        DISK,
        "tmpfs",
        _MS_NOSUID | _MS_NODEV,
        f"mode=0755,size={order.disk},nr_inodes={inodes}{mine}",
    )
    for name in ("lower", "upper", "work", "root", "shm"):
        Path(DISK, name).mkdir()
    Path(DISK, "shm").chmod(0o1777)
    if not order.image:
        _host_files(Path(DISK, "lower"))
        os.chdir(f"{DISK}/lower")
    if owner is not None:
        for path in (
            Path(DISK, "upper"),
            Path(DISK, "shm"),
            Path(DISK, "lower"),
            *Path(DISK, "lower").rglob("*"),
        ):
            os.chown(path, owner, owner)
    options = f"lowerdir=.,upperdir={DISK}/upper,workdir={DISK}/work" + (
        ",userxattr" if owner is None else ""
    )
    _mount("overlay", f"{DISK}/root", "overlay", _MS_NOSUID | _MS_NODEV, options)
    os.chdir("/")


def _host_files(root: Path) -> None:
    """Write the little that a root file system needs besides ``/usr``."""
    for name in _HOST_FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    (root / "var/tmp").chmod(0o1777)
    for name, text in _HOST_FILES.items():
        (root / name).write_text(text)


def _limit(order: Order, *, memory_too: bool) -> None:
    """Set the limits of a process, which nothing inside can raise; where memory has no control group, at least that of each process."""
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: order.disk,
        resource.RLIMIT_NOFILE: order.num_files,
        resource.RLIMIT_NPROC: order.num_processes + 1,
    }
    if memory_too:
        wanted[resource.RLIMIT_DATA] = order.memory
    for limit, value in wanted.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    if (
        _C.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
        != 0
    ):
        number = ctypes.get_errno()
        raise OSError(number, f"mounting {kind or source} at {target}: {os.strerror(number)}")


def _call(name: str, *arguments: int) -> None:
    if getattr(_C, name)(*(ctypes.c_ulong(argument) for argument in arguments)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
