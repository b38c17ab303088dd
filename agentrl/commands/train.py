"""``agentrl train``: run a recipe, or go on with one, and say what came of it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from agentrl.evaluate import Report, compare
from agentrl.files import replace
from agentrl.recipe import Origin, Recipe, read
from agentrl.tables import Reporter, Table, comparison_table, plain, results_table, show
from agentrl.train import train


def located(target: Path, overrides: Sequence[str], out: Path | None) -> tuple[Recipe, Origin, Path]:
    """Return the recipe of a file or run folder, where it came from, and the folder it runs in."""
    recipe, origin = read(target, overrides)
    return recipe, origin, out or (target if target.is_dir() else Path("runs") / recipe.name)


def run(target: Path, overrides: Sequence[str], out: Path | None) -> None:
    """Train to the end and print the results; ``KeyboardInterrupt`` passes through with the way to go on."""
    recipe, origin, folder = located(target, overrides, out)
    try:
        with Reporter() as reporter:
            reports = asyncio.run(train(recipe, folder, reporter, origin))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; the same command goes on where {folder} was left") from None
    tables = results(recipe, reports)
    write(folder, reports, tables)
    for table in tables:
        show(table)
        print()
    print(f"run folder   {folder}  (results.md, metrics.jsonl, trajectories/, evaluations/)")
    if (folder / "tensorboard").exists():
        print(f"curves       tensorboard --logdir {folder / 'tensorboard'}")
    print(f"evaluate     agentrl eval {folder}")


def results(recipe: Recipe, reports: Mapping[str, Report]) -> list[Table]:
    """Return the final tables: every policy that was measured; and, where learning has a before and an after, the paired difference."""
    agent = [name for name in reports if name not in recipe.evaluation.baselines]
    names = {name: name for name in reports}
    if len(agent) > 1:
        names |= {agent[0]: f"{agent[0]} (before)", agent[-1]: f"{agent[-1]} (after)"}
    sampling = recipe.evaluation.sampling
    title = f"{recipe.name}: split {recipe.evaluation.split!r}, temperature {sampling.temperature:g}"
    tables = [results_table({names[name]: report for name, report in reports.items()}, title=title)]
    if len(agent) > 1:
        tables.append(comparison_table(compare(reports[agent[0]], reports[agent[-1]])))
    return tables


def write(folder: Path, reports: Mapping[str, Report], tables: Sequence[Table]) -> None:
    """Write ``results.json`` (measures of every report, in order) and ``results.md`` to the run folder."""
    shown = {
        name: {
            "report": f"evaluations/{name}.json",
            "measures": {
                measure: {key: value if math.isfinite(value) else None for key, value in asdict(interval).items()}
                for measure, interval in report.measures().items()
            },
        }
        for name, report in reports.items()
    }
    replace(folder / "results.json", json.dumps(shown, indent=1).encode() + b"\n")
    replace(folder / "results.md", "\n".join(f"```\n{plain(table)}\n```\n" for table in tables).encode())
