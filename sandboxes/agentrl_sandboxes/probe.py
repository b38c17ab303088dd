"""Probes what the local back end really isolates and enforces on this machine.

It starts one sandbox with small limits. The program below runs in it, tries what must fail, and uses
resources up to the limits.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrl.errors import ConfigError, SandboxError
from agentrl.sandbox import Capabilities, Limit
from agentrl.types import SandboxSpec
from agentrl_sandboxes import records, seccomp
from agentrl_sandboxes.leases import new_lease
from agentrl_sandboxes.local_backend import LocalBackend

DEADLINE_S = 60.0
_INSIDE = r"""
import ctypes, json, os, resource, signal, socket, sys, time
secret = sys.argv[1]
memory, disk, processes, files, cpus = map(float, sys.argv[2:])
C = ctypes.CDLL(None)
found, leaks = {}, []

def works(attempt):
    try:
        attempt()
    except OSError:
        return False
    return True

def denied(what, attempt):
    if works(attempt):
        leaks.append(what)

def call(name, *arguments):
    if getattr(C, name)(*arguments) != 0:
        raise OSError

def child(work):
    pid = os.fork()
    if pid == 0:
        os._exit(work())
    return os.waitpid(pid, 0)[1]

status = dict(line.split(":", 1) for line in open("/proc/self/status"))
if any(int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")):
    leaks.append("keep a capability")
if os.stat("/proc/sys/kernel").st_uid == 0:  # the host's root owns it, and must be nobody here
    leaks.append("be root of the host")
if os.getpid() != 1 or [name for name in os.listdir("/proc") if name.isdigit()] != ["1"]:
    leaks.append("see other processes")
if [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line] != ["lo"]:
    leaks.append("see other networks")
if os.path.exists(secret):
    leaks.append("see the host's files")
denied("make a user namespace", lambda: call("unshare", 0x10000000))
denied("mount", lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None))
denied("write sysctls", lambda: open("/proc/sys/kernel/core_pattern", "w").close())
denied("write sysctls", lambda: open("/proc/sys/net/ipv4/ip_forward", "w").close())
denied("open a socket to the hypervisor", lambda: socket.socket(40, socket.SOCK_STREAM).close())

def replace():  # a folder in place of the image's: needs extended attributes of the layer above
    os.rmdir("/mnt")
    os.mkdir("/mnt")
found["overlay"] = works(replace)

written = 0
try:
    with open("/workspace/fill", "wb", 0) as stream:
        while written < 2 * disk:
            written += stream.write(b"x" * 65536)
except OSError:
    found["disk"] = written <= disk
os.unlink("/workspace/fill")

found["files"] = resource.getrlimit(resource.RLIMIT_NOFILE)[1] == files

pids = []
try:
    while len(pids) < processes + 4:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        pids.append(pid)
except OSError:
    found["processes"] = len(pids) <= processes
for pid in pids:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

def burn():
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    return time.process_time() / 0.3 > (1 + cpus) / 2
found["cpu"] = child(burn) == 0

def grow():
    kept = bytearray(int(1.5 * memory))
    for at in range(0, len(kept), 4096):
        kept[at] = 1
    return 0
found["memory"] = child(grow) == signal.SIGKILL

