"""Rescaling of finished advantages over the batch, and a credit rule combined with modifiers.

Statistics of a batch are over its *turns*: each turn counts once, whatever its length (its tokens share its
weight). ``per="token"`` counts tokens instead, as PPO's masked whitening does. Turns without tokens are
ignored. A unit is what counts once: a turn or a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit import Credit, Modifier
from agentrl.credit.turns import Array, with_advantages
from agentrl.types import Credited, Need, ScoredGroup

Unit = Literal["turn", "token"]


@dataclass(frozen=True, slots=True)
class Modified(Credit):
    """A credit rule followed by modifiers, in order.

    >>> from agentrl.credit.returns import TurnReturn
    >>> Modified(TurnReturn(gamma=0.97), (Whiten(),)).min_group
    1
    """

    credit: Credit
    modifiers: tuple[Modifier, ...]

    @property
    def needs(self) -> frozenset[Need]:
        """The measurements that the rule and its modifiers need."""
        return self.credit.needs.union(*(modifier.needs for modifier in self.modifiers))

    @property
    def min_group(self) -> int:
        """Same as that of the rule ``credit``."""
        return self.credit.min_group

    @property
    def handles_given(self) -> bool:
        """Same as that of the rule ``credit``."""
        return self.credit.handles_given

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Assign credit, then modify it."""
        credited = self.credit(groups)
        for modifier in self.modifiers:
            credited = modifier(groups, credited)
        return credited


@dataclass(frozen=True, slots=True)
class Whiten(Modifier):
    """Replaces advantages with ``(A - mean) / sqrt(var + eps)`` over the batch, with Bessel's correction."""

    per: Unit = "turn"
    eps: float = 1e-8
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return advantages with mean 0 and variance 1; all are 0 if the batch has fewer than two units."""
        mean, variance = _moments(groups, credited, self.per)
        factor = 1.0 / float(np.sqrt(variance + self.eps))
        return with_advantages(groups, credited, lambda _, advantages_T: (advantages_T - mean) * factor)


@dataclass(frozen=True, slots=True)
class UnitDeviation(Modifier):
    """Divides advantages by their standard deviation over the batch; none changes its sign."""

    per: Unit = "turn"
    eps: float = 1e-8
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return advantages with variance 1; a batch without variance is returned unchanged."""
        _, variance = _moments(groups, credited, self.per)
        factor = 1.0 / float(np.sqrt(variance + self.eps)) if 0.0 < variance < math.inf else 1.0
        return with_advantages(groups, credited, lambda _, advantages_T: advantages_T * factor)


@dataclass(frozen=True, slots=True)
class ScaleAdvantages(Modifier):
    """Multiplies advantages by the constant ``factor``.

    The factors 0 and -1 are for control experiments: with 0 nothing may improve, with -1 success must fall.
    """

    factor: float
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return the advantages times ``factor``."""
        return with_advantages(groups, credited, lambda _, advantages_T: advantages_T * self.factor)


def _moments(
    groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]], per: Unit
) -> tuple[float, float]:
    """Return the mean and the variance of the advantages over the batch's units (turns or tokens).

    The variance has Bessel's correction; it is infinite if there are fewer than two units.
    """
    values: list[Array] = [np.zeros(0)]
    weights: list[Array] = [np.zeros(0)]
    for scored, one in (
        pair
        for group, credit in zip(groups, credited, strict=True)
        for pair in zip(group, credit, strict=True)
    ):
        num_tokens_N = scored.num_tokens_N
        values.append(one.advantages_T.astype(np.float64))
        weights.append(
            np.repeat(1.0 / np.maximum(num_tokens_N, 1), num_tokens_N)
            if per == "turn"
            else np.ones(len(one.advantages_T))
        )
    values_T, weights_T = np.concatenate(values), np.concatenate(weights)
    total = float(weights_T.sum())
    if total <= 0.0:
        return 0.0, math.inf
    shifted_T = values_T - values_T[0]  # so that equal values have a variance of exactly 0
    offset = float(weights_T @ shifted_T) / total
    squares = float(weights_T @ (shifted_T - offset) ** 2)
    return float(values_T[0]) + offset, squares / (
        total - 1.0
    ) if total > 1.5 else math.inf  # not 1: weights are sums of fractions, with rounding errors
