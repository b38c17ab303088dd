"""``agentrl rescore``: reward and credit a run's stored trajectories again, and show what changes."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any  # a loaded object is checked where it is used

from agentrl.commands.tables import Table, show
from agentrl.errors import ConfigError, boundary
from agentrl.recipe import Recipe, Stage
from agentrl.recipe.load import load
from agentrl.records.store import iter_trajectories, write_trajectories
from agentrl.rescore import Chain, CreditDifference, Rescored, credit_difference, ledger_differences, rescore
from agentrl.rewards import Transform
from agentrl.rewards.compose import FunctionTransform


@dataclass(frozen=True, slots=True, kw_only=True)
class RescoreRequest:
    """The options of ``agentrl rescore``. For an option that is ``None`` or empty, the run's part is used."""

    like: Path | None = None
    reward: str | None = None
    transforms: Sequence[str] = ()
    credit: str | None = None
    stage: str | None = None
    out: Path | None = None


def run(folder: Path, request: RescoreRequest) -> None:
    """Rescore the run in ``folder`` and print a table per stage; with ``out``, also write the trajectories.

    Raises:
        ConfigError: ``folder`` is not a run, a name cannot be loaded, or a measurement that credit needs
            was not stored.
    """
    own = load(folder)
    other = load(request.like) if request.like else own
    stages = [stage for stage in own.stages if request.stage in (None, stage.name)]
    if not stages:
        raise ConfigError(
            f"the run has no stage {request.stage!r}; it has {', '.join(stage.name for stage in own.stages)}"
        )
    stored = list(iter_trajectories(folder))
    if not stored:
        raise ConfigError(f"the run in {folder} has stored no trajectories yet")
    for stage in stages:
        trajectories = [one for one in stored if one.stage == stage.name]
        rescored = list(rescore(trajectories, chain(_counterpart(other, stage), request)))
        if rescored:
            _show(stage, rescored)
            if request.out is not None:
                _write(request.out, rescored)
    if request.out is not None:
        print(f"written to {request.out}")


def chain(stage: Stage, request: RescoreRequest) -> Chain:
    """Return the stage's reward, transforms, credit and modifiers, or those that ``request`` names instead.

    If the request names a reward, the stage's transforms are not used; if it names a credit rule, the stage's
    modifiers are not used.
    """
    transforms = stage.transforms if request.reward is None else ()
    return Chain(
        reward=stage.reward if request.reward is None else _load(request.reward),
        transforms=tuple(_transform(name) for name in request.transforms) or transforms,
        credit=stage.credit if request.credit is None else _load(request.credit),
        modifiers=stage.modifiers if request.credit is None else (),
    )


def _counterpart(recipe: Recipe, stage: Stage) -> Stage:
    """Return the stage of ``recipe`` that has the same name as ``stage``, or the last one if none has."""
    return next((one for one in recipe.stages if one.name == stage.name), recipe.stages[-1])


def _transform(name: str) -> Transform:
    """Return the transform at ``module:attribute``; a plain function is wrapped in a transform."""
    found = _load(name)
    return FunctionTransform(found) if isinstance(found, FunctionType) else found


def _load(name: str) -> Any:
    """Return the object at ``module:attribute``; a class is instantiated with its defaults."""
    module, colon, attribute = name.partition(":")
    if not colon or not attribute:
        raise ConfigError(
            f"{name!r} is not module:attribute; give a name such as agentrl.rewards.outcome:EnvReward"
        )
    current = str(Path.cwd())
    if current not in sys.path:
        sys.path.append(current)
    with boundary(ConfigError, f"importing {name!r}"):
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found() if isinstance(found, type) else found


def _show(stage: Stage, rescored: Sequence[Rescored]) -> None:
    episodes = sum(len(group) for one in rescored for group in one.groups)
    rows = [
        (row.component, f"{row.before:.4f}", f"{row.after:.4f}", f"{row.changed:.1%}")
        for row in ledger_differences(rescored)
    ]
    columns = ("paid per episode", "stored", "rescored", "turns that differ")
    notes = (f"{episodes} episodes of {len(rescored)} updates", *_credit_notes(credit_difference(rescored)))
    show(Table(f"stage {stage.name!r}", columns, tuple(rows), notes))
    print()


def _credit_notes(difference: CreditDifference | None) -> list[str]:
    if difference is None:
        return ["no advantages were stored"]
    correlation = (
        "undefined, as one of them does not vary"
        if math.isnan(difference.correlation)
        else f"{difference.correlation:.4f}"
    )
    return [
        f"advantages of {difference.num_tokens} action tokens: correlation {correlation}, "
        f"{difference.flipped:.1%} change their sign, largest difference {difference.largest:.4g}"
    ]


def _write(out: Path, rescored: Sequence[Rescored]) -> None:
    for one in rescored:
        path = out / f"update={one.update:06d}" / "part-0.parquet"
        write_trajectories(path, one.groups, one.credited, update=one.update, stage=one.stage)
