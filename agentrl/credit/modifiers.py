"""Rescaling of finished advantages over the batch, and a credit rule with modifiers behind it.

Statistics of a batch are of its *turns*: each turn counts once, whatever its length (its tokens share its weight). ``per="token"`` counts
tokens instead, as PPO's masked whitening does. Turns without tokens count nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit import Credit, Modifier
from agentrl.credit.turns import Array
from agentrl.types import Credited, Need, ScoredGroup, floats

Unit = Literal["turn", "token"]


@dataclass(frozen=True, slots=True)
class Modified:
    """A credit rule, then modifiers in order.

    >>> from agentrl.credit.returns import TurnReturn
    >>> Modified(TurnReturn(gamma=0.97), (Whiten(),)).min_group
    1
    """

    credit: Credit
    modifiers: tuple[Modifier, ...]

    @property
    def needs(self) -> frozenset[Need]:
        """What the rule and its modifiers need."""
        return self.credit.needs.union(*(modifier.needs for modifier in self.modifiers))

    @property
    def min_group(self) -> int:
        """The rule's."""
        return self.credit.min_group

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Assign, then modify."""
        credited = self.credit(groups)
        for modifier in self.modifiers:
            credited = modifier(groups, credited)
        return credited


@dataclass(frozen=True, slots=True)
class Whiten:
    """Subtract the batch's mean and divide by its standard deviation, ``(A - mean) / sqrt(var + eps)``, with Bessel's correction."""

    per: Unit = "turn"
    eps: float = 1e-8
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return advantages with mean 0 and variance 1; fewer than two units give 0."""
        mean, variance = _moments(groups, credited, self.per)
        return _affine(credited, shift=-mean, factor=1.0 / float(np.sqrt(variance + self.eps)))


@dataclass(frozen=True, slots=True)
class UnitDeviation:
    """Divide by the batch's standard deviation and keep the zero: what was better than its baseline stays so."""

    per: Unit = "turn"
    eps: float = 1e-8
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return advantages with variance 1; a batch without variance is left alone."""
        _, variance = _moments(groups, credited, self.per)
        return _affine(
            credited,
            shift=0.0,
            factor=1.0 / float(np.sqrt(variance + self.eps)) if 0.0 < variance < math.inf else 1.0,
        )


@dataclass(frozen=True, slots=True)
class Scale:
    """Multiply by a constant. 0 and -1 are the controls of a claim to learn: the first must stay flat, the second fall."""

    factor: float
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return scaled advantages."""
        return _affine(credited, shift=0.0, factor=self.factor)


def _affine(
    credited: Sequence[tuple[Credited, ...]], *, shift: float, factor: float
) -> list[tuple[Credited, ...]]:
    """Return ``(A + shift) * factor``, computed in float64; the critic's targets are untouched."""
    return [
        tuple(
            replace(one, advantages_T=floats((one.advantages_T.astype(np.float64) + shift) * factor))
            for one in group
        )
        for group in credited
    ]


def _moments(
    groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]], per: Unit
) -> tuple[float, float]:
    """Return the mean, and the variance with Bessel's correction, over the batch's units; fewer than two have an infinite variance."""
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
    shifted_T = values_T - values_T[0]  # equal values then have exactly no variance
    offset = float(weights_T @ shifted_T) / total
    squares = float(weights_T @ (shifted_T - offset) ** 2)
    return float(values_T[0]) + offset, squares / (
        total - 1.0
    ) if total > 1.5 else math.inf  # weights are sums of fractions
