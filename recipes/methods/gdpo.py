"""GDPO (Liu et al. 2026): each reward is normalised in the group by itself, then they are added and the batch is whitened.

Normalising the sum would make different mixtures of rewards look the same.
"""

from dataclasses import replace

from base import GAME, LEARN, REWARD, playing

from agentrl.credit.components import GDPO
from agentrl.rewards.compose import Sum
from agentrl.rewards.outcome import Process

learn = replace(
    LEARN,
    reward=Sum((*REWARD.parts, Process("intermediate"))),
    credit=GDPO({"outcome": 1.0, "format": 0.3, "intermediate": 0.3}),
)
recipe = playing("gdpo", learn, env=replace(GAME, intermediate=True))
