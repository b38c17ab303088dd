"""Stratified credit: episodes are compared with those of their group that have the same structure."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np

from agentrl.credit.group import GroupCredit
from agentrl.credit.turns import Array, per_episode, standardised
from agentrl.types import Credited, ScoredGroup, Trajectory

Stratum = Callable[[Trajectory], Hashable]
"""What episodes must have in common to be compared."""


@dataclass(frozen=True, slots=True)
class CountOf:
    """Stratum: the number of turns on which ``signal`` was positive, at most ``most``.

    For example, the number of searches or tool calls.
    """

    signal: str
    most: int = 8

    def __call__(self, trajectory: Trajectory) -> int:
        """Return the count."""
        return min(int((trajectory.signal(self.signal) > 0).sum()), self.most)


def num_turns(trajectory: Trajectory) -> int:
    """Stratum: the number of turns."""
    return len(trajectory.turns)


@dataclass(frozen=True, slots=True)
class Stratified(GroupCredit):
    """``A = alpha * A_stratum + (1 - alpha) * A_group`` ("Stratified GRPO", 2025).

    The paper's alpha was not found; 0.8 is ours. A standard score over the whole group consists of the score
    within the stratum and the stratum's offset from the group: what agents are paid for being of another
    kind. Removing the offset lowers the noise between kinds; removing all of it (``alpha=1``) also removes
    the only signal that another kind is better, so keep some. A stratum with fewer than ``min_stratum``
    episodes gives 0. Do not combine with a reward that already contrasts the kinds.
    """

    stratum: Stratum
    alpha: float = 0.8
    min_stratum: int = 2
    eps: float = 1e-6

    def credit_group(self, group: ScoredGroup) -> tuple[Credited, ...]:
        """Credit each episode with the weighted mean of its two standard scores."""
        returns_G = np.array([scored.rewards_N.sum() for scored in group])
        blend_G = self.alpha * self._within(group, returns_G) + (1.0 - self.alpha) * standardised(
            returns_G, ddof=1, eps=self.eps
        )
        return per_episode(group, blend_G)

    def _within(self, group: ScoredGroup, returns_G: Array) -> Array:
        strata: dict[Hashable, list[int]] = {}
        for i, scored in enumerate(group):
            strata.setdefault(self.stratum(scored.trajectory), []).append(i)
        within_G = np.zeros(len(group))
        for members in strata.values():
            if len(members) >= max(self.min_stratum, 2):
                within_G[members] = standardised(returns_G[members], ddof=1, eps=self.eps)
        return within_G
