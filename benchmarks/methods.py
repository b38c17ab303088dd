"""The recipes of ``recipes/methods`` compared: game, warm start and number of episodes are the same.

    python benchmarks/methods.py --seeds 0 1 2 --jobs 2            # about two minutes of one core per run
    python benchmarks/methods.py --methods grpo gigpo --seeds 0

Prints a Markdown table of the share of 200 held-out games won by the warm start and after the last update;
the mean over the updates of the share of games won in training, which measures how soon the method learned;
the first update after which five consecutive updates won at least ``--threshold`` on average; and processor
time. A run that is complete in ``--out`` is read, not repeated. Each run is a separate process with one
thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from agentrl.evaluation.report import Report
from agentrl.recipe import Recipe
from agentrl.recipe.load import load
from agentrl.records.metrics import read_metrics

FOLDER = Path(__file__).parent.parent / "recipes" / "methods"
WINDOW = 5


@dataclass(frozen=True)
class Result:
    """The results of one run of one method; success is the share of games won."""

    before: float
    after: float
    mean: float
    reached: int | None
    cpu_s: float


def names() -> list[str]:
    """Return the names of the methods that have a recipe."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "base")


def run(name: str, seed: int, out: Path, options: list[str]) -> Path:
    """Train one method with one seed, unless its run is complete; return the run folder."""
    folder = out / f"{name}-{seed}"
    took, log = folder / "cpu_s.json", out / f"{name}-{seed}.log"
    if not took.exists():
        out.mkdir(parents=True, exist_ok=True)
        train = "from agentrl.cli import main; main()"
        command = [
            sys.executable,
            "-c",
            train,
            "train",
            str(FOLDER / f"{name}.py"),
            f"seed={seed}",
            *options,
            "--out",
            str(folder),
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=output, stderr=output
            )
            _, status, used = os.wait4(process.pid, 0)  # includes its worker processes
        if status:
            raise SystemExit(f"{name} with seed {seed} failed:\n{log.read_text()[-2000:]}")
        took.write_text(json.dumps(used.ru_utime + used.ru_stime))
    return folder


def read(folder: Path, recipe: Recipe, threshold: float) -> Result:
    """Return the results of a finished run."""
    warm, last = recipe.stages[-2], recipe.stages[-1]
    records = [record for record in read_metrics(folder / "metrics.jsonl") if record["stage"] == last.name]
    # Records without it are evaluations.
    played = [float(record["rollout/success"]) for record in records if "rollout/success" in record]
    windows = [sum(played[end - WINDOW : end]) / WINDOW for end in range(WINDOW, len(played) + 1)]
    return Result(
        before=_success(folder, f"{warm.name}-{warm.updates}"),
        after=_success(folder, f"{last.name}-{last.updates}"),
        mean=sum(played) / len(played),
        reached=next((end + WINDOW for end, won in enumerate(windows) if won >= threshold), None),
        cpu_s=float(json.loads((folder / "cpu_s.json").read_text())),
    )


def _success(folder: Path, name: str) -> float:
    return Report.read(folder / "evaluations" / f"{name}.json").measures()["success"].mean


def row(name: str, results: list[Result]) -> str:
    """Return a row of the table."""
    before, after = (
        ", ".join(f"{value:.2f}" for value in values)
        for values in zip(*[(r.before, r.after) for r in results], strict=True)
    )
    reached = ", ".join(str(result.reached or "never") for result in results)
    mean, cpu_s = (
        sum(values) / len(values) for values in zip(*[(r.mean, r.cpu_s) for r in results], strict=True)
    )
    return f"| `{name}` | {before} | {after} | {mean:.2f} | {reached} | {cpu_s / 60:.1f} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=names(), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threshold", type=float, default=0.6)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("set", nargs="*", help="recipe options, path=value")
    options = parser.parse_intermixed_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = {
            (name, seed): pool.submit(run, name, seed, options.out, options.set)
            for seed in options.seeds
            for name in options.methods
        }
        sys.stdout.write(
            "| recipe | before | after | mean | reached | CPU min |\n|---|---|---|---|---|---|\n"
        )
        for name in options.methods:
            recipe = load(FOLDER / f"{name}.py", options.set)
            results = [read(runs[name, seed].result(), recipe, options.threshold) for seed in options.seeds]
            sys.stdout.write(row(name, results))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
