"""Two programs that run inside containers: one probes what is enforced, one copies an image's files in.

Both use the standard library only (Python 3.8 or later), and are passed to the interpreter of the image as an
argument.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any  # Any: JSON

from agentrl.sandbox import Limit
from agentrl.types import SandboxSpec

PYTHON = "/usr/bin/python3"
MIB = 1 << 20

SPEC = SandboxSpec(cpus=0.5, memory_mib=64, disk_mib=8, num_processes=64, num_files=64, lifetime_s=60.0)
"""The spec of the sandbox in which ``PROBE`` runs. Its limits are smaller than what a container would get if
the limits were ignored."""

PROBE = (
    f"WORKDIR, CPUS, MEMORY = {SPEC.workdir!r}, {SPEC.cpus!r}, {SPEC.memory_mib * MIB}\n"
    f"PROCESSES, DISK = {SPEC.num_processes}, {SPEC.disk_mib * MIB}\n"
    + r"""
import errno, json, os, resource, signal, socket, time

def text(*names):
    for name in names:
        try:
            with open(name) as file:
                return file.read()
        except OSError:
            pass
    return ""

def number(*names):
    value = text(*names).strip()
    return int(value) if value.isdigit() else 1 << 62

def can_write(folder):
    try:
        os.close(os.open(folder + "/.probe", os.O_CREAT | os.O_WRONLY))
    except OSError:
        return False
    return True

def reaches(family, address):
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
    except OSError:
        return False
    return True

def service():
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        return "nowhere"
    for _ in range(5):
        try:
            socket.create_connection((host, int(port)), 2).close()
        except OSError:
            return "closed"
        time.sleep(1)
    return "open"

def in_child(action):
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]

def memory():
    lines = [line for line in text("/proc/meminfo").splitlines() if line.startswith("MemTotal")]
    total = [int(line.split()[1]) * 1024 for line in lines]
    limit = min(number("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"), *total)
    return limit <= MEMORY or os.WIFSIGNALED(in_child(lambda: bytearray(b"x") * (2 * MEMORY)))

def processes():
    if number("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max") <= PROCESSES:
        return True
    children = []
    try:
        while len(children) <= PROCESSES:
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    except OSError:
        return True
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return False

def cpu():
    quota, period = (text("/sys/fs/cgroup/cpu.max").split() + ["", ""])[:2]
    if not period:
        quota = text("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").strip()
        period = text("/sys/fs/cgroup/cpu/cpu.cfs_period_us").strip()
    if quota.isdigit() and period.isdigit():
        return int(quota) <= CPUS * int(period) + 1
    began, used = time.monotonic(), time.process_time()
    while time.monotonic() - began < 1.0:
        pass
    return (time.process_time() - used) < 1.2 * CPUS

