"""Filters: which groups, and which of their episodes, are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agentrl.errors import ConfigError
from agentrl.samplers import Filter
from agentrl.types import ScoredGroup


@dataclass(frozen=True, slots=True)
class KeepAll(Filter):
    """Keeps every group."""

    components: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Return all groups, unchanged."""
        return list(groups)


@dataclass(frozen=True, slots=True)
class DynamicSampling(Filter):
    """Drops groups whose members all had the same outcome: comparing them teaches nothing (DAPO).

    Yu et al. 2025. The filter looks at one component of the ledger, the outcome, and not at the sum:
    differences in a format penalty alone do not make a group of failures worth training on.
    """

    component: str = "outcome"

    @property
    def components(self) -> frozenset[str]:
        """The single component that the filter looks at."""
        return frozenset({self.component})

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Return the groups whose members differ in what ``component`` paid them over the episode.

        Raises:
            ConfigError: a ledger has no such component.
        """
        return [
            group for group in groups if len({self._total(group, member) for member in range(len(group))}) > 1
        ]

    def _total(self, group: ScoredGroup, member: int) -> float:
        ledger = group[member].ledger
        if self.component not in ledger:
            raise ConfigError(
                f"DynamicSampling looks at the reward component {self.component!r}; "
                f"the ledger has {', '.join(sorted(ledger)) or 'none'}; name one of them"
            )
        return float(ledger[self.component].sum())


@dataclass(frozen=True, slots=True)
class MostVaried(Filter):
    """Keeps the ``share`` of groups whose returns vary most (StarPO-S, Wang et al. 2025, "RAGEN").

    Groups whose returns are all equal are never kept; if there are other groups, at least one is kept. Of
    groups that vary equally, the earlier is kept.
    """

    share: float = 0.25
    components: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ConfigError(
                f"the share of groups to keep must be above 0 and at most 1; found {self.share}"
            )

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Return the kept groups, in the order of ``groups``."""
        spreads = [_deviation(group) for group in groups]
        order = sorted(
            (i for i, spread in enumerate(spreads) if spread > 0.0), key=lambda i: (-spreads[i], i)
        )
        kept = sorted(order[: max(round(self.share * len(groups)), 1)])
        return [groups[i] for i in kept]


@dataclass(frozen=True, slots=True)
class Contrast(Filter):
    """Keeps ``num`` episodes of each group: half are the best and shortest, half the worst and longest.

    This is the rule of ChatShopBuddy's DCPO, reconstructed. The first half has the highest returns and, among
    equal returns, the fewest tokens; the second half has the lowest returns and, among equal returns, the
    most tokens.
    """

    num: int
    components: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if self.num < 2 or self.num % 2:
            raise ConfigError(f"Contrast keeps an even number of episodes, at least 2; found {self.num}")

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Return the groups with the kept episodes, best first; groups of at most ``num`` are unchanged."""
        return [tuple(group[i] for i in self.choose(group)) for group in groups]

    def choose(self, group: ScoredGroup) -> list[int]:
        """Return the indices of the group's kept episodes, the best first."""
        if len(group) <= self.num:
            return list(range(len(group)))
        keys = [(float(one.rewards_N.sum()), one.trajectory.num_tokens) for one in group]
        best = sorted(range(len(group)), key=lambda i: (-keys[i][0], keys[i][1], i))[: self.num // 2]
        rest = [i for i in range(len(group)) if i not in best]
        return best + sorted(rest, key=lambda i: (keys[i][0], -keys[i][1], i))[: self.num // 2]


def _deviation(group: ScoredGroup) -> float:
    returns_G = np.array([one.rewards_N.sum() for one in group])
    return float(returns_G.std(ddof=1)) if len(returns_G) > 1 and float(np.ptp(returns_G)) > 0.0 else 0.0
