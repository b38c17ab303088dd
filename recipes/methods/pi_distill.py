"""pi-Distill (Penaloza et al. 2026): the policy plays with the expert's plan in its prompt, and learns to do the same without.

The same tokens are trained under both prompts, half and half: reinforced where they were sampled, and imitated, by how they were paid, from
the prompt that the agent will have. Each prompt is held to the other by a divergence.
"""

from dataclasses import replace

from base import LEARN, playing

from agentrl.credit.teachers import TowardStudent
from agentrl.losses.clip import Clip
from agentrl.losses.objective import Objective
from agentrl.losses.origin import ByOrigin, FromTeacher
from agentrl.sources.privileged import Privileged

ALPHA, BETA = 0.5, 0.25

recipe = playing(
    "pi_distill",
    replace(
        LEARN,
        source=Privileged(source=LEARN.source),
        modifiers=(TowardStudent(BETA),),
        objective=Objective(
            loss=ByOrigin(
                own=Clip(0.2, 0.2), given=FromTeacher(BETA), own_weight=ALPHA, given_weight=1 - ALPHA
            )
        ),
    ),
)
