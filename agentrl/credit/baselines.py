"""Baselines for returns-to-go that are computed from the group itself, without a critic.

What is subtracted from the return of turn ``n`` may depend on the member's own history *before* its action
and, in any way, on the other members: they were played independently, so ``E[grad log pi(a_n|h_n) * b] = 0``
and the policy gradient stays unbiased. It must not depend on the member's own future, so every rule here
leaves the member itself out.

In a group of one the member is its own baseline, so its advantage is exactly 0.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from agentrl.credit.turns import Array
from agentrl.types import ScoredGroup


class Baseline(Protocol):
    """Computes what is subtracted from the returns-to-go of a group."""

    __slots__ = ()

    @property
    @abstractmethod
    def min_group(self) -> int:
        """Minimum group size for which the baseline is meaningful."""

    @abstractmethod
    def __call__(self, group: ScoredGroup, returns_GN: Sequence[Array]) -> list[Array]:
        """Return the baseline of each turn of each member.

        ``returns_GN[i][n]`` is the return of member ``i`` from turn ``n`` on.
        """


@dataclass(frozen=True, slots=True)
class NoBaseline(Baseline):
    """Subtracts nothing."""

    min_group: ClassVar[int] = 1

    def __call__(self, group: ScoredGroup, returns_GN: Sequence[Array]) -> list[Array]:
        """Return a baseline of 0 for each turn of each member."""
        return [np.zeros(len(returns_N)) for returns_N in returns_GN]


@dataclass(frozen=True, slots=True)
class OthersStart(Baseline):
    """The mean of the other members' returns from the start, for every turn.

    This is RLOO's baseline (Ahmadian et al. 2024).
    """

    min_group: ClassVar[int] = 2

    def __call__(self, group: ScoredGroup, returns_GN: Sequence[Array]) -> list[Array]:
        """Return each member's baseline, repeated for each of its turns."""
        if len(group) < 2:
            return list(returns_GN)
        return [
            np.full(len(returns_N), start)
            for returns_N, start in zip(returns_GN, _others_start(returns_GN), strict=True)
        ]


@dataclass(frozen=True, slots=True)
class OthersAtTurn(Baseline):
    """The mean of the other members' returns from the same turn on; 0 for an episode that ended before.

    It is less noisy than ``OthersStart`` if rewards come along the way: what was earned before a turn is
    neither in the turn's return nor in the baseline.
    """

    min_group: ClassVar[int] = 2

    def __call__(self, group: ScoredGroup, returns_GN: Sequence[Array]) -> list[Array]:
        """Return one baseline per turn: the mean of the other members' returns from that turn on."""
        if len(group) < 2:
            return list(returns_GN)
        padded_GN = np.zeros((len(group), max(map(len, returns_GN))))
        for row_N, returns_N in zip(padded_GN, returns_GN, strict=True):
            row_N[: len(returns_N)] = returns_N
        others_GN = (padded_GN.sum(0) - padded_GN) / (len(group) - 1)
        return [others_N[: len(returns_N)] for others_N, returns_N in zip(others_GN, returns_GN, strict=True)]


def _others_start(returns_GN: Sequence[Array]) -> Array:
    """Return for each member the mean start return of the others.

    An episode without turns has a return of 0.
    """
    start_G = np.array([returns_N[0] if len(returns_N) else 0.0 for returns_N in returns_GN])
    return np.asarray((start_G.sum() - start_G) / (len(start_G) - 1))
