"""Attempts to reach the host: each must be denied."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import stat

from agentrl.testing.attacks import Canary, attempt, call, connect, content, in_child, opened, processes, say

UP = "../" * 16
NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x20000,
    0x2000000,
    0x4000000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
NAMESPACES = {
    "user": NEWUSER,
    "user and mount": NEWUSER | NEWNS,
    "user and net": NEWUSER | NEWNET,
    "mount": NEWNS,
    "pid": NEWPID,
}
NAMESPACES.update({"net": NEWNET, "cgroup": NEWCGROUP, "ipc": NEWIPC, "uts": NEWUTS})
SYSCTLS: tuple[str, ...] = (
    "kernel/core_pattern",
    "kernel/panic",
    "kernel/sysrq",
    "kernel/printk",
    "kernel/modprobe",
    "kernel/randomize_va_space",
)
SYSCTLS += ("vm/swappiness", "vm/overcommit_memory", "fs/file-max", "fs/suid_dumpable")
SYSFS = ("/sys/kernel/uevent_helper", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/mm/ksm/run")
HARMLESS = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)}
"""Device numbers of null, zero, full, random, urandom, tty and ptmx."""
TERMINALS = 136
"""The major device number of terminals."""


def read_host_files(canary: Canary) -> None:
    """Read the host's files through paths, descriptors, file handles, a chroot and other processes.

    Of other processes, the root folders and the environments are tried.
    """
    path, secret = canary["file"], canary["secret"].encode()

    def found(name: str) -> bool:
        return secret in content(name)

    for root in (
        "",
        UP,
        "/proc/1/root",
        "/proc/self/root",
        f"/proc/{canary['pid']}/root",
        "/proc/1/cwd/" + UP,
        "/mnt",
        "/host",
        "/oldroot",
    ):
        attempt(f"read {root}{path}", found, root + path)
    attempt("list its folder", os.listdir, os.path.dirname(path))
    for owner in ("self", "1"):
        for fd in os.listdir(f"/proc/{owner}/fd") if os.access(f"/proc/{owner}/fd", os.R_OK) else []:
            attempt(f"through descriptor {fd} of {owner}", found, f"/proc/{owner}/fd/{fd}/{UP}{path}")
    handle = (ctypes.c_char * 32).from_buffer_copy(bytes([8, 0, 0, 0, 1, 0, 0, 0, 2]) + bytes(23))
    root_fd = os.open("/", os.O_RDONLY)
    allowed("open_by_handle_at", root_fd, handle, os.O_RDONLY)

    def break_out() -> bool:
        os.makedirs("cell", exist_ok=True)
        os.chroot("cell")
        os.chdir(UP)
        os.chroot(".")
        return found(path)

    attempt("out of a chroot", in_child, break_out)
    for pid, _ in processes():
        attempt(
            f"environment of {pid}",
            lambda name: canary["env"].encode() in content(name),
            f"/proc/{pid}/environ",
        )
    attempt("kernel log", call, "klogctl", 3, ctypes.create_string_buffer(64), 64)


def allowed(name: str, *arguments: object) -> None:
    """Make a privileged call with an invalid argument; an error about that means that it was allowed."""
    try:
        say(name, True, call(name, *arguments))
    except OSError as problem:
        say(name, problem.errno in {errno.EINVAL, errno.ENOENT, errno.ESTALE, errno.EFAULT}, problem)


def write_host_files(canary: Canary) -> None:
    """Change the canary file and its folder under several paths, and create files with a token as their name.

    The host looks for files of that name.
    """
    path, folder = canary["file"], os.path.dirname(canary["file"])
    for root in ("", UP, "/proc/1/root", f"/proc/{canary['pid']}/root"):
        attempt(f"write {root}{path}", opened, root + path)
        attempt(f"make a file in {root}{folder}", lambda name: open(name, "x"), f"{root}{folder}/new")  # noqa: SIM115
    attempt("change its mode", os.chmod, path, 0o600)
    attempt("remove it", os.remove, path)
    for place in ("/", "/tmp", "/root", "/home", "/etc", "/usr/bin", "/var/tmp", "/dev/shm", "/run", "/opt"):
        name = os.path.join(place, canary["token"])
        try:
            with open(name, "w") as file:
                file.write("from inside")
            say(f"write {name}", False, "written; an escape only if the host finds it")
        except OSError as problem:
            say(f"write {name}", False, problem)


def see_host_processes(canary: Canary) -> None:
    """Look for the host's victim process among all processes."""
    seen = list(processes())
    say(
        "look for the victim",
        any(canary["marker"].encode() in line for _, line in seen),
        f"{len(seen)} processes seen",
    )


