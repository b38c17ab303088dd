"""The smallest recipes that use everything: a test changes what it tests and trains in a second or two."""

import asyncio
import dataclasses
import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from corridor import LETTERS, Corridor
from safetensors.numpy import load_file

from agentrl.commands.reporter import ConsoleReporter
from agentrl.credit.constant import ConstantCredit
from agentrl.credit.modifiers import Whiten
from agentrl.credit.returns import TurnReturn
from agentrl.learner import Compute, Optimisation
from agentrl.learner.spec import ModelSpec, Shape, TrainedTokenizer
from agentrl.losses.clip import Clip
from agentrl.losses.objective import Objective
from agentrl.policy import ExpertPolicy, RandomPolicy, Sampling
from agentrl.recipe import Checkpoints, Evaluation, Recipe, Stage
from agentrl.records.metrics import read_metrics
from agentrl.records.store import Stored, iter_trajectories
from agentrl.render import TagRenderer
from agentrl.rewards.outcome import EnvReward
from agentrl.rollout import Limits
from agentrl.sources import Demonstrations, Rollouts
from agentrl.train import train


class Letters(TagRenderer):
    """Only letters (or nothing) may be said, so an untrained model plays at random.

    Learning then starts above the floor, and can fall.
    """

    def allowed(self, vocab_size: int) -> npt.NDArray[np.bool_]:
        return np.isin(np.arange(vocab_size), [token for letter in LETTERS for token in self.encode(letter)])


SHAPE = Shape(hidden=32, layers=1, heads=2, kv_heads=1, mlp=64, max_context=64)

WARM = Stage(
    name="warm",
    updates=3,
    source=Demonstrations(policy=ExpertPolicy(), num_episodes=12, batch=5),
    credit=ConstantCredit(1.0),
    objective=Objective(observation_weight=0.3),
    optimisation=Optimisation(lr=3e-3),
    minibatches=2,
)

LEARN = Stage(
    name="learn",
    updates=4,
    source=Rollouts(num_groups=4, group_size=2),
    reward=EnvReward(),
    credit=TurnReturn(gamma=0.9),
    modifiers=(Whiten(),),
    objective=Objective(loss=Clip()),
    optimisation=Optimisation(lr=3e-3),
    epochs=2,
    minibatches=2,
    evaluate=True,
)

recipe = Recipe(
    name="tiny",
    env=Corridor(),
    model=ModelSpec(shape=SHAPE, tokenizer=TrainedTokenizer(vocab_size=262)),
    renderer=Letters,
    sampling=Sampling(max_tokens=1),
    limits=Limits(max_turns=3, env_deadline_s=20),
    compute=Compute(threads=1),
    stages=(dataclasses.replace(WARM, evaluate=True), LEARN),
    evaluation=Evaluation(sampling=Sampling(max_tokens=1), baselines={"random": RandomPolicy()}),
    checkpoints=Checkpoints(every=1, keep=2),
    sinks=(),
)


def only(stage: Stage, **changes: Any) -> Recipe:  # Any: fields of a Recipe
    """Return the recipe with a single stage."""
    return dataclasses.replace(recipe, stages=(stage,), **changes)


def run(what: Recipe, folder: Path) -> str:
    """Train to the end; return what was said on the way."""
    said = io.StringIO()
    with ConsoleReporter(said) as reporter:
        asyncio.run(train(what, folder, reporter))
    return said.getvalue()


def numbers(folder: Path, name: str) -> list[float]:
    """Return a metric over the updates that have it."""
    return [record[name] for record in read_metrics(folder / "metrics.jsonl") if name in record]


def stored(folder: Path) -> list[Stored]:
    """Return every trajectory that a run kept, failed attempts included."""
    return list(iter_trajectories(folder))


def remains(folder: Path) -> dict[str, Any]:  # Any: bytes, tables and weights, for comparison
    """Return all that a run left behind, without what cannot repeat: wall clock, and when it was started."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name.startswith("tensorboard"):
            continue
        if path.suffix == ".parquet":
            found[name] = repr(
                pq.read_table(path).drop_columns(["duration_s"]).to_pylist()
            )  # as text NaN equals NaN
        elif path.suffix == ".safetensors":
            found[name] = {key: (value.shape, value.tobytes()) for key, value in load_file(path).items()}
        elif name in ("timing.jsonl", "manifest.json"):
            found[name] = (
                [(record["update"], record["stage"]) for record in read_metrics(path)]
                if name == "timing.jsonl"
                else None
            )
        else:
            found[name] = path.read_bytes()
    return found


def in_background(
    method: Any, what: Recipe, folder: Path
) -> Any:  # Any: a multiprocessing context, and its process
    """Start ``run`` in a process of its own."""
    process = method.Process(target=functools.partial(run, what, folder))
    process.start()
    return process


def reports_of(what: Recipe, folder: Path) -> dict[str, Any]:  # Any: evaluation reports
    """Train to the end; return the evaluations."""
    with ConsoleReporter(io.StringIO()) as reporter:
        return dict(asyncio.run(train(what, folder, reporter)))


def remains_of(what: Recipe, folder: Path) -> dict[str, Any]:
    """Train to the end; return what is left behind."""
    run(what, folder)
    return remains(folder)
