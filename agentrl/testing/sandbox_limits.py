"""Clauses on limits: each limit is read back from inside, or exceeded by a little."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace

from agentrl.errors import SandboxError
from agentrl.sandbox import Limit, Sandbox
from agentrl.types import SandboxSpec

SMALL: Mapping[Limit, Mapping[str, float]] = {
    "cpu": {"cpus": 0.5},
    "memory": {"memory_mib": 192, "disk_mib": 16},
    "processes": {"num_processes": 40},
    "disk": {"disk_mib": 16},
    "files": {"num_files": 64},
    "lifetime": {"lifetime_s": 3.0},
}
FORKS = """
import os, sys, time
children = []
try:
    for _ in range({num}):
        pid = os.fork()
        if not pid:
            time.sleep(30)
            os._exit(0)
        children.append(pid)
except OSError:
    pass
for pid in children:
    os.kill(pid, 9)
print(len(children))
"""
ALLOCATE = """
import sys
block = bytearray(int(sys.argv[1]) << 20)
for at in range(0, len(block), 4096):
    block[at] = 1
print("allocated")
"""
OPEN = """
import os
opened = []
try:
    for _ in range(200):
        opened.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
print(len(opened))
try:
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))
    print("raised")
except (ValueError, OSError):
    pass
"""


def limited(spec: SandboxSpec, limit: Limit) -> SandboxSpec:
    """Return ``spec`` with one limit made small."""
    return replace(spec, **SMALL[limit])  # type: ignore[arg-type]  # each is of its field's type


async def cpu(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that a busy loop gets no more processor time than ``cpus`` allows."""
    code = "import time; t = time.time()\nwhile time.time() < t + 2: pass\nprint(time.process_time())"
    ran = await sandbox.exec(["python3", "-c", code])
    used = float(ran.stdout or b"nan")
    if not used <= 2 * 0.5 * 1.5:
        yield f"with cpus=0.5, a loop of 2 s had {used:.2f} s of processor time"


async def memory(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that a process that takes too much memory is killed, and that the sandbox works after that."""
    ran = await sandbox.exec(
        ["python3", "-c", ALLOCATE, str(sandbox.spec.memory_mib * 3 // 2)], timeout_s=30.0
    )
    if b"allocated" in ran.stdout:
        yield f"a process could use 1.5 times the {sandbox.spec.memory_mib} MiB"
    elif ran.timed_out:
        yield "a process that takes too much hangs and is not killed"
    if (await sandbox.exec(["echo", "well"])).stdout != b"well\n":
        yield "the sandbox does not work after one process took too much"


async def processes(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that forks fail at the limit, and that the sandbox works after that."""
    most = sandbox.spec.num_processes
    ran = await sandbox.exec(["python3", "-c", FORKS.format(num=most + 20)], timeout_s=20.0)
    made = int(ran.stdout or b"-1")
    if not 0 < made < most:
        yield f"with num_processes={most}, one command could have {made} children ({ran.stderr[-200:]!r})"
    if (await sandbox.exec(["echo", "well"])).stdout != b"well\n":
        yield "the sandbox does not work after forks failed"


async def disk(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that all writable folders are bounded, and that deleting files makes room again."""
    most = sandbox.spec.disk_mib
    for folder in dict.fromkeys((sandbox.spec.workdir, "/tmp", "/var/tmp", "/dev/shm", "/run", "/root")):
        name = f"{folder}/fill"
        ran = await sandbox.exec(
            [
                "sh",
                "-c",
                f"head -c {(most + most // 2 + 8) << 20} /dev/zero > {name}; stat -c %s {name}; rm -f {name}",
            ]
        )
        size = int(ran.stdout or b"0")
        if size > (most + 4) << 20:
            yield f"with disk_mib={most}, {size >> 20} MiB could be written to {folder}"
    try:
        await sandbox.write("fill", bytes((most + most // 2) << 20))
        yield f"write of 1.5 times the {most} MiB does not fail"
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
            yield f"writing to a full disk raises {problem!r} in place of ENOSPC"
    await sandbox.exec(["rm", "-f", "fill"])
    await sandbox.write("small", b"fits")


async def files(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that no more files can be opened than the limit, and that the limit cannot be raised."""
    ran = await sandbox.exec(["python3", "-c", OPEN])
    opened, _, raised = ran.stdout.decode().partition("\n")
    if not opened.isdigit() or not int(opened) < sandbox.spec.num_files:
        yield f"with num_files={sandbox.spec.num_files}, a process opened {opened!r} ({ran.stderr[-200:]!r})"
    if "raised" in raised:
        yield "the limit can be raised inside"


async def lifetime(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that the sandbox ends by itself, and that calls then raise ``SandboxError``."""
    until = time.monotonic() + sandbox.spec.lifetime_s + 15
    try:
        while time.monotonic() < until:
            await sandbox.exec(["true"])
            await asyncio.sleep(0.2)
    except SandboxError:
        return
    yield f"it still answers 15 s after its {sandbox.spec.lifetime_s:.0f} s"


LIMITS: Mapping[Limit, Callable[[Sandbox], AsyncIterator[str]]] = {
    "cpu": cpu,
    "memory": memory,
    "processes": processes,
    "disk": disk,
    "files": files,
    "lifetime": lifetime,
}
"""The function that checks each limit; it yields the ways in which the limit is not enforced."""
