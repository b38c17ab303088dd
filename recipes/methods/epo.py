"""EPO (Xu et al. 2025, "Entropy-regularized policy optimization for LLM agents"): entropy is paid, and kept near its own history."""

from dataclasses import replace

from base import LEARN, playing

from agentrl.losses.clip import Clip
from agentrl.losses.epo import EPO
from agentrl.losses.objective import Objective

recipe = playing(
    "epo",
    replace(
        LEARN,
        objective=Objective(loss=Clip(0.2, 0.2), regularisers=(EPO(updates=LEARN.updates, coef=0.001),)),
    ),
)
