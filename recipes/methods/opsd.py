"""OPSD (Penaloza et al. 2026): on-policy self-distillation from the same weights with privileged information.

The policy plays. The teacher is the same model with the expert's plan in its prompt; it evaluates the sampled
tokens. Beside the outcome, each token is rewarded by how much likelier the teacher finds it than the policy
did.

Result with seed 0: 0.34 of the held-out games were won before and 0.42 after.
"""

from dataclasses import replace

from base import LEARN, playing

import agentrl as rl

recipe = playing(
    "opsd", replace(LEARN, teacher=rl.Teacher(information=rl.expert_plan), modifiers=(rl.OPSD(beta=0.25),))
)
