"""EMPG (Wang et al. 2025, "Harnessing uncertainty"): advantages are scaled by the policy's certainty.

They are amplified on turns where the policy was certain and damped where it was not. Certainty is measured by
the entropy of a turn's tokens, normalised over the batch. A turn that is followed by a certain one gets a
bonus.

Result with seed 0: 0.34 of the held-out games were won before and 0.28 after.
"""

from dataclasses import replace

from base import LEARN, playing

import agentrl as rl

recipe = playing("empg", replace(LEARN, modifiers=(rl.EMPG(kappa=1.0, kappa_future=1.0, zeta=0.05),)))
