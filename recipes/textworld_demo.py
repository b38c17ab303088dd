"""A small language model learns to find the coin in TextWorld houses that it has never seen.

Three stages, one loop. ``explore`` reads random play, without expert or reward: how the world answers. ``imitate`` follows a few expert
episodes. ``learn`` plays new games by itself and is paid for finding the coin, a little less for each command that was refused.
"""

from agentrl_environments.textworld import TextWorld

from agentrl.credit.constant import Constant
from agentrl.credit.modifiers import Whiten
from agentrl.credit.returns import TurnReturn
from agentrl.learner import Compute, Linear, Optimisation
from agentrl.losses.clip import Clip
from agentrl.model import ModelSpec, Shape, TrainedTokenizer
from agentrl.objective import Objective
from agentrl.policy import ExpertPolicy, RandomPolicy, Sampling
from agentrl.recipe import Evaluation, Recipe, Stage
from agentrl.rewards.compose import Sum
from agentrl.rewards.outcome import Format, Outcome
from agentrl.rollout import Limits
from agentrl.sources import Demonstrations, Rollouts

recipe = Recipe(
    name="textworld_demo",
    env=TextWorld(game="coin-r8-q4", max_turns=20),
    model=ModelSpec(shape=Shape(hidden=128, layers=3, max_context=512), tokenizer=TrainedTokenizer(vocab_size=320)),
    sampling=Sampling(temperature=1.0, max_tokens=8),
    limits=Limits(max_turns=20, concurrency=128),
    compute=Compute(threads=2),
    stages=(
        Stage(
            name="explore",
            updates=4,
            source=Demonstrations(policy=RandomPolicy(avoid=("examine", "inventory", "look")), num_episodes=400, max_turns=8),
            credit=Constant(1.0),
            objective=Objective(observation_weight=1.0),
            optimisation=Optimisation(lr=2e-3, schedule=Linear(0.1)),
            minibatches=50,
        ),
        Stage(
            name="imitate",
            updates=12,
            source=Demonstrations(policy=ExpertPolicy(), num_episodes=40),
            credit=Constant(1.0),
            objective=Objective(observation_weight=0.3),
            optimisation=Optimisation(lr=2e-3, schedule=Linear(0.1)),
            minibatches=4,
            evaluate=True,
        ),
        Stage(
            name="learn",
            updates=60,
            source=Rollouts(num_groups=64, group_size=1),
            reward=Sum((Outcome(), Format(penalty=0.05))),
            credit=TurnReturn(gamma=0.9),
            modifiers=(Whiten(),),
            objective=Objective(loss=Clip(0.2, 0.2)),
            optimisation=Optimisation(lr=1e-3, warmup_updates=5, schedule=Linear(0.1)),
            evaluate=True,
        ),
    ),
    evaluation=Evaluation(
        split="test",
        sampling=Sampling(temperature=0.3, max_tokens=8),
        baselines={"random": RandomPolicy(), "expert": ExpertPolicy()},
    ),
)
