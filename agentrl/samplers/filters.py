"""Filters: which groups are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from agentrl.errors import ConfigError
from agentrl.types import ScoredGroup


@dataclass(frozen=True, slots=True)
class KeepAll:
    """Keep every group."""

    components: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Return the groups as they are."""
        return list(groups)


@dataclass(frozen=True, slots=True)
class DynamicSampling:
    """Drop the groups whose members all had the same outcome: compared among themselves they teach nothing (DAPO, Yu et al. 2025).

    Looks at one component of the ledger, the outcome, and not at their sum: a format penalty alone makes no group of failures worth its
    update.
    """

    component: str = "outcome"

    @property
    def components(self) -> frozenset[str]:
        """The one component."""
        return frozenset({self.component})

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Return the groups whose members differ in what ``component`` paid them over the episode.

        Raises:
            ConfigError: a ledger has no such component.
        """
        return [group for group in groups if len({self._total(group, member) for member in range(len(group))}) > 1]

    def _total(self, group: ScoredGroup, member: int) -> float:
        ledger = group[member].ledger
        if self.component not in ledger:
            raise ConfigError(
                f"dynamic sampling looks at the reward component {self.component!r}; the ledger has {', '.join(sorted(ledger)) or 'none'}; "
                "name one of them"
            )
        return float(ledger[self.component].sum())