def signal_host_processes(canary: Canary) -> None:
    """Slow, trace and kill the victim by its pid, unless another process has that pid here."""
    pid, lines = canary["pid"], dict(processes())
    if pid in lines and canary["marker"].encode() not in lines[pid]:
        say("signal the victim", False, f"process {pid} is another one here")
        return
    attempt("slow it", os.setpriority, os.PRIO_PROCESS, pid, 5)
    attempt("pin it", os.sched_setaffinity, pid, {0})
    attempt("trace it", in_child, call, "ptrace", 16, pid, 0, 0)
    attempt("kill it", os.kill, pid, signal.SIGKILL)


def reach_the_hosts_loopback(canary: Canary) -> None:
    """Connect to a port on which the host listens."""
    port = canary["port"]
    for host in ("127.0.0.1", "127.0.0.2", "0.0.0.0", "localhost", *canary["addresses"]):
        attempt(f"tcp {host}:{port}", connect, socket.AF_INET, socket.SOCK_STREAM, (host, port))
    attempt(f"tcp [::1]:{port}", connect, socket.AF_INET6, socket.SOCK_STREAM, ("::1", port))


def reach_the_network(canary: Canary) -> None:
    """Look for a route to any network, by connecting datagram sockets, which sends nothing.

    A socket of a virtual machine (``AF_VSOCK``) reaches the hypervisor from every network namespace, so it
    must not be possible to create one.
    """
    for host in (
        *canary["addresses"],
        "10.0.0.1",
        "172.17.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "192.0.2.1",
    ):
        attempt(f"route to {host}", connect, socket.AF_INET, socket.SOCK_DGRAM, (host, 9))
    attempt("route to 2001:db8::1", connect, socket.AF_INET6, socket.SOCK_DGRAM, ("2001:db8::1", 9))
    if hasattr(socket, "AF_VSOCK"):
        attempt("a virtual machine's socket", lambda: socket.socket(socket.AF_VSOCK).close())


def resolve_names(canary: Canary) -> None:
    """Resolve a name, and look for a route to a name server."""
    attempt("resolve example.com", socket.getaddrinfo, "example.com", 80)
    servers = ["192.0.2.53"]
    if os.access("/etc/resolv.conf", os.R_OK):
        servers += [
            line.split()[1]
            for line in content("/etc/resolv.conf").decode().splitlines()
            if line.startswith("nameserver ")
        ]
    for server in servers:
        if not server.startswith("127."):
            attempt(
                f"route to {server}",
                connect,
                socket.AF_INET6 if ":" in server else socket.AF_INET,
                socket.SOCK_DGRAM,
                (server, 53),
            )


def reach_host_sockets(canary: Canary) -> None:
    """Connect to an abstract socket of the host, one in a folder, and those of daemons."""
    for name in (
        "\0" + canary["abstract"],
        canary["unix"],
        "/run/docker.sock",
        "/var/run/docker.sock",
        "/run/dbus/system_bus_socket",
    ):
        attempt(f"connect {name!r}", connect, socket.AF_UNIX, socket.SOCK_STREAM, name)
    attempt("see its name", lambda: canary["abstract"].encode() in content("/proc/net/unix"))


def rewrite(path: str) -> str:
    """Write a kernel value back unchanged."""
    value = content(path)
    with open(path, "wb", buffering=0) as file:
        file.write(value or b"\n")
    return f"wrote {value!r}"


def write_sysctls(canary: Canary) -> None:
    """Change settings of the machine in ``/proc`` and ``/sys``, and make calls that only root may make."""
    for path in (*("/proc/sys/" + name for name in SYSCTLS), *SYSFS):
        attempt(path, rewrite, path)
    attempt("sysrq", opened, "/proc/sysrq-trigger")
    for name, arguments in (("swapon", (b"/nothing", 0)), ("acct", (b"/nothing",)), ("reboot", (0x12345,))):
        allowed(name, *arguments)


def make_folder(path: str) -> None:
    """Create a folder, and remove it."""
    os.mkdir(path)
    os.rmdir(path)


