"""DAPO (Yu et al. 2025): GRPO with four changes.

The clip range is wider above than below; every token has the same weight; groups that all succeed or all fail
are replaced by others, at most twice; and episodes that approach the maximum length pay a penalty.

Result with seed 0: 0.34 of the held-out games were won before and 0.56 after.
"""

from dataclasses import replace

from base import LEARN, playing

from agentrl.losses.aggregation import token_mean
from agentrl.losses.clip import Clip
from agentrl.losses.objective import Objective
from agentrl.rewards.refine import OverlongPenalty
from agentrl.samplers.filters import DynamicSampling
from agentrl.sources import Rollouts

recipe = playing(
    "dapo",
    replace(
        LEARN,
        source=Rollouts(num_groups=16, group_size=8, refills=2),
        transforms=(OverlongPenalty(limit=160, buffer=40),),
        filters=(DynamicSampling(),),
        objective=Objective(loss=Clip(0.2, 0.28), aggregate=token_mean),
    ),
)
