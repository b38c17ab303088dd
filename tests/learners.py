"""A small learner, random data and random credit for it."""

import hashlib

import numpy as np
import torch

from agentrl.learner import Compute, Optimisation
from agentrl.learner.batch import make_batch
from agentrl.learner.learner import TorchLearner
from agentrl.learner.model import build_model
from agentrl.learner.spec import ModelSpec, Shape
from agentrl.losses.clip import Clip
from agentrl.losses.entropy import EntropyBonus
from agentrl.losses.kl import KL
from agentrl.losses.objective import Objective
from agentrl.losses.tis import TokenTIS
from agentrl.losses.value import ValueLoss
from agentrl.types import (
    Action,
    Credited,
    End,
    Observation,
    Scored,
    ScoredGroup,
    Task,
    Trajectory,
    Turn,
    floats,
    ints,
)

VOCAB = 40
SHAPE = Shape(hidden=32, layers=2, heads=4, kv_heads=2, mlp=48, max_context=256)


def trajectory(rng: np.random.Generator, turns: int, *, fresh: tuple[int, ...] = ()) -> Scored:
    played = []
    for turn in range(turns):
        prompt, tokens = (
            rng.integers(0, VOCAB, rng.integers(2, 9)),
            rng.integers(0, VOCAB, rng.integers(1, 5)),
        )
        action = Action(
            "a", ints(prompt), ints(tokens), floats(-rng.uniform(2, 5, len(tokens))), 0, turn in fresh
        )
        played.append(Turn(Observation.text("o"), action))
    return Scored(Trajectory(Task("t"), tuple(played), End.TERMINATED), {})


def groups_of(number: int, *, seed: int = 0) -> list[ScoredGroup]:
    rng = np.random.default_rng(seed)
    return [tuple(trajectory(rng, int(rng.integers(1, 6))) for _ in range(2)) for _ in range(number)]


def credit(groups: list[ScoredGroup], *, seed: int = 1, targets: bool = True) -> list[tuple[Credited, ...]]:
    rng = np.random.default_rng(seed)

    def one(scored: Scored) -> Credited:
        number = scored.trajectory.num_tokens
        goal = np.where(rng.random(number) < 0.5, rng.normal(size=number), np.nan)
        return Credited(floats(rng.normal(size=number)), floats(goal) if targets else None)

    return [tuple(one(scored) for scored in group) for group in groups]


def learner_of(
    *, budget: int = 2048, value_head: bool = True, optimisation: Optimisation | None = None, **spec: object
) -> TorchLearner:
    model = build_model(ModelSpec(shape=SHAPE, tokenizer="-", **spec), VOCAB, seed=3)
    learner = TorchLearner(model, Compute(token_budget=budget), value_head=value_head)
    learner.start(optimisation or Optimisation(lr=1e-3), total_updates=10)
    return learner


EVERYTHING = Objective(
    loss=Clip(),
    regularisers=(EntropyBonus(0.01), KL(0.1)),
    value=ValueLoss(clip=0.2),
    off_policy=TokenTIS(),
    observation_weight=0.3,
)


def twenty_updates(threads: int) -> str:
    """Return a digest of a learner's state after twenty updates."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    learner = learner_of()
    for update in range(20):
        groups = learner.annotate(groups_of(4, seed=update), EVERYTHING.needs)
        learner.update(make_batch(groups, credit(groups)), EVERYTHING, seed=update)
    torch.set_num_threads(before)
    tensors = [tensor.numpy().tobytes() for _, tensor in sorted(learner.state_dict()[0].items())]
    return hashlib.sha256(b"".join(tensors)).hexdigest()
