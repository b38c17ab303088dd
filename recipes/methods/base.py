"""The parts that all recipes of this folder share, so that two of them differ only in the method.

All recipes play coin collector in houses of eight rooms, begin with the same warm start (after which the
policy still fails most games), and then learn from 128 episodes per update. ``LEARN`` is the common stage:
group-normalised outcomes and a clipped surrogate. The file of a method contains only what it changes. A run
folder keeps a copy of this file.

The warm start is a copy of the demo's, so that an improved demo does not change the measured rows of every
method.

The results in the files are the shares of 200 held-out games won before and after the stage ``learn``.
"""

from dataclasses import replace

from agentrl_environments.textworld import TextWorld

from agentrl.credit.constant import ConstantCredit
from agentrl.credit.group import GRPO
from agentrl.learner import Compute, Linear, Optimisation
from agentrl.learner.spec import ModelSpec, Shape, TrainedTokenizer
from agentrl.losses.clip import Clip
from agentrl.losses.objective import Objective
from agentrl.losses.value import ValueLoss
from agentrl.policy import ExpertPolicy, RandomPolicy, Sampling
from agentrl.recipe import Checkpoints, Evaluation, Recipe, Stage
from agentrl.rewards.compose import Sum
from agentrl.rewards.outcome import Format, Outcome
from agentrl.rollout import Limits
from agentrl.sources import Demonstrations, Rollouts

GAME = TextWorld(game="coin-r8-q4", max_turns=12, train=540)

WARM_START = (
    Stage(
        name="explore",
        updates=30,
        source=Demonstrations(
            policy=RandomPolicy(avoid=("examine", "inventory", "look")),
            num_episodes=2400,
            batch=80,
            max_turns=8,
        ),
        credit=ConstantCredit(1.0),
        objective=Objective(observation_weight=1.0),
        optimisation=Optimisation(lr=2e-3, warmup_updates=2, schedule=Linear(0.1)),
        minibatches=10,
    ),
    Stage(
        name="imitate",
        updates=4,
        source=Demonstrations(policy=ExpertPolicy(), num_episodes=40),
        credit=ConstantCredit(1.0),
        objective=Objective(observation_weight=0.3),
        optimisation=Optimisation(lr=1e-3, schedule=Linear(0.1)),
        minibatches=4,
        evaluate=True,
    ),
)

REWARD = Sum((Outcome(), Format(penalty=0.1)))

LEARN = Stage(
    name="learn",
    updates=40,
    source=Rollouts(num_groups=16, group_size=8),
    reward=REWARD,
    credit=GRPO(),
    objective=Objective(loss=Clip(0.2, 0.2)),
    optimisation=Optimisation(lr=1e-3, warmup_updates=3, schedule=Linear(0.1)),
    minibatches=4,
    evaluate=True,
    evaluate_every=20,
)

WITH_CRITIC = replace(
    LEARN,
    source=Rollouts(num_groups=128, group_size=1),
    objective=Objective(loss=Clip(0.2, 0.2), value=ValueLoss(0.5)),
    optimisation=replace(LEARN.optimisation, lr=6e-4, freeze_policy_updates=3),
)
"""The same stage with a value head.

Every episode is of another game, the first three updates train only the critic, and the learning rate is
lower: at 1e-3 the first updates of Turn-PPO reduced success from 0.41 to 0.09.
"""


def playing(name: str, learn: Stage, *, env: TextWorld = GAME) -> Recipe:
    """Return the recipe of one method: the warm start, followed by the stage ``learn``."""
    return Recipe(
        name=name,
        env=env,
        model=ModelSpec(
            shape=Shape(hidden=128, layers=2, max_context=512), tokenizer=TrainedTokenizer(vocab_size=448)
        ),
        sampling=Sampling(temperature=1.0, max_tokens=8),
        limits=Limits(concurrency=128),
        compute=Compute(threads=1),
        stages=(*WARM_START, learn),
        evaluation=Evaluation(split="test", sampling=Sampling(temperature=0.3, max_tokens=8)),
        checkpoints=Checkpoints(every=10),
    )
