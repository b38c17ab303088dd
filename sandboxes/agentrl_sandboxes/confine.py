"""How a process becomes a local sandbox: mounts, an unprivileged user, limits, and then bubblewrap.

``become`` runs in a child of the launcher and never returns.

Files: a tmpfs as large as the sandbox's disk is mounted over ``/tmp`` in a new mount namespace. An overlay in
it has the image as its lower layer and receives all writes. None of this exists outside the namespace, so
nothing of it can be left behind.

User: if root started the launcher, the process gives up root *before* bubblewrap starts, because bubblewrap
run by root leaves the host's sysctls writable. If an ordinary user started it, the mounts are made in a user
namespace. In both cases bubblewrap runs in a new user namespace of an ordinary uid, which also makes the
kernel count processes for each sandbox and not for the uid.

This module imports the standard library only.
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
"""Where the sandbox's tmpfs is mounted, in its own mount namespace, so that the host's files there are
hidden."""
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
class StartRequest:
    """Everything that the launcher needs to start a sandbox: plain data, which is sent over its socket."""

    id: str
    command: tuple[str, ...]
    workdir: str
    folders: tuple[str, ...]
    """Folders that must exist inside, in addition to ``workdir``."""
    image: str
    """The folder of the image's files. If empty, the sandbox has the host's ``/usr``, read-only."""
    memory: int
    """Limit on memory, in bytes."""
    disk: int
    """Size of the sandbox's disk, in bytes."""
    cpus: float
    num_processes: int
    num_files: int


def become(
    request: StartRequest, *, bwrap: str, uid: int, groups: Groups, filter_program: bytes, info: int
) -> NoReturn:
    """Turn this process into the sandbox.

    The sandbox's first process inherits the standard streams of this process.

    Args:
        request: the sandbox to start.
        bwrap: the path of bubblewrap.
        uid: the user to become if this process runs as root.
        groups: where control groups can be created; the sandbox's own is created and joined here.
        filter_program: the filter of system calls, see ``seccomp``.
        info: the file descriptor to which bubblewrap writes the pid of the first process.

    Raises:
        OSError: the kernel refused a step; the message names it.
    """
    launcher = os.getppid()
    # two more processes: bubblewrap itself, and another one of it while it starts
    groups.make(request.id, memory=request.memory, pids=request.num_processes + 2, cpus=request.cpus)
    groups.join(request.id)
    # when the host runs out of memory, the kernel is to kill a sandbox before the trainer
    Path("/proc/self/oom_score_adj").write_text("200")
    if os.geteuid() == 0:
        _call("unshare", _CLONE_NEWNS)
        _mount_files(request, owner=uid)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        # changing the user made this process not dumpable, and then it cannot write its own files in /proc
        _call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)
        _enter_user_namespace(uid, uid, 0)
    else:
        uid, gid = os.geteuid(), os.getegid()
        _enter_user_namespace(uid, gid, _CLONE_NEWNS)
        _mount_files(request, owner=None)
    _set_limits(request, bound_memory="memory" not in groups.parents)
    # here because a change of user resets it; bubblewrap sets it too, but later
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != launcher:
        os._exit(1)
    filter_end, end = os.pipe()
    os.write(end, filter_program)  # does not block: it is smaller than a pipe's buffer
    os.close(end)
    os.set_inheritable(filter_end, True)
    os.set_inheritable(info, True)
    arguments = _arguments(request, filter_end, info)
    os.execve(bwrap, arguments, {"PATH": "/usr/bin:/bin"})


def _arguments(request: StartRequest, filter_end: int, info: int) -> list[str]:
    """Return bubblewrap's command line.

    Its first word is the sandbox's id, so that ``ps`` shows to which sandbox a process belongs.
    """
    words: list[str] = [
        request.id,
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
    if not request.image:
        words += ["--ro-bind", "/usr", "/usr"]
        for name in _HOST_ETC:
            words += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        for top in map(Path, ("/bin", "/sbin", "/lib", "/lib32", "/lib64")):
            if top.is_symlink():
                words += ["--symlink", str(top.readlink()), str(top)]
            else:
                words += ["--ro-bind-try", str(top), str(top)]
    # /dev is small and read-only; shared memory is on the sandbox's disk, and counts against its size
    words += ["--proc", "/proc", "--dev", "/dev", "--bind", f"{DISK}/shm", "/dev/shm", "--remount-ro", "/dev"]
    words += ["--ro-bind", "/proc/sys", "/proc/sys"]
    for path in filter(os.path.exists, _MASKED):
        words += ["--ro-bind", "/dev/null", path]
    for folder in (*request.folders, request.workdir):
        words += ["--dir", folder]
    words += ["--chdir", request.workdir, "--clearenv"]
    for name, value in _ENVIRONMENT.items():
        words += ["--setenv", name, value]
    return [*words, "--seccomp", str(filter_end), "--info-fd", str(info), "--", *request.command]


def _enter_user_namespace(uid: int, gid: int, more: int) -> None:
    """Enter a new user namespace, in which this process keeps its uid and gid.

    This process may mount file systems until it executes a program. ``more`` are the flags of other
    namespaces to enter.
    """
    _call("unshare", _CLONE_NEWUSER | more)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _mount_files(request: StartRequest, *, owner: int | None) -> None:
    """Mount the sandbox's disk at ``DISK``, and its root file system at ``DISK/root``."""
    _mount("none", "/", "", _MS_PRIVATE_REC)
    if request.image:
        # mounted as "." below, so that the path is not visible inside, and may contain any character
        os.chdir(request.image)
    inodes = max(16384, request.disk // 4096)
    mine = "" if owner is None else f",uid={owner},gid={owner}"
    _mount(
        request.id,
        DISK,
        "tmpfs",
        _MS_NOSUID | _MS_NODEV,
        f"mode=0755,size={request.disk},nr_inodes={inodes}{mine}",
    )
    for name in ("lower", "upper", "work", "root", "shm"):
        Path(DISK, name).mkdir()
    Path(DISK, "shm").chmod(0o1777)
    if not request.image:
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
    """Write below ``root`` the files and folders that a root file system needs in addition to ``/usr``."""
    for name in _HOST_FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    (root / "var/tmp").chmod(0o1777)
    for name, text in _HOST_FILES.items():
        (root / name).write_text(text)


def _set_limits(request: StartRequest, *, bound_memory: bool) -> None:
    """Set the limits of this process, which nothing inside can raise.

    If ``bound_memory``, the memory of each single process is bounded, too. This is for machines without a
    control group for memory.
    """
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: request.disk,
        resource.RLIMIT_NOFILE: request.num_files,
        resource.RLIMIT_NPROC: request.num_processes + 1,
    }
    if bound_memory:
        wanted[resource.RLIMIT_DATA] = request.memory
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
