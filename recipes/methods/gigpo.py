"""GiGPO (Feng et al. 2025): beside the episode's advantage, a turn is compared with the turns of its group that saw the same observation.

Episodes of a task begin in the same room and come back to it, so such turns are found without a critic or further play.
"""

from dataclasses import replace

from base import LEARN, playing

from agentrl.credit.anchors import GiGPO
from agentrl.losses.clip import Clip
from agentrl.losses.kl import KL
from agentrl.losses.objective import Objective

objective = Objective(loss=Clip(0.2, 0.2), regularisers=(KL(0.01),))
recipe = playing("gigpo", replace(LEARN, credit=GiGPO(gamma=0.95, weight=1.0), objective=objective))
