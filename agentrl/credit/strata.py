"""Stratified credit: episodes are compared with those of their group that have the same structure."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np

from agentrl.credit.group import GroupCredit
from agentrl.credit.turns import Array, per_episode, standardised
from agentrl.types import Credited, ScoredGroup, Trajectory

Stratum = Callable[[Trajectory], Hashable]
"""Maps an episode to its stratum: episodes are compared if their strata are equal."""


@dataclass(frozen=True, slots=True)
class CountOf:
    """Puts episodes into strata by the number of turns on which ``signal`` was positive.

    For example, by the number of searches or tool calls. Numbers above ``most`` count as ``most``.
    """

    signal: str
    most: int = 8

    def __call__(self, trajectory: Trajectory) -> int:
        """Return the number of turns on which ``signal`` was positive, at most ``most``."""
        return min(int((trajectory.signal(self.signal) > 0).sum()), self.most)


def num_turns(trajectory: Trajectory) -> int:
    """Return the number of turns, as the stratum of an episode."""
    return len(trajectory.turns)


@dataclass(frozen=True, slots=True)
class Stratified(GroupCredit):
    """``A = alpha * A_stratum + (1 - alpha) * A_group`` ("Stratified GRPO", 2025).

    ``A_stratum`` and ``A_group`` are the standard scores of the episode's return in its stratum and in its
    whole group. The paper's ``alpha`` was not found; 0.8 is our choice. A standard score over the whole group
    consists of the score within the stratum and the stratum's offset from the group: what an episode gains by
    being of another kind. Removing the offset lowers the noise between kinds; removing all of it
    (``alpha=1``) also removes the only signal that another kind is better, so keep some. A stratum with fewer
    than ``min_stratum`` episodes has ``A_stratum = 0``. Do not combine with a reward that already contrasts
    the kinds.
    """

    stratum: Stratum
    alpha: float = 0.8
    min_stratum: int = 2
    eps: float = 1e-6

    def credit_group(self, group: ScoredGroup) -> tuple[Credited, ...]:
        """Credit each episode with ``alpha * A_stratum + (1 - alpha) * A_group``."""
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
