"""A random model learns to cross frozen lakes by reinforcement alone: no demonstration, no pretraining, about a minute on one core.

Every lake is another one, so it has to learn how to walk on ice: towards the goal, around holes. Each observation says what lies around,
so the policy sees the latest only. An action is one token: of the few hundred that the untrained model says at random, eight are moves.
"""

import functools

from agentrl_environments.frozen_lake import FrozenLake

from agentrl.credit.baselines import OthersAtTurn
from agentrl.credit.modifiers import UnitDeviation
from agentrl.credit.returns import TurnReturn
from agentrl.learner import Compute, Linear, Optimisation
from agentrl.learner.spec import ModelSpec, Shape, TrainedTokenizer
from agentrl.losses.clip import Clip
from agentrl.losses.entropy import EntropyBonus
from agentrl.losses.objective import Objective
from agentrl.policy import ExpertPolicy, RandomPolicy, Sampling
from agentrl.recipe import Checkpoints, Evaluation, Recipe, Stage
from agentrl.render import TagRenderer
from agentrl.rewards.compose import Scaled, Sum
from agentrl.rewards.outcome import Format, Outcome, Process
from agentrl.rollout import Limits
from agentrl.sources import Rollouts

recipe = Recipe(
    name="frozen_lake",
    env=FrozenLake(),
    model=ModelSpec(
        shape=Shape(hidden=64, layers=2, mlp=192, max_context=256), tokenizer=TrainedTokenizer(vocab_size=320)
    ),
    renderer=functools.partial(TagRenderer, history=0),
    sampling=Sampling(temperature=1.0, max_tokens=1),
    limits=Limits(concurrency=128),
    compute=Compute(threads=1),
    stages=(
        Stage(
            name="learn",
            updates=60,
            source=Rollouts(num_groups=16, group_size=4),
            reward=Sum((Outcome(), Scaled(Process("progress"), 0.1), Format(penalty=0.1))),
            credit=TurnReturn(gamma=0.9, baseline=OthersAtTurn()),
            modifiers=(UnitDeviation(),),
            objective=Objective(loss=Clip(0.2, 0.2), regularisers=(EntropyBonus(0.01),)),
            optimisation=Optimisation(lr=4e-3, warmup_updates=5, schedule=Linear(0.1)),
            minibatches=4,
            evaluate=True,
        ),
    ),
    evaluation=Evaluation(
        split="test",
        sampling=Sampling(temperature=0.3, max_tokens=1),
        baselines={"random": RandomPolicy(), "expert": ExpertPolicy()},
    ),
    checkpoints=Checkpoints(every=20),
)
