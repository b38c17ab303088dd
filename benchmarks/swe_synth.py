"""Making SWE tasks: valid bugs per CPU-minute, how many are available, and whether the shipped rows hold.

    python benchmarks/swe_synth.py                        # h11, voluptuous, semver: 60 valid bugs each
    python benchmarks/swe_synth.py --packages cachetools  # other packages
    python benchmarks/swe_synth.py --sample               # verify every shipped row by the official rule

CPU time includes everything: syntax trees, sandboxes, the suites without bugs, both runs of every candidate.
Rows are neither written nor graded. The number of available bugs is the number of candidates times the share
that is valid, for single bugs only; combined bugs come on top.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
from collections import Counter

from agentrl_environments.swe import SAMPLE, rows
from agentrl_environments.swe.cli import verify_all
from agentrl_environments.swe.synth import mutate, packages, validate
from agentrl_environments.swe.synth.candidates import CandidateOutcome
from agentrl_sandboxes.local import Local
from rich.console import Console
from rich.table import Table

TARGET = 25.0
"""Required valid bugs per CPU-minute."""


def cpu_s() -> float:
    """Return the processor time of this process and of all children that it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


async def search(name: str, target: int, workers: int) -> Counter[str]:
    """Find valid bugs of a package, without earlier results; count the candidates by outcome."""
    tree = packages.fetch(packages.named(name))
    async with Local().serve(run="benchmark") as sandboxes:
        found = validate.search(
            sandboxes, tree, mutate.candidates(tree, seed=0), target=target, workers=workers
        )
        return Counter([str(finding.outcome) async for finding in found])


def measure(names: list[str], target: int, workers: int) -> None:
    """Print the table."""
    table = Table(
        "package", "tried", "valid", "CPU s", "valid / CPU-min", f"x {TARGET:.0f}", "candidates", "available"
    )
    total = 0.0
    for name in names:
        tree = packages.fetch(packages.named(name))
        before = cpu_s()
        counts = asyncio.run(search(name, target, workers))
        spent = cpu_s() - before
        num_candidates = sum(1 for _ in mutate.candidates(tree, seed=0, per_function=10**9))
        tried, valid = sum(counts.values()), counts[CandidateOutcome.VALID]
        rate, available = 60 * valid / spent, num_candidates * valid / tried
        total += available
        cells = (
            tried,
            valid,
            f"{spent:.0f}",
            f"{rate:.0f}",
            f"{rate / TARGET:.1f}",
            num_candidates,
            f"{available:.0f}",
        )
        table.add_row(name, *map(str, cells))
    Console().print(table)
    Console().print(f"{total:.0f} valid single bugs available from {len(names)} packages")


async def verify_sample(workers: int) -> None:
    """Print the shipped rows that fail verification."""
    sample = rows.load(SAMPLE)
    async with Local().serve(run="benchmark") as sandboxes:
        failed = await verify_all(sandboxes, sample, workers=workers)
    for problem in failed.values():
        Console().print(problem)
    Console().print(f"{len(sample) - len(failed)} of {len(sample)} shipped rows hold")


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", nargs="+", default=["h11", "voluptuous", "semver"])
    parser.add_argument("--target", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sample", action="store_true")
    options = parser.parse_args()
    if options.sample:
        asyncio.run(verify_sample(options.workers))
    else:
        measure(options.packages, options.target, options.workers)


if __name__ == "__main__":
    main()
