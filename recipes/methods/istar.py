"""iStar (Liu et al. 2025, "Agentic RL with implicit step rewards"): a second model learns from outcomes which turns to pay.

It starts as a copy of the policy and prefers, in each group, the episodes that succeeded; how much likelier it finds a turn than the policy
did is that turn's reward. Its share is 0.2 here: with the published 1 the policy soon lived on this reward and on refused commands.
"""

from dataclasses import replace

from base import LEARN, playing

from agentrl.credit.components import EpisodeAndSteps
from agentrl.learner import Optimisation
from agentrl.learner.implicit import ImplicitPRM

judge = ImplicitPRM(beta=0.05, optimisation=Optimisation(lr=1e-4))
recipe = playing(
    "istar", replace(LEARN, scorers=(judge,), credit=EpisodeAndSteps(process="implicit", alpha=0.2))
)