def write_cgroups(canary: Canary) -> None:
    """Create a control group, move into one, change a limit, set a release agent, mount the hierarchy."""
    for folder, _, names in list(os.walk("/sys/fs/cgroup"))[:100]:
        attempt(f"make a group in {folder}", make_folder, folder + "/agentrl-abuse")
        for name in {
            "cgroup.procs",
            "release_agent",
            "pids.max",
            "memory.max",
            "memory.limit_in_bytes",
            "cpu.max",
        } & set(names):
            attempt(f"write {folder}/{name}", opened, f"{folder}/{name}")
    os.makedirs("groups", exist_ok=True)  # even if no hierarchy is visible, it might be possible to mount one
    for kind, options in ((b"cgroup", b"pids"), (b"cgroup2", None)):
        attempt(f"mount {kind.decode()}", in_child, call, "mount", b"none", b"groups", kind, 0, options)


def mount(canary: Canary) -> None:
    """Create mounts of several kinds, change that of the root, and remove one."""
    os.makedirs("mounted", exist_ok=True)
    for kind in (b"tmpfs", b"proc", b"sysfs", b"ramfs", b"devtmpfs"):
        attempt(f"mount {kind.decode()}", in_child, call, "mount", kind, b"mounted", kind, 0, None)
    attempt("bind the root", in_child, call, "mount", b"/", b"mounted", None, 4096, None)
    attempt("remount the root", in_child, call, "mount", None, b"/", None, 32 | 4096, None)
    attempt("take /proc away", in_child, call, "umount2", b"/proc", 2)
    attempt("fsopen", in_child, call, "syscall", 430, b"tmpfs", 0)
    attempt("open_tree", in_child, call, "syscall", 428, -100, b"/", 1)


def make_user_namespaces(canary: Canary) -> None:
    """Create namespaces by ``unshare`` and ``clone3``, and try to enter those of process 1."""
    for name, flags in NAMESPACES.items():
        attempt(f"unshare {name}", in_child, call, "unshare", flags)
    attempt("clone3 user", in_child, clone3)
    for kind in ("user", "mnt", "net", "pid"):
        attempt(
            f"enter {kind} of 1",
            in_child,
            lambda name: call("setns", os.open(name, os.O_RDONLY), 0),
            f"/proc/1/ns/{kind}",
        )


def clone3() -> str:
    """Start a child in a new user namespace by ``clone3``, a newer system call than ``clone``."""
    here = os.getpid()
    result = call("syscall", 435, (ctypes.c_uint64 * 8)(NEWUSER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0), 64)
    if os.readlink("/proc/self") != str(
        here
    ):  # this is the child; os.getpid() may still return the parent's pid
        os._exit(0)
    return result


def use_device_nodes(canary: Canary) -> None:
    """Create nodes of the host's memory and disks, and open all devices in ``/dev``."""
    disks = (
        [line.split() for line in content("/proc/partitions").decode().splitlines()[2:]]
        if os.path.exists("/proc/partitions")
        else []
    )
    wanted = [(stat.S_IFCHR, 1, 1), (stat.S_IFCHR, 1, 2), (stat.S_IFCHR, 10, 229)]
    wanted += [(stat.S_IFBLK, int(disk[0]), int(disk[1])) for disk in disks if len(disk) == 4]
    for index, (kind, major, minor) in enumerate(wanted):

        def make(name: str, mode: int, number: int) -> None:
            os.mknod(name, mode | 0o666, number)
            opened(name, os.O_RDONLY)

        attempt(f"node {major}:{minor}", make, f"node-{index}", kind, os.makedev(major, minor))
    for folder, _, names in os.walk("/dev"):
        for name in names:
            path = os.path.join(folder, name)
            found = os.lstat(path)
            number = (os.major(found.st_rdev), os.minor(found.st_rdev))
            if (
                (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode))
                and number not in HARMLESS
                and number[0] != TERMINALS
            ):
                attempt(f"open {path}", opened, path, os.O_RDONLY)
    say("look through /dev", False, "done")


def talk_to_the_guests_pipes(canary: Canary) -> None:
    """Open the pipes that connect the sandbox's own first process to its owner, and that process's memory."""
    for pid in {1, os.getppid()} - {0}:
        for fd in (0, 1, 2):
            attempt(
                f"open descriptor {fd} of {pid}",
                lambda name: os.close(os.open(name, os.O_RDWR | os.O_NONBLOCK)),
                f"/proc/{pid}/fd/{fd}",
            )
        attempt(f"open the memory of {pid}", opened, f"/proc/{pid}/mem")
        attempt(f"trace {pid}", in_child, call, "ptrace", 16, pid, 0, 0)
