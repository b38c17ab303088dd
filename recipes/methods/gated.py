"""G-RA (Sun et al. 2025, "Stabilizing long-term multi-turn RL with gated rewards").

Progress is paid only in games that were won. Without the gate an agent can collect small rewards and never
win. With it, these rewards only rank the ways to win.

Result with seed 0: 0.34 of the held-out games were won before and 0.62 after.
"""

from dataclasses import replace

from base import GAME, LEARN, REWARD, playing

import agentrl as rl

recipe = playing(
    "gated",
    replace(
        LEARN,
        reward=rl.Sum((*REWARD.parts, rl.Scaled(rl.Process("intermediate"), 0.2))),
        transforms=(rl.Gates((rl.Level(("outcome",), threshold=1.0), rl.Level(("intermediate",)))),),
        credit=rl.TurnReturn(gamma=0.9, baseline=rl.OthersAtTurn()),
        modifiers=(rl.UnitDeviation(),),
    ),
    env=replace(GAME, intermediate=True),
)
