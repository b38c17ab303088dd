"""OPSD (Penaloza et al. 2026): the policy plays, and the same weights with the expert's plan in the prompt say how likely each token was.

What the informed one finds likelier than the policy did is paid token by token, beside the outcome.
"""

from dataclasses import replace

from base import LEARN, playing

from agentrl.credit.teachers import OPSD
from agentrl.learner.spec import Teacher, expert_plan

recipe = playing(
    "opsd", replace(LEARN, teacher=Teacher(information=expert_plan), modifiers=(OPSD(beta=0.25),))
)
