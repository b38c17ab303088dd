"""``agentrl swe``: make tasks, verify them, and scan trajectories for exploits."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from agentrl.env import Progress
from agentrl.errors import ConfigError, EnvError

if TYPE_CHECKING:
    from agentrl.sandbox import Sandboxes
    from agentrl_environments.swe.rows import Instance
    from agentrl_environments.swe.synth.campaign import CampaignReport

app = typer.Typer(
    no_args_is_help=True, help="Software-engineering tasks: make them, verify them, look for exploits."
)
"""The application that is registered in the entry-point group ``agentrl.commands``."""

SandboxName = Annotated[
    str, typer.Option(help="Sandbox provider that runs the code: NAME or NAME,OPTION=VALUE.")
]


@app.command()
def synth(
    out: Annotated[
        Path,
        typer.Argument(help="Folder for the rows; a stopped campaign is resumed.", show_default=False),
    ],
    package: Annotated[
        list[str] | None,
        typer.Option(
            help="Name, or name==version[:sha256]; may be repeated. Default: all known.", show_default=False
        ),
    ] = None,
    per_package: Annotated[int, typer.Option(min=1, help="Rows per package.")] = 40,
    kind: Annotated[
        list[str] | None, typer.Option(help="Kind of bug; may be repeated. Default: all.", show_default=False)
    ] = None,
    max_failing: Annotated[
        int, typer.Option(min=1, help="Largest number of tests that a bug may break.")
    ] = 30,
    narrow: Annotated[
        bool, typer.Option("--narrow", help="Grade only by the test files that a bug breaks; faster.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Same seed, same rows.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Sandboxes at once.")] = 2,
    sandbox: SandboxName = "local",
) -> None:
    """Make tasks from real packages: bugs that their own tests find, verified by the official rule.

    Writes SWE-bench JSON lines. Fetching new source distributions needs a network or pip's cache; everything
    else is local.
    """
    from agentrl.commands.targets import sandbox as provider_of
    from agentrl_environments.swe.synth import campaign, packages

    plan = campaign.CampaignPlan(
        packages=tuple(packages.named(name) for name in package) if package else packages.PACKAGES,
        per_package=per_package,
        seed=seed,
        kinds=tuple(kind or ()),
        max_failing=max_failing,
        narrow=narrow,
        workers=workers,
    )

    async def work() -> CampaignReport:
        async with provider_of(sandbox).serve(run="swe-synth") as sandboxes:
            with _bar() as progress:
                return await campaign.run(sandboxes, plan, out / "findings", progress=progress)

    report = asyncio.run(work())
    console = Console()
    _print_report(console, report)
    if not report.rows:
        raise ConfigError("no task was made; see the reasons above, and choose other packages or kinds")
    written = _write(out, report.rows)
    console.print(_balance(report.rows))
    console.print(f"{len(report.rows)} rows in {out}: {written}")


@app.command()
def verify(
    file: Annotated[
        Path | None, typer.Argument(help="File of rows. Default: the shipped sample.", show_default=False)
    ] = None,
    number: Annotated[int, typer.Option(min=0, help="Rows to verify, spread over the file; 0: all.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Sandboxes at once.")] = 2,
    sandbox: SandboxName = "local",
) -> None:
    """Verify rows: the tree scores 0 without the fix and 1 with it. Exits with code 1 if a row fails."""
    from agentrl.commands.targets import sandbox as provider_of
    from agentrl_environments.swe import SAMPLE, rows

    instances = rows.load(file or SAMPLE)
    chosen = instances[:: max(1, len(instances) // number)][:number] if number else instances

    async def work() -> dict[str, str]:
        async with provider_of(sandbox).serve(run="swe-verify") as sandboxes:
            with _bar() as progress:
                return await verify_all(sandboxes, chosen, workers=workers, progress=progress)

    failed = asyncio.run(work())
    console = Console()
    for problem in failed.values():
        console.print(f"[red]{problem}")
    console.print(f"{len(chosen) - len(failed)} of {len(chosen)} rows hold")
    if failed:
        raise typer.Exit(1)


@app.command()
def scan(
    path: Annotated[
        Path, typer.Argument(help="A run folder, or a file of trajectories.", show_default=False)
    ],
    submitted: Annotated[
        bool, typer.Option("--submitted", help="Only findings in a submitted patch.")
    ] = False,
) -> None:
    """Scan stored trajectories for known exploits.

    A finding is a reason to read an episode, not a verdict.
    """
    from agentrl.records.store import read_trajectories
    from agentrl_environments.swe.scan import scan as scan_trajectories

    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(
            f"no trajectories in {path}, it has no .parquet file; name a run folder or a file of trajectories"
        )
    counts: Counter[str] = Counter()
    console, episodes = Console(), 0
    for file in files:
        stored = [one.trajectory for one in read_trajectories(file)]
        episodes += len(stored)
        for found in scan_trajectories(stored):
            if found.submitted or not submitted:
                counts[found.exploit] += 1
                solved = " [bold](solved)[/]" if found.success else ""
                console.print(
                    f"{file.name} {found.task} sample {found.sample} turn {found.turn}: "
                    f"{found.exploit}{solved}"
                )
                console.print(f"  {found.excerpt}", style="dim", markup=False)
    table = Table("exploit", "findings")
    for name, count in counts.most_common():
        table.add_row(name, str(count))
    console.print(table)
    console.print(f"{sum(counts.values())} findings in {episodes} episodes")


async def verify_all(
    sandboxes: Sandboxes, instances: Sequence[Instance], *, workers: int, progress: Progress = lambda *_: None
) -> dict[str, str]:
    """Verify rows by the official rule; return the problem of each row that fails, by the row's id."""
    from agentrl_environments.swe import Swe
    from agentrl_environments.swe.synth import build

    failed: dict[str, str] = {}
    queue = list(reversed(instances))
    done = 0

    async def work() -> None:
        nonlocal done
        while queue:
            row = queue.pop()
            task = Swe().task_of(row)
            assert task.sandbox is not None
            async with sandboxes.open(task.sandbox) as sandbox:
                try:
                    await build.verify(sandbox, row)
                except EnvError as problem:
                    failed[row.id] = str(problem)
            done += 1
            progress("verifying rows", done, len(instances))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(workers):
            tasks.create_task(work())
    return failed


