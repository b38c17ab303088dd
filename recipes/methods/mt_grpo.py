"""MT-GRPO (Zeng et al. 2025, "Reinforcing multi-turn reasoning ... via turn-level credit"): progress and outcome are compared separately.

Progress is the game's own: 1 where the shortest plan became shorter, -1 where it became longer. A turn gets the outcome's advantage and the
progress that is still to come.
"""

from dataclasses import replace

from base import GAME, LEARN, REWARD, playing

from agentrl.credit.components import MTGRPO
from agentrl.rewards.compose import Sum
from agentrl.rewards.outcome import Process

learn = replace(
    LEARN,
    reward=Sum((*REWARD.parts, Process("intermediate"))),
    credit=MTGRPO(process="intermediate", alpha=1.0),
)
recipe = playing("mt_grpo", learn, env=replace(GAME, intermediate=True))
