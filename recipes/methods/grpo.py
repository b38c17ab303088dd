"""GRPO (Shao et al. 2024, "DeepSeekMath"): an episode's outcome, standardised within its group.

This is the original form: each episode has the same weight whatever its length, and a KL penalty keeps the
policy near the one at the start of the stage.

Result with seed 0: 0.34 of the held-out games were won before and 0.58 after.
"""

from dataclasses import replace

from base import LEARN, playing

import agentrl as rl

objective = rl.Objective(
    loss=rl.Clip(0.2, 0.2), aggregate=rl.seq_mean_then_mean, regularisers=(rl.KL(0.001),)
)
recipe = playing("grpo", replace(LEARN, credit=rl.GRPO(), objective=objective))
