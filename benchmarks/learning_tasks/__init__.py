"""The learning benchmark's trials: each is a question, a game made for it, and the methods that are compared.

Every method of a trial starts from the same weights and plays the same number of episodes. The weights are
those of a tiny language model, trained from scratch to imitate an expert who errs on most turns, or on all:
it knows the words and little more. The methods then differ only in the fields that are written beside their
names.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any  # the fields of a stage that a method changes have many types

from agentrl.credit.constant import ConstantCredit
from agentrl.credit.group import GRPO
from agentrl.env import EnvSpec
from agentrl.learner import Compute, Linear, Optimisation
from agentrl.learner.spec import ModelSpec, Shape, TrainedTokenizer
from agentrl.losses.clip import Clip
from agentrl.losses.objective import Objective
from agentrl.policy import ErringPolicy, ExpertPolicy, RandomPolicy, Sampling
from agentrl.recipe import Checkpoints, Evaluation, Recipe, Stage
from agentrl.render import TagRenderer
from agentrl.rollout import Limits
from agentrl.sources import Demonstrations, Rollouts

WORD = Sampling(temperature=1.0, max_tokens=1)
SCRATCH = ModelSpec(
    shape=Shape(hidden=48, layers=1, mlp=144, max_context=64),
    tokenizer=TrainedTokenizer(vocab_size=340, num_episodes=200),
)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One question, and the runs that answer it."""

    question: str
    env: EnvSpec
    methods: Mapping[str, Mapping[str, Any]]
    """The fields of ``stage`` that each method changes, by its name; the first method is the baseline."""
    stage: Stage
    threshold: float
    """The success in training that counts as reached."""
    start: Stage
    """The stage that trains the weights from which every method starts."""

    def beginning(self, seed: int) -> Recipe:
        """Return the recipe that trains the weights from which every method starts."""
        return self._recipe("start", seed, SCRATCH, self.start)

    def recipe(self, method: str, seed: int, model: str) -> Recipe:
        """Return the recipe of a method, which starts from the weights in the folder ``model``."""
        return self._recipe(
            method, seed, ModelSpec(folder=model), replace(self.stage, **self.methods[method])
        )

    def _recipe(self, name: str, seed: int, model: ModelSpec, stage: Stage) -> Recipe:
        return Recipe(
            name=name,
            env=self.env,
            model=model,
            stages=(stage,),
            seed=seed,
            renderer=functools.partial(TagRenderer, history=0),
            sampling=WORD,
            limits=Limits(concurrency=128),
            compute=Compute(threads=1),
            evaluation=Evaluation(split="test", sampling=WORD),
            checkpoints=Checkpoints(every=10_000, keep=1),
            monitors=(),
            sinks=(),
        )


def imitate(*, errors: float, updates: int = 40, num_episodes: int = 640) -> Stage:
    """Return a stage that imitates an expert who plays at random on a share ``errors`` of its turns."""
    return Stage(
        name="imitate",
        updates=updates,
        source=Demonstrations(
            policy=ErringPolicy(ExpertPolicy(), RandomPolicy(), errors), num_episodes=num_episodes, batch=64
        ),
        credit=ConstantCredit(1.0),
        objective=Objective(),
        optimisation=Optimisation(lr=5e-3, schedule=Linear(0.1)),
        minibatches=4,
        evaluate=True,
    )


def learn(**changes: Any) -> Stage:
    """Return the stage of a baseline, GRPO on the outcome, with ``changes``."""
    fields: dict[str, Any] = {
        "name": "learn",
        "source": Rollouts(num_groups=8, group_size=8),
        "credit": GRPO(),
        "objective": Objective(loss=Clip(0.2, 0.2)),
        "evaluate": True,
    }
    return Stage(**(fields | changes))
