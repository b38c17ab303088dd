"""``agentrl train``: start or resume a run, and print its results."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from agentrl.commands.reporter import ConsoleReporter
from agentrl.commands.tables import Table, comparison_table, plain, results_table, show
from agentrl.env import EnvSpec
from agentrl.evaluation.report import Report, compare
from agentrl.options import pretty
from agentrl.recipe import Origin, Recipe, check_panels
from agentrl.recipe.check import check
from agentrl.recipe.load import read
from agentrl.recipe.plan import Plan, check_plan, flops_per_s
from agentrl.records.files import replace
from agentrl.records.manifest import read_manifest
from agentrl.train import train


def locate(target: Path, overrides: Sequence[str], out: Path | None) -> tuple[Recipe, Origin, Path]:
    """Return a file's or run folder's recipe, its origin (file and overrides), and the folder it runs in."""
    recipe, origin = read(target, overrides)
    return recipe, origin, out or (target if target.is_dir() else Path("runs") / recipe.name)


def run(target: Path, overrides: Sequence[str], out: Path | None) -> None:
    """Train to the end and print the results.

    Raises:
        KeyboardInterrupt: the run was interrupted; the message says how to resume it.
    """
    recipe, origin, folder = locate(target, overrides, out)
    try:
        with ConsoleReporter() as reporter:
            reports = asyncio.run(train(recipe, folder, reporter, origin))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; the same command resumes {folder}") from None
    tables = results(recipe, reports)
    write(folder, reports, tables)
    for table in tables:
        show(table)
        print()
    print(f"run folder   {folder}  (results.md, metrics.jsonl, trajectories/, evaluations/)")
    if (folder / "tensorboard").exists():
        print(f"curves       tensorboard --logdir {folder / 'tensorboard'}")
    print(f"evaluate     agentrl eval {folder}")


def dry_run(target: Path, overrides: Sequence[str], out: Path | None) -> None:
    """Check a recipe as a run would, and print it with the resources it needs; play and write nothing."""
    recipe, _, folder = locate(target, overrides, out)
    check(recipe)
    plan, panels = check_plan(recipe), _panels(recipe, folder)
    print(pretty(recipe) + "\n")
    show(_stage_table(plan))
    print()
    show(_memory_table(recipe, plan))
    if recipe.compute.device == "cpu":
        rate = flops_per_s()
        print(
            f"\narithmetic   at most {plan.flops / 1e12:,.1f} TFLOP; "
            f"matrix products reach {rate / 1e9:,.0f} GFLOP/s here: "
            f"at most about {_duration(plan.flops / rate)} if they dominate, evaluation not counted"
        )
    for split, content in panels.items():
        print(f"panel        {split} {content}")
    print(
        f"run folder   {folder}"
        + ("  (exists: the run would be resumed)" if (folder / "recipe.json").exists() else "")
    )


def _panels(recipe: Recipe, folder: Path) -> Mapping[str, object]:
    """Return the content hash of each split's tasks, by split, without generating tasks.

    If the environment needs no preparation, the hashes are computed. Otherwise they are read from the run's
    manifest, or, if there is no manifest yet, taken from the recipe (``Recipe.panels``).
    """
    if type(recipe.env).prepare is EnvSpec.prepare:
        return check_panels(recipe)
    manifest = folder / "manifest.json"
    kept = read_manifest(manifest)["panels"] if manifest.exists() else recipe.panels
    return kept if isinstance(kept, Mapping) else {}


def _stage_table(plan: Plan) -> Table:
    rows = [
        (
            row.name,
            row.source,
            *(
                f"{cell:,}" if cell is not None else "-"
                for cell in (row.updates, row.steps, row.episodes, row.tokens)
            ),
        )
        for row in plan.stages
    ]
    note = f"tokens: an upper bound, as if every episode filled the context of {plan.max_context:,}"
    return Table(
        "stages",
        ("stage", "source", "updates", "optimiser steps", "episodes", "tokens per update"),
        tuple(rows),
        (note,),
    )


def _memory_table(recipe: Recipe, plan: Plan) -> Table:
    rows = [(name.replace("_", " "), f"{size:,.0f}") for name, size in plan.memory_mib.items() if size]
    notes = [
        f"{plan.parameters:,} parameters, vocabulary of at most {plan.vocab_size:,}, "
        f"on {recipe.compute.device}"
    ]
    if plan.grown_mib > plan.memory_mib["total"]:
        notes.append(f"if every context reaches its maximum length: {plan.grown_mib:,.0f} MiB")
    return Table("memory", ("purpose", "MiB"), tuple(rows), tuple(notes))


def _duration(seconds: float) -> str:
    for size, unit in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{max(1.0, seconds):.0f} s"


def results(recipe: Recipe, reports: Mapping[str, Report]) -> list[Table]:
    """Return the final tables: the results, with one row per evaluation, and a comparison.

    The comparison is the paired difference between the agent's first and last evaluation, if there is more
    than one.
    """
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
    """Write ``results.json`` (the measures of each report, in order) and ``results.md`` to the run folder."""
    shown = {
        name: {
            "report": f"evaluations/{name}.json",
            "measures": {
                measure: {
                    key: value if math.isfinite(value) else None for key, value in asdict(interval).items()
                }
                for measure, interval in report.measures().items()
            },
        }
        for name, report in reports.items()
    }
    replace(folder / "results.json", json.dumps(shown, indent=1).encode() + b"\n")
    replace(folder / "results.md", "\n".join(f"```\n{plain(table)}\n```\n" for table in tables).encode())
