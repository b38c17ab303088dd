"""Credit among likes: episodes are compared with those of their group that are built the same way."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agentrl.credit.turns import Array, checked, per_episode, standardised
from agentrl.types import Credited, Need, ScoredGroup, Trajectory

Stratum = Callable[[Trajectory], Hashable]
"""What episodes must share to be compared."""


@dataclass(frozen=True, slots=True)
class CountOf:
    """Stratum: the number of turns on which ``signal`` was positive, such as searches or tool calls; at most ``most``."""

    signal: str
    most: int = 8

    def __call__(self, trajectory: Trajectory) -> int:
        """Return the count."""
        return min(int((trajectory.signal(self.signal) > 0).sum()), self.most)


def num_turns(trajectory: Trajectory) -> int:
    """Stratum: the number of turns."""
    return len(trajectory.turns)


@dataclass(frozen=True, slots=True)
class Stratified:
    """``A = alpha * A_stratum + (1 - alpha) * A_group`` ("Stratified GRPO", 2025; its alpha was not found, 0.8 is ours).

    A standard score over the whole group is the one within the stratum plus the stratum's offset from the group: what agents are paid for
    being of another kind. Taking it out lowers the noise between kinds; taking it out wholly (``alpha=1``) also takes out the only signal
    that another kind is better, so keep some. A stratum of fewer than ``min_stratum`` gives 0. Do not combine with a reward that already
    contrasts the kinds.
    """

    stratum: Stratum
    alpha: float = 0.8
    min_stratum: int = 2
    eps: float = 1e-6
    needs: ClassVar[frozenset[Need]] = frozenset()
    min_group: ClassVar[int] = 2

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Credit each episode with the blend of its two standard scores."""
        return [self._group(group) for group in checked(groups)]

    def _group(self, group: ScoredGroup) -> tuple[Credited, ...]:
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