def disk():
    try:
        with open(WORKDIR + "/.probe", "wb") as file:
            for _ in range(DISK // 65536 + 1):
                file.write(b"x" * 65536)
        return False
    except OSError as problem:
        return problem.errno == errno.ENOSPC
    finally:
        if os.path.exists(WORKDIR + "/.probe"):
            os.unlink(WORKDIR + "/.probe")

status = dict(line.split(":", 1) for line in text("/proc/self/status").splitlines() if ":" in line)
folders = ("/", "/etc", "/usr", "/var", "/proc/sys/kernel", "/sys/fs/cgroup")
def say(**found):
    os.write(1, json.dumps(found).encode() + b"\n")

say(
    kernel=os.uname().release,
    pid=os.getpid(),
    uid=os.getuid(),
    capabilities=any(int(status.get(name, "1"), 16) for name in ("CapPrm", "CapEff", "CapBnd")),
    no_new_privileges=int(status.get("NoNewPrivs", "0")),
    seccomp=int(status.get("Seccomp", "0")),
    writable=[folder for folder in folders if can_write(folder)],
    reaches=reaches(socket.AF_INET, "192.0.2.1") or reaches(socket.AF_INET6, "2001:db8::1"),
    service=service(),
    files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
)
for check in (cpu, disk, memory, processes):
    say(trying=check.__name__)
    say(**{check.__name__: check()})
say(trying="")
"""
)

COPY_IN = r'''
import os, stat, sys, tarfile

class Part:
    """The next ``size`` bytes of standard input, unbuffered: the bytes behind them belong to the guest."""
    def __init__(self, size):
        self.left = size
    def read(self, size):
        data = bytearray()
        size = min(size, self.left)
        while len(data) < size:
            more = os.read(0, size - len(data))
            if not more:
                raise EOFError("the files ended early")
            data += more
        self.left -= size
        return bytes(data)

def number(size):
    return int.from_bytes(Part(size).read(size), "big")

def inside(name):
    return name.partition("/")[2]

tarfile.TarFile.extraction_filter = staticmethod(lambda member, path: member)
while True:
    length = number(2)
    if not length:
        break
    folder = Part(length).read(length).decode("utf-8", "surrogateescape")
    part = Part(number(8))
    with tarfile.open(fileobj=part, mode="r|") as archive:
        for member in archive:
            member.name = inside(member.name)
            if not member.name or not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
                continue
            if member.islnk():
                member.linkname = inside(member.linkname)
            member.mode = member.mode & 0o777 | (0o700 if member.isdir() else 0o600)
            archive.extract(member, folder)
    while part.left:
        part.read(1 << 16)
os.write(1, b"+")
os.execv(sys.argv[1], sys.argv[1:])
'''
COPIED = b"+"
"""What ``COPY_IN`` writes when it is done and is about to execute the guest."""
END = b"\0\0"
"""What is sent to ``COPY_IN`` after the last record."""


def record(folder: str, archive: bytes) -> bytes:
    """Return a record for ``COPY_IN``: the path of a folder, and a tar archive of it.

    The record is empty if the folder is empty. The names of the archive's members begin with the last part of
    the path.
    """
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        if not any(len(PurePosixPath(member.name).parts) > 1 for member in members):
            return b""
    name = folder.encode("utf-8", "surrogateescape")
    return len(name).to_bytes(2, "big") + name + len(archive).to_bytes(8, "big") + archive


def report(output: bytes) -> Mapping[str, Any]:
    r"""Combine the output lines of ``PROBE`` into one report.

    If the whole sandbox ended while a limit was tried, as gVisor's does at the limit on processes, then this
    limit holds.

    Raises:
        ValueError: the program ended before it reported anything.

    >>> report(b'{"uid": 1}\n{"trying": "cpu"}\n{"cpu": false}\n{"trying": "disk"}\n')["disk"]
    True
    """
    found: dict[str, Any] = {}
    for line in output.splitlines():
        found |= json.loads(line)
    if "uid" not in found:
        raise ValueError("the probe ended before it reported anything")
    if (last := found.pop("trying", "")) and last not in found:
        found[last] = True
    return {"cpu": False, "disk": False, "memory": False, "processes": False} | found


def holes(report: Mapping[str, Any], *, own_kernel: bool) -> list[str]:
    """Return the ways in which a container with this report is not isolated."""
    found = {
        "it runs as root": report["uid"] == 0,
        "it sees other processes": report["pid"] != 1,
        "it has capabilities": report["capabilities"],
        "it may gain privileges": report["no_new_privileges"] != 1 and not own_kernel,
        "no system calls are filtered": report["seccomp"] != 2 and not own_kernel,
        f"it can write to {', '.join(report['writable'])}": bool(report["writable"]),
        "it has a network": report["reaches"],
    }
    return [hole for hole, is_open in found.items() if is_open]


def enforced(report: Mapping[str, Any]) -> frozenset[Limit]:
    """Return the limits that are enforced in a container with this report.

    The lifetime is always one of them, because the guest enforces it.
    """
    found: dict[Limit, bool] = {
        "cpu": report["cpu"],
        "memory": report["memory"],
        "processes": report["processes"],
        "disk": report["disk"],
        "files": report["files"] <= SPEC.num_files,
        "lifetime": True,
    }
    return frozenset(limit for limit, holds in found.items() if holds)
