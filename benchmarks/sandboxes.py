"""Measures the cost of sandboxes: starts, commands, memory, and many at once; optionally also of SWE-ReX.

    python benchmarks/sandboxes.py local                              # a minute; run as root for all limits
    python benchmarks/sandboxes.py local docker                       # the daemon of the docker command
    python benchmarks/sandboxes.py local --baseline ~/.cache/swe-rex  # installs SWE-ReX there if missing

Times are medians of sequential calls, unless a quantile is named. The machine's load is printed, because all
numbers depend on it, except the processor time of a start. This is the time of this process and of its
descendants (not of a daemon), for a sandbox and one command in it. Memory is the proportional set size (PSS:
shared pages are divided among the processes that share them) of all processes that appeared with idle
sandboxes and ended with them, including shims. SWE-ReX runs the same commands in its ``LocalRuntime``, on the
host and without isolation.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TypeVar, get_args

from agentrl_sandboxes.pool import PoolOptions
from rich.console import Console
from rich.table import Table

from agentrl.errors import ConfigError
from agentrl.plugins import load_sandbox, make_sandbox
from agentrl.sandbox import Limit, Sandboxes
from agentrl.types import SandboxSpec

T = TypeVar("T")
SPEC = SandboxSpec(memory_mib=512, disk_mib=256, num_processes=64)
FLOOD = "head -c 30000000 /dev/zero | tr '\\0' x"
VERSION = "1.4.0"
BASELINE = """
import asyncio, json, statistics, sys, time
from swerex.runtime.abstract import BashAction, CreateBashSessionRequest
from swerex.runtime.local import LocalRuntime

async def main():
    found, runtime = {}, LocalRuntime()
    start = time.perf_counter()
    await runtime.create_session(CreateBashSessionRequest())
    found["start"] = time.perf_counter() - start
    async def timed(command, timeout):
        start = time.perf_counter()
        await runtime.run_in_session(BashAction(command=command, timeout=timeout))
        return time.perf_counter() - start
    found["shell"] = statistics.median([await timed("echo hi", 10) for _ in range(15)])
    found["process"] = statistics.median([await timed("/bin/true", 10) for _ in range(15)])
    try:
        found["flood"] = await timed(sys.argv[1], 10)
    except Exception as problem:
        found["flood_failed"] = type(problem).__name__
    print(json.dumps(found), flush=True)
    await runtime.close()

asyncio.run(main())
"""
TARGETS: Mapping[str, str] = {
    "start to first command": "local 60 ms, docker 500 ms",
    "start to first command, p95": "",
    "from the pool": "docker 5 ms",
    "reset": "local 80 ms",
    "close": "",
    "processor time of a start": "",
    "starts per second": "local 25",
    "shell command": "local 1 ms",
    "new process": "local 6 ms, docker 8 ms",
    "30 MB of output": "1 s",
    "memory of an idle one": "8 MB",
    "at once": "local 256, docker 64",
}
UNITS = {"starts per second": "", "30 MB of output": "s", "memory of an idle one": "MB", "at once": ""}


def pss_mb(pids: set[int]) -> float:
    """Return the proportional set size of these processes, except those that have ended meanwhile."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def processes() -> set[int]:
    """Return the pids of all processes."""
    return {int(path.name) for path in Path("/proc").glob("[0-9]*")}