def _write(out: Path, made: Sequence[Instance]) -> str:
    """Write all rows into one file, and those of each split into another; return a list of the files."""
    from agentrl_environments.swe import Swe, rows

    spec = Swe()
    rows.write(out / "tasks.jsonl", made)
    written = ["tasks.jsonl"]
    for split in spec.splits:
        some = [row for row in made if spec.split_of(row) == split]
        rows.write(out / f"{split}.jsonl", some)
        written.append(f"{split}.jsonl ({len(some)})")
    return ", ".join(written)


def _print_report(console: Console, report: CampaignReport) -> None:
    from agentrl_environments.swe.synth.candidates import CandidateOutcome

    table = Table("package", "candidates", *(str(outcome) for outcome in CandidateOutcome))
    for name, counts in report.outcomes.items():
        table.add_row(
            name, str(sum(counts.values())), *(str(counts[outcome]) for outcome in CandidateOutcome)
        )
    console.print(table)
    for name, problem in report.unusable.items():
        console.print(f"[yellow]{name} was left out ({problem.reason})[/]: {problem}")
    for why in report.unverified.values():
        console.print(f"[yellow]a row was left out[/]: {why}")


def _balance(made: Sequence[Instance]) -> Table:
    from agentrl_environments.swe.synth import build

    table = Table("", "rows")
    for name, counts in build.summary(made).items():
        table.add_section()
        for value, count in counts.items():
            table.add_row(f"{name}: {value}", str(count))
    return table


@contextmanager
def _bar() -> Iterator[Progress]:
    """Yield a function that reports progress; it shows one progress bar for each activity."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ProgressBar(*columns, console=Console(stderr=True)) as bar:
        known = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = bar.add_task(what, total=total)
            bar.update(known[what], completed=done, total=total)

        yield progress
