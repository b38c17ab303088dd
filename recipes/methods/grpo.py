"""GRPO (Shao et al. 2024, "DeepSeekMath"): an episode's outcome against the others of its task, in units of their deviation.

The original: each episode weighs the same whatever its length, and a penalty holds the policy near the one that the stage began with.
"""

from dataclasses import replace

from base import LEARN, playing

from agentrl.credit.group import GRPO
from agentrl.losses.aggregation import seq_mean_then_mean
from agentrl.losses.clip import Clip
from agentrl.losses.kl import KL
from agentrl.losses.objective import Objective

objective = Objective(loss=Clip(0.2, 0.2), aggregate=seq_mean_then_mean, regularisers=(KL(0.001),))
recipe = playing("grpo", replace(LEARN, credit=GRPO(), objective=objective))
