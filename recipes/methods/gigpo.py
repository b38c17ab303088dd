"""GiGPO (Feng et al. 2025): an advantage for the episode plus one for each turn.

The turn's advantage compares it with the turns of its group that had the same observation. The episodes of a
task begin in the same room and return to it, so such turns are found without a critic or additional episodes.

Result with seed 0: 0.34 of the held-out games were won before and 0.68 after.
"""

from dataclasses import replace

from base import LEARN, playing

import agentrl as rl

objective = rl.Objective(loss=rl.Clip(0.2, 0.2), regularisers=(rl.KL(0.01),))
recipe = playing("gigpo", replace(LEARN, credit=rl.GiGPO(gamma=0.95, weight=1.0), objective=objective))