async def timed_ms(work: Callable[[], Awaitable[object]], repeats: int) -> list[float]:
    """Return how long each repeat took, in ms."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        await work()
        found.append((time.perf_counter() - start) * 1000)
    return found


async def starts(sandboxes: Sandboxes, spec: SandboxSpec, repeats: int) -> dict[str, float]:
    """Measure opening, resetting and closing, sequentially."""
    opened, closed, resets = [], [], []
    for _ in range(repeats):
        start = time.perf_counter()
        async with sandboxes.open(spec) as sandbox:
            await sandbox.exec(["true"])
            opened.append((time.perf_counter() - start) * 1000)
            start = time.perf_counter()
            await sandbox.reset()
            await sandbox.exec(["true"])
            resets.append((time.perf_counter() - start) * 1000)
            start = time.perf_counter()
        closed.append((time.perf_counter() - start) * 1000)
    return {
        "start to first command": statistics.median(opened),
        "start to first command, p95": statistics.quantiles(opened, n=20)[-1],
        "reset": statistics.median(resets),
        "close": statistics.median(closed),
    }


async def commands(sandboxes: Sandboxes, spec: SandboxSpec, repeats: int) -> dict[str, float]:
    """Measure commands in one sandbox."""
    async with sandboxes.open(spec) as sandbox, sandbox.shell() as shell:
        await shell.run("true")
        times = {
            "shell command": statistics.median(await timed_ms(lambda: shell.run("echo hi"), 10 * repeats)),
            "new process": statistics.median(await timed_ms(lambda: sandbox.exec(["true"]), 5 * repeats)),
        }
        start = time.perf_counter()
        flood = await shell.run(FLOOD)
        assert flood.output_total == 30_000_000, f"30 MB were written, {flood.output_total} bytes arrived"
        return {**times, "30 MB of output": time.perf_counter() - start}


async def many(sandboxes: Sandboxes, spec: SandboxSpec, number: int) -> dict[str, float]:
    """Open many at once; measure how fast they start, and their memory while idle."""
    before = processes()

    async def opened(stack: AsyncExitStack) -> None:
        sandbox = await stack.enter_async_context(sandboxes.open(spec))
        assert (await sandbox.exec(["echo", "here"])).stdout == b"here\n"

    async with AsyncExitStack() as stack:
        start = time.perf_counter()
        await asyncio.gather(*(opened(stack) for _ in range(number)))
        rate = number / (time.perf_counter() - start)
        held = processes() - before
        sizes = {pid: pss_mb({pid}) for pid in held}
        closing = stack.pop_all()
    await closing.aclose()
    left = processes()
    # processes that are left are not of sandboxes, but of other programs that started meanwhile
    mine = {pid: size for pid, size in sizes.items() if pid not in left}
    return {
        "starts per second": rate,
        "memory of an idle one": sum(mine.values()) / number,
        "at once": number,
    }


async def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure a provider; return all its numbers."""
    fields = {field.name for field in dataclasses.fields(load_sandbox(name))}  # type: ignore[arg-type]  # by contract, a dataclass
    accepted = {"unenforced": frozenset(get_args(Limit))} if "unenforced" in fields else {}
    number = options.at_once or (64 if "docker" in name else 256)
    pool = PoolOptions(num_open=number, num_starting=4)
    spec = dataclasses.replace(SPEC, image=options.image)

    async def served(work: Callable[[Sandboxes], Awaitable[T]], **changed: int) -> T:
        async with make_sandbox(name, **accepted, pool=dataclasses.replace(pool, **changed)).serve(
            run="benchmark"
        ) as sandboxes:
            return await work(sandboxes)

    async def opened(sandboxes: Sandboxes, times: int) -> None:
        for _ in range(times):
            async with sandboxes.open(spec) as sandbox:
                await sandbox.exec(["true"])

    await served(lambda sandboxes: opened(sandboxes, 1))  # builds or imports the image, if necessary
    cpu = []
    for times in (0, options.repeats):
        before = cpu_ms()
        await served(lambda sandboxes, times=times: opened(sandboxes, times))  # type: ignore[misc]
        cpu.append(cpu_ms() - before)
    return {
        "processor time of a start": (cpu[1] - cpu[0]) / options.repeats,
        **await served(lambda sandboxes: starts(sandboxes, spec, options.repeats)),
        **await served(lambda sandboxes: commands(sandboxes, spec, options.repeats)),
        **await served(lambda sandboxes: many(sandboxes, spec, number)),
        "from the pool": await served(
            lambda sandboxes: from_the_pool(sandboxes, spec, options.repeats), num_warm=1
        ),
    }


def cpu_ms() -> float:
    """Return the processor time of this process and of its descendants that have ended."""
    times = os.times()
    return 1000 * (times.user + times.system + times.children_user + times.children_system)


async def from_the_pool(sandboxes: Sandboxes, spec: SandboxSpec, repeats: int) -> float:
    """Return how long it takes to open a warm sandbox."""
    times = []
    for _ in range(repeats):
        async with sandboxes.open(spec):
            pass
        await asyncio.sleep(0.6)
        start = time.perf_counter()
        async with sandboxes.open(spec):
            times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)


def baseline(folder: Path) -> dict[str, float]:
    """Return the numbers of SWE-ReX; install it into a virtual environment if it is missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"swe-rex=={VERSION}"], check=True)
    done = subprocess.run(
        [python, "-c", BASELINE, FLOOD], check=True, capture_output=True, text=True, timeout=120
    )
    found = json.loads(done.stdout.splitlines()[-1])
    times = {
        "start to first command": found["start"] * 1000,
        "shell command": found["shell"] * 1000,
        "new process": found["process"] * 1000,
    }
    return {**times, "30 MB of output": found.get("flood", float("inf"))}


def show(columns: Mapping[str, Mapping[str, float]], other: Mapping[str, float]) -> Table:
    """Return the table; if SWE-ReX was measured, with how many times longer it takes."""
    table = Table(title=f"sandboxes; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
        if other:
            table.add_column("faster by", justify="right")
    if other:
        table.add_column(f"SWE-ReX {VERSION}", justify="right")
    table.add_column("target")
    for row, target in TARGETS.items():
        unit = UNITS.get(row, "ms")
        cells = [row]
        for found in columns.values():
            cells.append(_number(found[row], unit))
            if other:
                cells.append(f"{other[row] / found[row]:.0f}" if row in other else "")
        if other:
            cells.append(_number(other[row], unit) if row in other else "")
        table.add_row(*cells, target)
    return table


def _number(value: float, unit: str) -> str:
    if value == float("inf"):
        return "fails"
    return f"{value:.0f} {unit}".strip() if value >= 100 or not unit else f"{value:.2g} {unit}"


def main() -> None:
    """Print the cost of sandboxes on this machine."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("providers", nargs="+", metavar="NAME", help="a registered name, or module:attribute")
    parser.add_argument(
        "--baseline", type=Path, help="folder of the virtual environment of SWE-ReX; created if it is missing"
    )
    parser.add_argument(
        "--image", default="", help="the image of the sandboxes; by default the provider's own"
    )
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument(
        "--at-once",
        type=int,
        default=0,
        help="how many are open at once; by default 256, or 64 of Docker's",
    )
    options = parser.parse_args()
    columns = {}
    for name in options.providers:
        try:
            columns[name.rpartition(":")[2].lower()] = asyncio.run(measure(name, options))
        except ConfigError as problem:
            Console(stderr=True).print(f"{name}: left out: {problem}", highlight=False)
    other = baseline(options.baseline) if options.baseline else {}
    Console().print(show(columns, other))


if __name__ == "__main__":
    main()
