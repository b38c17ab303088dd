"""EMPG (Wang et al. 2025, "Harnessing uncertainty"): advantages grow where the policy was sure and shrink where it was not.

Entropy is that of a turn's tokens, compared over the batch; a turn that leads to a clear one gets a bonus.
"""

from dataclasses import replace

from base import LEARN, playing

from agentrl.credit.entropy import EMPG

recipe = playing("empg", replace(LEARN, modifiers=(EMPG(kappa=1.0, kappa_future=1.0, zeta=0.05),)))
