"""The demo over seeds: success on held-out games before and after training, for each seed.

    python benchmarks/demo.py --seeds 0 1 2 --figure docs/learning-curve.png

``--figure`` draws the learning curves. A run that is already complete in ``--out`` is read, not repeated. The
times are wall clock of this machine; the successes repeat exactly.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

from agentrl.commands.reporter import ConsoleReporter
from agentrl.evaluation.report import Report
from agentrl.options import override
from agentrl.recipe import Recipe
from agentrl.recipe.load import load
from agentrl.records.metrics import read_metrics
from agentrl.train import reports, train

TARGET = {"after": 0.90, "every seed": 0.85, "before, at most": 0.60}


def run(recipe: Recipe, folder: Path) -> tuple[dict[str, Report], float]:
    """Train, or read a complete run; return the evaluations, and the wall-clock seconds of the whole run."""
    took = folder / "took_s.json"
    if not took.exists():
        recipe.env.prepare(lambda *_: None)  # generating games is not timed
        began = time.perf_counter()
        with ConsoleReporter() as reporter:
            asyncio.run(train(recipe, folder, reporter))
        took.write_text(json.dumps(time.perf_counter() - began))
    return reports(recipe, folder), float(json.loads(took.read_text()))


def draw(folders: dict[int, Path], recipe: Recipe, path: Path) -> None:
    """Draw one line per seed of success on training games and one of success on held-out games."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    last = recipe.stages[-1]
    first = recipe.updates - last.updates
    figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    for (seed, folder), colour in zip(
        folders.items(), ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626"), strict=False
    ):
        records = [
            record for record in read_metrics(folder / "metrics.jsonl") if record["stage"] == last.name
        ]
        played = [
            (record["update"] - first + 1, record["rollout/success"])
            for record in records
            if "rollout/success" in record
        ]
        tested = [
            (record["update"] - first + 1, record["eval/success"])
            for record in records
            if "eval/success" in record
        ]
        before = Report.read(
            folder / "evaluations" / f"{recipe.stages[-2].name}-{recipe.stages[-2].updates}.json"
        )
        tested.insert(0, (0, before.measures()["success"].mean))
        axes.plot(*zip(*_smooth(played), strict=True), color=colour, alpha=0.35, linewidth=1.2)
        axes.plot(
            *zip(*tested, strict=True),
            color=colour,
            marker="o",
            markersize=4,
            linewidth=2,
            label=f"seed {seed}",
        )
    baselines = reports(recipe, next(iter(folders.values())))
    axes.axhline(
        baselines["random"].measures()["success"].mean, color="#6b7280", linestyle=":", linewidth=1.2
    )
    axes.annotate(
        "random play",
        (0.45 * last.updates, baselines["random"].measures()["success"].mean),
        va="bottom",
        color="#6b7280",
    )
    axes.set(xlabel="update of the RL stage", ylabel="games won", ylim=(0, 1.02), xlim=(0, last.updates))
    axes.set_title("held-out games (dots) and training games (thin, mean of 5 updates)", fontsize=10)
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)


def _smooth(points: list[tuple[int, float]], width: int = 5) -> list[tuple[int, float]]:
    windows = [points[max(0, end - width) : end] for end in range(1, len(points) + 1)]
    return [(window[-1][0], sum(value for _, value in window) / len(window)) for window in windows]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, default=Path("recipes/textworld_demo.py"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/demo-seeds"))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("set", nargs="*", help="recipe options, path=value")
    options = parser.parse_args()
    recipe = override(load(options.recipe), options.set)
    folders = {seed: options.out / f"seed-{seed}" for seed in options.seeds}
    afters = []
    sys.stdout.write("seed  before                after                 random  expert  wall s\n")
    for seed, folder in folders.items():
        found, took_s = run(override(recipe, [f"seed={seed}"]), folder)
        means = {name: report.measures()["success"] for name, report in found.items()}
        before, after = means[_before(recipe)], list(means.values())[-1]
        afters.append(after.mean)
        cells = [f"{one.mean:.2f} [{one.low:.2f}, {one.high:.2f}]" for one in (before, after)]
        rest = f"{means['random'].mean:.2f}    {means['expert'].mean:.2f}    {took_s:.0f}"
        sys.stdout.write(f"{seed:<5} {cells[0]:<21} {cells[1]:<21} {rest}\n")
        sys.stdout.flush()
    sys.stdout.write(
        f"mean after {sum(afters) / len(afters):.3f}, worst seed {min(afters):.2f}; targets {TARGET}\n"
    )
    if options.figure is not None:
        draw(folders, recipe, options.figure)


def _before(recipe: Recipe) -> str:
    stage = recipe.stages[-2]
    return f"{stage.name}-{stage.updates}"


if __name__ == "__main__":
    main()
