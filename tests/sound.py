"""A recipe of two stages that passes every check."""

from agentrl_environments.bandit import Bandit

from agentrl.credit.constant import ConstantCredit
from agentrl.credit.group import GRPO
from agentrl.learner import Optimisation
from agentrl.learner.spec import ModelSpec, Shape, TrainedTokenizer
from agentrl.losses.clip import Clip
from agentrl.losses.objective import Objective
from agentrl.policy import ExpertPolicy
from agentrl.recipe import Recipe, Stage
from agentrl.sources import Demonstrations, Rollouts

IMITATE = Stage(
    name="imitate",
    updates=3,
    source=Demonstrations(policy=ExpertPolicy(), num_episodes=8),
    credit=ConstantCredit(1.0),
    objective=Objective(),
    optimisation=Optimisation(),
)
LEARN = Stage(
    name="learn",
    updates=2,
    source=Rollouts(num_groups=2, group_size=2),
    credit=GRPO(),
    objective=Objective(loss=Clip()),
    optimisation=Optimisation(),
)
SOUND = Recipe(
    name="sound",
    env=Bandit(),
    model=ModelSpec(shape=Shape(), tokenizer=TrainedTokenizer()),
    stages=(IMITATE, LEARN),
)
