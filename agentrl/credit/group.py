"""One advantage per episode: its return compared with those of its group, the same for each of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agentrl.credit.turns import Array, Singleton, centred, checked, per_turn
from agentrl.types import Credited, Need, ScoredGroup


@dataclass(frozen=True, slots=True)
class GRPO:
    """``A = (R - mean) / (std + std_eps)`` over the group (Shao et al. 2024, sec. 4.1.2), std with ``ddof``.

    The division makes the gradient biased: groups that nearly always fail or succeed weigh more than their share of the expected return.
    """

    std_eps: float = 1e-6
    ddof: int = 1
    singleton: Singleton = "zero"
    needs: ClassVar[frozenset[Need]] = frozenset()
    min_group: ClassVar[int] = 2

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Credit each episode with its standard score; a group without variance gets exactly 0."""
        return [_shared(group, self._advantages, self.singleton) for group in checked(groups)]

    def _advantages(self, returns_G: Array) -> Array:
        return centred(returns_G) / (float(returns_G.std(ddof=self.ddof)) + self.std_eps)


@dataclass(frozen=True, slots=True)
class DrGRPO:
    """``A = R - mean`` over the group (Liu et al. 2025); its loss is aggregated by ``SeqSumOver(longest length)``."""

    singleton: Singleton = "zero"
    needs: ClassVar[frozenset[Need]] = frozenset()
    min_group: ClassVar[int] = 2

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Credit each episode with its distance from the group's mean."""
        return [_shared(group, centred, self.singleton) for group in checked(groups)]


@dataclass(frozen=True, slots=True)
class RLOO:
    """``A = R - mean of the others' R``, which is ``n / (n - 1)`` times Dr.GRPO's (Kool et al. 2019; Ahmadian et al. 2024). Unbiased."""

    singleton: Singleton = "zero"
    needs: ClassVar[frozenset[Need]] = frozenset()
    min_group: ClassVar[int] = 2

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Credit each episode with its distance from the others' mean."""
        return [_shared(group, self._advantages, self.singleton) for group in checked(groups)]

    def _advantages(self, returns_G: Array) -> Array:
        return centred(returns_G) * (len(returns_G) / (len(returns_G) - 1))


def _shared(group: ScoredGroup, rule: Callable[[Array], Array], singleton: Singleton) -> tuple[Credited, ...]:
    """Give every turn of an episode the advantage that ``rule`` finds for its return. Episodes without turns count in the statistics."""
    advantages_G = np.array([scored.rewards_N.sum() for scored in group])
    if len(group) > 1:
        advantages_G = rule(advantages_G)
    elif singleton == "zero":
        advantages_G = np.zeros(len(group))
    return tuple(per_turn(scored, np.full(len(scored.trajectory.turns), a)) for scored, a in zip(group, advantages_G, strict=True))
