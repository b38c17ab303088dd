"""DurationWeights-aware gradients (Yang et al. 2025, "RL for machine-learning engineering agents"): a turn weighs what time it took.

Where actors play without waiting for each other, quick actions are over-represented by just that factor. Turns of this game take all about
as long, so here it should change little: it is for environments whose actions run from seconds to hours.
"""

from dataclasses import replace

from base import LEARN, playing

from agentrl.credit.weights import DurationWeights

recipe = playing("duration", replace(LEARN, modifiers=(DurationWeights(max_weight=10.0),)))
