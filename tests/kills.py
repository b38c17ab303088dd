"""Ends processes that open sandboxes at random moments, and reports what is left of them.

``kills.py drive`` is a driver: it opens, uses and closes sandboxes until it is ended. ``kills.py watch``
starts drivers and ends them. It adopts the processes that they leave (it is their subreaper), gives them a
folder for temporary files, and, as root, puts them into control groups. So it sees every process, folder and
group that they leave, and nothing of other processes.
"""

import asyncio
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from agentrl_sandboxes import leases, records
from agentrl_sandboxes.local import Local
from agentrl_sandboxes.pool import PoolOptions

from agentrl.sandbox import Limit, Sandboxes, SandboxProvider
from agentrl.types import SandboxSpec

POOL = PoolOptions(num_warm=1, reap_every_s=1.0)
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "interrupt": signal.SIGINT}

CONTROLLERS = ("pids", "memory", "cpu")
SETTLE_S = 3.0
"""Time in which everything must end by itself, before a reaper is started."""
EARLY = 0.2
"""Share of the drivers that are ended at a random moment in the ``EARLY_S`` after their start. The others are
ended at a random moment in the ``LATE_S`` after their first sandbox is open."""
EARLY_S, LATE_S = 1.5, 1.0


@dataclass
class Found:
    """What a watch has found."""

    num: int = 0
    num_busy: int = 0
    """Drivers that held sandboxes when they were ended."""
    num_reaped: int = 0
    """Batches of drivers after which something was left until a reaper ran."""
    left: list[str] = field(default_factory=list)
    """What was left after the reaper."""
    complaints: list[str] = field(default_factory=list)


def provider(kind: str) -> SandboxProvider:
    """Return the provider: ``local``, or Docker with the daemon of this URL."""
    accepted: frozenset[Limit] = frozenset() if os.geteuid() == 0 else frozenset({"cpu", "memory"})
    if kind == "local":
        return Local(unenforced=accepted, pool=POOL)
    from agentrl_sandboxes.docker import Docker

    return Docker(url=kind, pool=POOL)


def spec(kind: str) -> SandboxSpec:
    return SandboxSpec(image="host" if kind == "local" else "", memory_mib=256, disk_mib=32, num_processes=32)


async def drive(kind: str, how: str, early: bool, after_s: float) -> None:
    """Open and use several sandboxes at once until this process is ended.

    With ``raise_`` and ``cancel`` it ends itself, ``after_s`` after the start or after the first sandbox is
    open.
    """
    opened = asyncio.Event()

    async def episodes(sandboxes: Sandboxes) -> None:
        while True:
            async with sandboxes.open(spec(kind)) as sandbox:
                if not opened.is_set():
                    opened.set()
                    print("open", flush=True)
                await sandbox.write("/workspace/file", b"x" * 100_000)
                await sandbox.exec(["/bin/sh", "-c", "sleep 3600 & setsid sleep 3600 & exit 3"])
                async with sandbox.shell() as shell:
                    await shell.run("sleep 3600 & trap '' TERM HUP")

    async def end() -> None:
        if not early:
            await opened.wait()
        await asyncio.sleep(after_s)
        if how == "cancel":
            main.cancel()
        raise ZeroDivisionError("as asked")

    main = asyncio.current_task()
    assert main
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print_stacks)
    async with asyncio.TaskGroup() as group:
        if how in {"raise_", "cancel"}:
            group.create_task(end())
        async with provider(kind).serve(run="kills") as sandboxes:
            for _ in range(3):
                group.create_task(episodes(sandboxes))
            await asyncio.Event().wait()


def print_stacks() -> None:
    """Print the stacks of all tasks; the watch asks for it when a driver does not end."""
    for task in asyncio.all_tasks():
        print("STACK", task.get_coro(), file=sys.stderr)
        task.print_stack(limit=8, file=sys.stderr)


async def reap(kind: str) -> None:
    """Start a service, which reaps as every later run does."""
    async with provider(kind).serve(run="reaper"):
        pass


