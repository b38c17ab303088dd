"""HGPO (He et al. 2026): turns are compared that share their last observations: one, two, three of them; the longer, the more it counts."""

from dataclasses import replace

from base import LEARN, playing

from agentrl.credit.anchors import HGPO
from agentrl.losses.clip import Clip
from agentrl.losses.kl import KL
from agentrl.losses.objective import Objective

objective = Objective(loss=Clip(0.2, 0.2), regularisers=(KL(0.01),))
recipe = playing("hgpo", replace(LEARN, credit=HGPO(gamma=0.95, depth=2), objective=objective))
