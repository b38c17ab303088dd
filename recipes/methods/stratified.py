"""Stratified GRPO (Zhu et al. 2025): episodes are compared with those of their group that are built alike, here with as many refusals.

A share of the comparison with all stays, or nothing would ever say that one kind is better than another. The kind must not be the outcome
in disguise: by the number of turns, all who failed would be among themselves, for they take all turns there are.
"""

from dataclasses import replace

from base import LEARN, playing

from agentrl.credit.strata import Stratified
from agentrl.types import Trajectory


def refused(trajectory: Trajectory) -> int:
    """Return how many commands were refused, two or more as one kind."""
    return min(sum(turn.info["valid"] == 0.0 for turn in trajectory.turns), 2)


recipe = playing("stratified", replace(LEARN, credit=Stratified(stratum=refused, alpha=0.8)))
