"""iStar (Liu et al. 2025, "Agentic RL with implicit step rewards").

A second model learns the rewards of turns from outcomes. It starts as a copy of the policy and is trained to
prefer, in each group, the episodes that succeeded. The reward of a turn is how much likelier this model finds
it than the policy did. The weight of these rewards is 0.2 here: with the published value of 1 the policy soon
collected them with refused commands.

Result with seed 0: 0.34 of the held-out games were won before and 0.45 after.
"""

from dataclasses import replace

from base import LEARN, playing

import agentrl as rl

judge = rl.ImplicitPRM(beta=0.05, optimisation=rl.Optimisation(lr=1e-4))
recipe = playing(
    "istar", replace(LEARN, scorers=(judge,), credit=rl.EpisodeAndSteps(process="implicit", alpha=0.2))
)
