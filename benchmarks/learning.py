"""Does a method learn better? Final success, speed and collapses on four small games with five seeds each.

    python benchmarks/learning.py                                     # everything, one run after another
    python benchmarks/learning.py --tasks corridor --seeds 0 1 --jobs 2 --out runs/learning
    python benchmarks/learning.py --tasks key-door --seeds 5 6 --lr 1e-3  # one learning rate for all methods

A run that is already complete in ``--out`` is read, not repeated. Within a task and seed all methods start
from the same weights and play the same number of episodes. The first method is the baseline, and all methods
use the learning rate that is best for it. Only in ``key-door`` each method has its own: the best of 5e-4,
1e-3 and 2e-3 for it, by the mean final success on the seeds 5 and 6.

``final``: success on 128 test tasks at temperature 1 after the last update, mean over seeds with its 95% t
interval. ``reached``: the first update at which the mean success of three updates' episodes is at least the
threshold; the median over seeds, in which a run that never reaches it counts as later than all others, and
the range of those that do. ``collapsed``: runs that end with less than half of the best success that they
ever had, including at the start.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median
from typing import Any  # a run's record is JSON

from agentrl.commands.reporter import ConsoleReporter
from agentrl.commands.tables import Table, show
from agentrl.evaluation.report import Report
from agentrl.evaluation.statistics import mean_interval
from agentrl.options import describe
from agentrl.recipe import Recipe
from agentrl.records import files
from agentrl.records.metrics import read_metrics
from agentrl.train import train
from benchmarks.learning_tasks import Trial
from benchmarks.learning_tasks.trials import TRIALS

WINDOW = 3
"""Number of updates whose mean success is compared with the threshold."""
LEAST_BEST = 0.1
"""A run whose best success is below this cannot count as collapsed."""
Record = dict[str, Any]


def learn(trial: Trial, method: str, seed: int, folder: Path) -> Record:
    """Train a method from the seed's initial weights, or read a complete run; return the run's record."""
    kept = folder / f"{method.replace(' ', '-')}.json"
    recipe = trial.recipe(method, seed, "start")
    settings = json.dumps(describe([trial.beginning(seed), recipe]))
    if kept.exists() and (known := json.loads(kept.read_text()))["settings"] == settings:
        return dict(known)
    start, model = beginning(trial, seed, folder / "start")
    began = time.process_time()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        final = success(play(trial.recipe(method, seed, str(model)), Path(place)))
        records = read_metrics(Path(place, "metrics.jsonl"))
    curve = [float(record["rollout/success"]) for record in records if "rollout/success" in record]
    record = {
        "settings": settings,
        "seed": seed,
        "start": start,
        "curve": curve,
        "final": final,
        "reached": reached(curve, trial.threshold),
        "collapsed": collapsed([start, *windows(curve)], final),
        "cpu_s": round(time.process_time() - began, 1),
    }
    files.replace(kept, json.dumps(record).encode())
    return record


def beginning(trial: Trial, seed: int, folder: Path) -> tuple[float, Path]:
    """Train the seed's initial weights, if they are missing; return their success and folder."""
    start = success(play(trial.beginning(seed), folder))
    return start, max((folder / "checkpoints").glob("[0-9]*")) / "model"


def play(recipe: Recipe, folder: Path) -> Mapping[str, Report]:
    """Run a recipe to its end without output and return its evaluations."""
    with ConsoleReporter(io.StringIO()) as reporter:
        return asyncio.run(train(recipe, folder, reporter))


def success(reports: Mapping[str, Report]) -> float:
    """Return the success of the last evaluation."""
    return list(reports.values())[-1].measures()["success"].mean


def windows(curve: Sequence[float]) -> Iterator[float]:
    """Yield the mean success of each window of updates."""
    return (fmean(curve[end - WINDOW : end]) for end in range(WINDOW, len(curve) + 1))


def reached(curve: Sequence[float], threshold: float) -> int | None:
    """Return the number of updates after which a window's mean reaches the threshold; ``None``: never.

    >>> reached([0.0, 0.9, 0.9, 0.9], 0.8)
    4
    """
    return next((end for end, mean in enumerate(windows(curve), start=WINDOW) if mean >= threshold), None)


def collapsed(heights: Sequence[float], final: float) -> bool:
    """Return whether ``final`` is less than half of the best success in ``heights``.

    >>> collapsed([0.2, 0.7], 0.3), collapsed([0.2, 0.7], 0.5)
    (True, False)
    """
    return max(heights) >= LEAST_BEST and final < max(heights) / 2


def one_seed(name: str, seed: int, out: Path, lr: float | None) -> dict[str, Record]:
    """Return the records of all methods for one seed, with the trial's learning rates or with one for all."""
    folder = out / name / f"seed-{seed}"
    if lr is None:
        return {method: learn(TRIALS[name], method, seed, folder) for method in TRIALS[name].methods}
    return {
        method: learn(at_rate(TRIALS[name], lr), method, seed, folder / f"lr-{lr:g}")
        for method in TRIALS[name].methods
    }


def at_rate(trial: Trial, lr: float) -> Trial:
    """Return the trial with one learning rate for all methods."""
    optimisation = replace(trial.stage.optimisation, lr=lr)
    return replace(
        trial,
        methods={
            method: {**changes, "optimisation": optimisation} for method, changes in trial.methods.items()
        },
    )


def row(method: str, records: Sequence[Record]) -> tuple[str, ...]:
    """Return a method's row of the table."""
    final = mean_interval([record["final"] for record in records])
    among = f" [{max(final.low, 0.0):.2f}, {min(final.high, 1.0):.2f}]"
    times = [record["reached"] for record in records]
    known = [time for time in times if time is not None]
    middle = median([float("inf") if time is None else time for time in times])
    return (
        method,
        f"{final.mean:.2f}{among}",
        "never" if middle == float("inf") else f"{middle:g}",
        f"{min(known)} to {max(known)}" if known else "",
        str(len(times) - len(known)),
        f"{sum(record['collapsed'] for record in records)} of {len(records)}",
        f"{fmean(record['cpu_s'] for record in records):.0f}",
    )


def without_settings(record: Record) -> Record:
    """Return a record without its settings."""
    return {name: value for name, value in record.items() if name != "settings"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=list(TRIALS), default=list(TRIALS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--lr", type=float, help="a learning rate for all methods, instead of each trial's own"
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of processes, each on one core")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    options = parser.parse_args()
    columns = ("method", "final [95%]", "reached", "range", "never", "collapsed", "CPU s")
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        jobs = {
            name: [pool.submit(one_seed, name, seed, options.out, options.lr) for seed in options.seeds]
            for name in options.tasks
        }
        found: dict[str, dict[str, list[Record]]] = {}
        for name, waiting in jobs.items():
            trial, seeds = TRIALS[name], [job.result() for job in waiting]
            found[name] = {method: [records[method] for records in seeds] for method in trial.methods}
            rows = tuple(row(method, records) for method, records in found[name].items())
            begun = fmean(records["start"] for records in next(iter(found[name].values())))
            notes = (
                f"start {begun:.2f}; {trial.stage.updates} updates; "
                f"reached: success {trial.threshold:g}; {len(seeds)} seeds",
                "",
            )
            show(Table(f"{name}: {trial.question}", columns, rows, notes))
    summary = {
        name: {method: [without_settings(one) for one in records] for method, records in by.items()}
        for name, by in found.items()
    }
    files.replace(options.out / "learning.json", json.dumps(summary, indent=1).encode())
    sys.stdout.write(f"written to {options.out / 'learning.json'}\n")


if __name__ == "__main__":
    main()