class Watch:
    """Starts drivers in their own folder and control groups, ends them, and looks for what is left."""

    def __init__(self, kind: str, seed: int, folder: Path) -> None:
        self.kind, self.folder, self.chance = kind, folder, random.Random(seed)
        self.found = Found()
        self.owners: set[str] = set()
        self.groups = (
            [Path("/sys/fs/cgroup", name, f"agentrl-kills-{os.getpid()}") for name in CONTROLLERS]
            if os.geteuid() == 0
            else []
        )
        self.groups = [group for group in self.groups if group.parent.is_dir()]
        for group in self.groups:
            group.mkdir()
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER

    def close(self) -> None:
        for group in self.groups:
            group.rmdir()

    def start(self, mode: str, *arguments: str) -> subprocess.Popen[str]:
        def join() -> None:
            for group in self.groups:
                (group / "cgroup.procs").write_text("0")

        return subprocess.Popen(
            [sys.executable, __file__, mode, self.kind, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(self.folder)},
            preexec_fn=join,
        )

    def batch(self, hows: list[str]) -> None:
        """End some drivers, each at a random moment, and look for what is left of them all."""
        with ThreadPoolExecutor(len(hows)) as pool:
            plans = [(how, self.chance.random() < EARLY, self.chance.random()) for how in hows]
            for complaints in pool.map(lambda plan: self.one(*plan), plans):
                self.found.complaints += complaints
        if self.settled(SETTLE_S):
            return
        self.found.num_reaped += 1
        _, errors = self.start("reap").communicate(timeout=120)
        self.found.left += [f"{what} after {hows}" for what in self.settled_or_left(SETTLE_S)]
        self.found.complaints += errors.splitlines()

    def one(self, how: str, early: bool, share: float) -> list[str]:
        """Start a driver and end it; return its warnings and errors."""
        moment = share * (EARLY_S if early else LATE_S)
        driver = self.start("drive", how, str(int(early)), str(moment))
        owner = leases.owner(driver.pid)
        self.owners.add(owner)
        assert driver.stdout
        if how in SIGNALS:
            complaints = []
            if not early and not driver.stdout.readline():
                complaints.append(f"{how}: the driver ended before a sandbox was open")
            time.sleep(moment)
            self.found.num_busy += any(owner in one for one in self.sandboxes())
            driver.send_signal(SIGNALS[how])
        else:
            complaints = []
        self.found.num += 1
        try:
            _, errors = driver.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            driver.send_signal(signal.SIGUSR1)
            time.sleep(1)
            driver.kill()
            _, errors = driver.communicate()
            stacks = errors[errors.find("STACK") :]
            complaints.append(f"{how}: the driver did not end within a minute; {stacks}")
        driver.stdout.close()
        lines = errors.splitlines()
        if complaints:
            complaints += lines[-3:]
        return complaints + [f"{how}: {line}" for line in lines if any(word in line for word in COMPLAINTS)]

    def settled(self, within_s: float) -> bool:
        return not self.settled_or_left(within_s)

    def settled_or_left(self, within_s: float) -> list[str]:
        """Wait until nothing is left; return what is left in the end."""
        until = time.monotonic() + within_s
        while (left := list(self.left())) and time.monotonic() < until:
            time.sleep(0.02)
        return left

    def left(self) -> Iterator[str]:
        """Yield the processes, control groups, files and sandboxes of the drivers that exist now."""
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        for pid in below(os.getpid()):
            with suppress(OSError):
                yield f"process {pid} {Path(f'/proc/{pid}/cmdline').read_bytes()[:80]!r}"
        for group in self.groups:
            yield from (f"group {path}" for path in group.rglob("*") if path.is_dir())
            yield from (f"process {pid} in {group}" for pid in (group / "cgroup.procs").read_text().split())
        yield from (f"file {path}" for path in self.folder.iterdir())
        yield from self.sandboxes()

    def sandboxes(self) -> Iterator[str]:
        """Yield the sandboxes of the drivers that the back end knows: by their records, or containers."""
        if self.kind == "local":
            there = [
                (record.labels.get("agentrl.owner", ""), record.id)
                for record in records.read(records.place())
            ]
        else:
            command = [
                "docker",
                "-H",
                self.kind,
                "ps",
                "--all",
                "--no-trunc",
                "--format",
                '{{.Label "agentrl.owner"}} {{.ID}} {{.State}}',
            ]
            listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
            there = [(line.split(" ")[0], line) for line in listed.splitlines()]
        yield from (f"sandbox {name} of {owner}" for owner, name in there if owner in self.owners)


COMPLAINTS = (
    "never retrieved",
    "was destroyed but it is pending",
    "never awaited",
    "ResourceWarning",
    "could not be closed",
)


def below(pid: int) -> list[int]:
    """Return all descendants of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in task.read_text().split():
                found += [int(child), *below(int(child))]
    return found


def watch(kind: str, hows: str, seed: int, together: int) -> None:
    """End drivers in the given ways, ``together`` at a time; print what was found as JSON."""
    with ExitStack() as stack:
        watching = Watch(kind, seed, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        stack.callback(watching.close)
        ways = hows.split(",")
        watching.chance.shuffle(ways)
        for start in range(0, len(ways), together):
            watching.batch(ways[start : start + together])
    print(json.dumps(asdict(watching.found)))


if __name__ == "__main__":
    mode, kind, *rest = sys.argv[1:]
    if mode == "drive":
        asyncio.run(drive(kind, rest[0], rest[1] == "1", float(rest[2])))
    elif mode == "reap":
        asyncio.run(reap(kind))
    else:
        watch(kind, rest[0], int(rest[1]), int(rest[2]))