found["leaks"] = leaks
os.write(1, json.dumps(found).encode())
"""
_SYSCTLS = (
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ("user/max_user_namespaces", "0", "10000"),
)
"""Sysctls that disable unprivileged user namespaces: the value that disables them, and one that does not."""


def bubblewrap() -> str:
    """Return the path of bubblewrap.

    Raises:
        ConfigError: this is not Linux, there is no filter of system calls for this machine, or bubblewrap is
            not installed.
    """
    if sys.platform != "linux":
        raise ConfigError(f"local sandboxes need Linux namespaces, and this is {sys.platform}; use Docker")
    try:
        seccomp.program()
    except LookupError as problem:
        raise ConfigError(
            f"local sandboxes cannot filter system calls on this machine: {problem}; use Docker"
        ) from problem
    found = shutil.which("bwrap")
    if found is None:
        raise ConfigError(
            "local sandboxes need bubblewrap 0.8 or newer, and no bwrap is on the path; "
            "as root: apt-get install bubblewrap"
        )
    return found


async def probe(backend: LocalBackend) -> Capabilities:
    """Return what the back end really isolates and enforces, as seen from inside a small sandbox.

    Raises:
        ConfigError: sandboxes cannot be started here, or would not be isolated; the message says why and how
            to mend it.
    """
    image = "host" if os.access("/usr/bin/python3", os.X_OK) else ""
    spec = SandboxSpec(
        image=image,
        cpus=0.5,
        memory_mib=48,
        disk_mib=8,
        num_processes=16,
        num_files=64,
        lifetime_s=DEADLINE_S,
    )
    found, controllers = await _run(backend, spec), await backend.controllers()
    if found["leaks"]:
        raise ConfigError(
            "local sandboxes are not isolated on this machine: "
            f"from inside one can {', '.join(found['leaks'])}; use Docker"
        )
    if not found["overlay"]:
        raise ConfigError(
            f"local sandboxes cannot replace folders of an image on Linux {os.uname().release}: "
            "an overlay in memory needs Linux 6.6, or root; start as root, or use Docker"
        )
    limits: set[Limit] = {"lifetime"}  # the guest enforces it
    limits |= {limit for limit in _PROCESS_LIMITS if found.get(limit)}
    limits |= {limit for limit in _GROUP_LIMITS if found[limit] and limit in controllers}
    return Capabilities(isolation="namespaces", limits=frozenset(limits))


_PROCESS_LIMITS: tuple[Limit, ...] = ("disk", "files", "processes")
"""Limits that need no control group."""
_GROUP_LIMITS: tuple[Limit, ...] = ("cpu", "memory")
"""Limits that need a control group; each has the name of its controller."""


async def _run(backend: LocalBackend, spec: SandboxSpec) -> Mapping[str, Any]:  # Any: JSON
    """Run the program ``_INSIDE`` in a sandbox of ``spec``, and return what the program found."""
    limits = (spec.memory_mib << 20, spec.disk_mib << 20, spec.num_processes, spec.num_files, spec.cpus)
    output = b""
    try:
        command = ["/usr/bin/python3", "-I", "-S", "-c", _INSIDE, str(records.place()), *map(str, limits)]
        async with asyncio.timeout(DEADLINE_S):
            handle = await backend.create(spec, new_lease(lifetime_s=DEADLINE_S), command)
            try:
                stream = await backend.open_stream(handle)
                while data := await stream.receive():
                    output += data
            finally:
                await backend.destroy(handle)
        found: Mapping[str, Any] = json.loads(output)
    except (SandboxError, OSError, ValueError) as problem:
        raise ConfigError(
            f"local sandboxes do not work on this machine: {problem or 'no answer'}; {_mend(str(problem))}"
        ) from problem
    return found


def _mend(problem: str) -> str:
    """Return the advice that is most likely to help after a start that failed with this error."""
    if "nknown option" in problem:
        return "bubblewrap 0.8 or newer is needed: install a newer one, or use Docker"
    for name, bad, good in _SYSCTLS:
        path = Path("/proc/sys", name)
        if path.exists() and path.read_text().strip() == bad:
            setting = f"{name.replace('/', '.')}={good}"
            return f"unprivileged user namespaces are disabled; as root: sysctl -w {setting}, or use Docker"
    if Path("/run/.containerenv").exists() or Path("/.dockerenv").exists():
        return (
            "containers usually refuse namespaces: start this one with --security-opt seccomp=unconfined, "
            "or use its host's Docker"
        )
    if "overlay" in problem:
        return (
            "an overlay in a user namespace needs Linux 5.11, and Linux 6.6 to replace folders; "
            "start as root, or use Docker"
        )
    return "user namespaces and overlays must be allowed; else use Docker"
