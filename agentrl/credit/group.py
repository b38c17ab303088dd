"""One advantage per episode, from its return compared with those of its group; all its tokens get it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agentrl.credit import Credit
from agentrl.credit.turns import Array, Singleton, centred, checked, per_episode
from agentrl.errors import ConfigError
from agentrl.types import Credited, Need, ScoredGroup


class GroupCredit(Credit):
    """Credits each group by itself, from its rewards alone.

    The members are compared with each other, so a group needs at least two.
    """

    __slots__ = ()
    needs: ClassVar[frozenset[Need]] = frozenset()
    min_group: ClassVar[int] = 2

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Return the credit of each group, in the shape of ``groups``."""
        return [self.credit_group(group) for group in checked(groups)]

    @abstractmethod
    def credit_group(self, group: ScoredGroup) -> tuple[Credited, ...]:
        """Return one ``Credited`` per member."""


@dataclass(frozen=True, slots=True)
class GRPO(GroupCredit):
    """``A = (R - mean) / (std + std_eps)`` over the group (Shao et al. 2024, sec. 4.1.2).

    ``R`` is an episode's return; ``std`` is computed with the divisor ``n - ddof``. The division biases the
    gradient: groups that nearly always fail or succeed weigh more than their share of the expected return.
    """

    std_eps: float = 1e-6
    ddof: int = 1
    singleton: Singleton = "zero"

    def credit_group(self, group: ScoredGroup) -> tuple[Credited, ...]:
        """Credit each episode with its standard score; a group without variance gets exactly 0."""
        return _shared(group, self._advantages, self.singleton)

    def _advantages(self, returns_G: Array) -> Array:
        return centred(returns_G) / (float(returns_G.std(ddof=self.ddof)) + self.std_eps)


@dataclass(frozen=True, slots=True)
class DrGRPO(GroupCredit):
    """``A = R - mean`` over the group (Liu et al. 2025).

    ``R`` is an episode's return. Aggregate the loss with
    ``SeqSumOver(maximum number of tokens of an episode)``.
    """

    singleton: Singleton = "zero"

    def credit_group(self, group: ScoredGroup) -> tuple[Credited, ...]:
        """Credit each episode with its return minus the group's mean return."""
        return _shared(group, centred, self.singleton)


@dataclass(frozen=True, slots=True)
class RLOO(GroupCredit):
    """``A = R - mean of the other members' R``: leave-one-out REINFORCE.

    Kool et al. 2019; Ahmadian et al. 2024. In a group of ``n`` this is ``n / (n - 1)`` times the advantage of
    ``DrGRPO``. The policy gradient is unbiased.
    """

    singleton: Singleton = "zero"

    def credit_group(self, group: ScoredGroup) -> tuple[Credited, ...]:
        """Credit each episode with its return minus the mean return of the other members."""
        return _shared(group, self._advantages, self.singleton)

    def _advantages(self, returns_G: Array) -> Array:
        return centred(returns_G) * (len(returns_G) / (len(returns_G) - 1))


@dataclass(frozen=True, slots=True)
class BNPO(Credit):
    """``A = (r - p) / BetaPDF(p; alpha, beta)`` with ``r`` the return and ``p`` the group's mean return.

    Xiao et al. 2025, "BNPO". A Beta distribution is fitted to the ``p`` of the batch's groups by their mean
    ``m`` and variance ``v``, ``a = (m (1 - m) / v - 1) m`` and ``b = (m (1 - m) / v - 1) (1 - m)``, and
    flattened: ``alpha = max(1 + a / 3, 1)`` and ``beta = max(1 + b / 3, 1)``. So groups of common difficulty
    weigh less. Episode returns must lie in [0, 1]. If all groups are equally hard, the weight is 1.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    min_group: ClassVar[int] = 2

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Credit each episode with ``(r - p) / BetaPDF(p)``.

        Raises:
            ConfigError: a return lies outside [0, 1].
        """
        returns = [np.array([scored.rewards_N.sum() for scored in group]) for group in checked(groups)]
        flat = np.concatenate([np.zeros(0), *returns])
        if len(flat) and not (flat.min() >= -1e-6 and flat.max() <= 1.0 + 1e-6):
            raise ConfigError(
                f"BNPO needs returns in [0, 1]; found {flat.min():g} to {flat.max():g}; rescale the reward"
            )
        means = np.array([returns_G.mean() for returns_G in returns if len(returns_G)])
        alpha, beta = self.fit(means)
        return [
            per_episode(group, centred(returns_G) * _weight(returns_G, alpha, beta))
            for group, returns_G in zip(groups, returns, strict=True)
        ]

    @staticmethod
    def fit(means: Array) -> tuple[float, float]:
        """Return the flattened ``alpha`` and ``beta`` of the Beta distribution fitted to ``means``."""
        mean, variance = (float(means.mean()), float(means.var(ddof=1))) if len(means) > 1 else (0.0, 1.0)
        if variance <= 0.0:
            return 1.0, 1.0
        spread = mean * (1.0 - mean) / variance - 1.0
        return max(1.0 + spread * mean / 3.0, 1.0), max(1.0 + spread * (1.0 - mean) / 3.0, 1.0)


def _weight(returns_G: Array, alpha: float, beta: float) -> float:
    """Return the weight of a group, ``1 / BetaPDF(mean return)``, at most 1e6."""
    mean = float(returns_G.mean()) if len(returns_G) else 0.5
    if alpha == beta == 1.0:
        return 1.0
    log_norm = math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta)
    density = mean ** (alpha - 1.0) * (1.0 - mean) ** (beta - 1.0)
    return min(math.exp(log_norm) / density, 1e6) if density > 0.0 else 1e6


def _shared(group: ScoredGroup, rule: Callable[[Array], Array], singleton: Singleton) -> tuple[Credited, ...]:
    """Give every turn of an episode the advantage that ``rule`` computes for the episode's return.

    Episodes without turns count in the statistics.
    """
    advantages_G = np.array([scored.rewards_N.sum() for scored in group])
    if len(group) > 1:
        advantages_G = rule(advantages_G)
    elif singleton == "zero":
        advantages_G = np.zeros(len(group))
    return per_episode(group, advantages_G)
