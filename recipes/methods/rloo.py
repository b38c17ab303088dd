"""RLOO (Ahmadian et al. 2024, "Back to basics"): an episode's outcome minus the mean of the others of its task, by plain policy gradient.

No deviation divides, nothing is clipped: an unbiased estimate, one step for each batch. The divergence from the policy that the stage
began with is charged in the reward.
"""

from dataclasses import replace

from base import LEARN, playing

from agentrl.credit.group import RLOO
from agentrl.credit.penalty import KLPenalty
from agentrl.losses.likelihood import PolicyGradient
from agentrl.losses.objective import Objective

recipe = playing(
    "rloo",
    replace(
        LEARN, credit=KLPenalty(RLOO(), 0.001), objective=Objective(loss=PolicyGradient()), minibatches=1
    ),
)
