"""``agentrl rescore``: pay and credit a run's stored trajectories again, and show what is different."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # what a name stands for is checked where it is used

from agentrl.commands.tables import Table, show
from agentrl.errors import ConfigError, boundary
from agentrl.recipe import Recipe, Stage
from agentrl.recipe.load import load
from agentrl.records.store import iter_trajectories, write_trajectories
from agentrl.rescore import Chain, CreditDifference, Rescored, credit_difference, ledger_differences, rescore


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line says; pieces that it does not name are the run's own."""

    like: Path | None = None
    reward: str | None = None
    transforms: Sequence[str] = ()
    credit: str | None = None
    stage: str | None = None
    out: Path | None = None


def run(folder: Path, asked: Asked) -> None:
    """Rescore the run in ``folder`` and print a table for each stage; with ``out`` write the new trajectories there.

    Raises:
        ConfigError: no run is there, a name stands for nothing, or a measurement that credit needs was not stored.
    """
    own = load(folder)
    other = load(asked.like) if asked.like else own
    stages = [stage for stage in own.stages if asked.stage in (None, stage.name)]
    if not stages:
        raise ConfigError(
            f"the run has no stage {asked.stage!r}; it has {', '.join(stage.name for stage in own.stages)}"
        )
    stored = list(iter_trajectories(folder))
    if not stored:
        raise ConfigError(f"the run in {folder} has stored no trajectories yet")
    for stage in stages:
        found = list(
            rescore(
                [one for one in stored if one.stage == stage.name], chain(_counterpart(other, stage), asked)
            )
        )
        if found:
            _show(stage, found)
            if asked.out is not None:
                _write(asked.out, found)
    if asked.out is not None:
        print(f"written to {asked.out}")


def chain(stage: Stage, asked: Asked) -> Chain:
    """Return the stage's chain with the pieces that were named in their place. A new reward comes without the old one's transforms."""
    transforms = stage.transforms if asked.reward is None else ()
    return Chain(
        reward=stage.reward if asked.reward is None else _named(asked.reward),
        transforms=tuple(_named(name) for name in asked.transforms) or transforms,
        credit=stage.credit if asked.credit is None else _named(asked.credit),
        modifiers=stage.modifiers if asked.credit is None else (),
    )


def _counterpart(recipe: Recipe, stage: Stage) -> Stage:
    """Return the stage of that name in the other recipe, or its last."""
    return next((one for one in recipe.stages if one.name == stage.name), recipe.stages[-1])


def _named(name: str) -> Any:
    """Return what ``module:attribute`` stands for; a class is made with its defaults."""
    module, colon, attribute = name.partition(":")
    if not colon or not attribute:
        raise ConfigError(
            f"{name!r} names no piece; give it as module:attribute, such as agentrl.rewards.outcome:EnvReward"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    with boundary(ConfigError, f"importing {name!r}"):
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found() if isinstance(found, type) else found


def _show(stage: Stage, found: Sequence[Rescored]) -> None:
    episodes = sum(len(group) for one in found for group in one.groups)
    rows = [
        (row.component, f"{row.before:.4f}", f"{row.after:.4f}", f"{row.changed:.1%}")
        for row in ledger_differences(found)
    ]
    columns = ("paid per episode", "stored", "rescored", "turns that differ")
    notes = (f"{episodes} episodes of {len(found)} updates", *_of_credit(credit_difference(found)))
    show(Table(f"stage {stage.name!r}", columns, tuple(rows), notes))
    print()


def _of_credit(difference: CreditDifference | None) -> list[str]:
    if difference is None:
        return ["no advantages were stored"]
    alike = (
        "undefined, as one of them does not vary"
        if math.isnan(difference.correlation)
        else f"{difference.correlation:.4f}"
    )
    return [
        f"advantages of {difference.num_tokens} action tokens: correlation {alike}, "
        f"{difference.flipped:.1%} change their sign, largest difference {difference.largest:.4g}"
    ]


def _write(out: Path, found: Sequence[Rescored]) -> None:
    for one in found:
        path = out / f"update={one.update:06d}" / "part-0.parquet"
        write_trajectories(path, one.groups, one.credited, update=one.update, stage=one.stage)
