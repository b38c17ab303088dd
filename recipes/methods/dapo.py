"""DAPO (Yu et al. 2025): GRPO with four changes.

The clip range is wider above than below; every token has the same weight; groups that all succeed or all fail
are replaced by others, at most twice; and episodes that approach the maximum length pay a penalty.

Result with seed 0: 0.34 of the held-out games were won before and 0.56 after.
"""

from dataclasses import replace

from base import LEARN, playing

import agentrl as rl

recipe = playing(
    "dapo",
    replace(
        LEARN,
        source=rl.Rollouts(num_groups=16, group_size=8, refills=2),
        transforms=(rl.OverlongPenalty(limit=160, buffer=40),),
        filters=(rl.DynamicSampling(),),
        objective=rl.Objective(loss=rl.Clip(0.2, 0.28), aggregate=rl.token_mean),
    ),
)
