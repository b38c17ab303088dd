"""GSPO (Zheng et al. 2025, "Group sequence policy optimization"): the ratio of a whole episode is clipped.

The ratio is the geometric mean of the ratios of the episode's tokens, so the clip range is narrow: 3e-4 below
and 4e-4 above.

Result with seed 0: 0.34 of the held-out games were won before and 0.51 after.
"""

from dataclasses import replace

from base import LEARN, playing

import agentrl as rl

recipe = playing(
    "gspo",
    replace(
        LEARN, objective=rl.Objective(loss=rl.GSPO(low=3e-4, high=4e-4), aggregate=rl.seq_mean_then_mean)
    ),
)
