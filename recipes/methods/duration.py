"""Duration-aware gradients (Yang et al. 2025, "RL for machine-learning engineering agents").

Each turn is weighted by the time that it took. If actors play without waiting for each other, quick actions
are over-represented by exactly this factor. The turns of this game all take about the same time, so little
should change here: the method is for environments whose actions take from seconds to hours.

Result with seed 0: 0.34 of the held-out games were won before and 0.52 after.
"""

from dataclasses import replace

from base import LEARN, playing

import agentrl as rl

recipe = playing("duration", replace(LEARN, modifiers=(rl.DurationWeights(max_weight=10.0),)))
