"""Rewards made of other rewards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agentrl.errors import ConfigError
from agentrl.rewards import Reward, Transform
from agentrl.types import Group, Ledger, Trajectory, floats


@dataclass(frozen=True, slots=True)
class Sum(Reward):
    """Pays all of ``parts``; their components stay separate in the ledger, so no two may have the same name.

    >>> from agentrl.rewards.outcome import Format, Outcome
    >>> sorted(Sum((Outcome(), Format(penalty=0.05))).components)
    ['format', 'outcome']
    """

    parts: tuple[Reward, ...]

    def __post_init__(self) -> None:
        names = Counter(name for part in self.parts for name in part.components)
        twice = sorted(name for name, count in names.items() if count > 1)
        if twice:
            raise ConfigError(
                "the parts of a Sum need components of different names; "
                f"more than one part pays {', '.join(twice)}; rename one"
            )

    @property
    def signals(self) -> frozenset[str]:
        """All signals of the parts."""
        return frozenset[str]().union(*(part.signals for part in self.parts))

    @property
    def components(self) -> frozenset[str]:
        """All components of the parts."""
        return frozenset[str]().union(*(part.components for part in self.parts))

    def __call__(self, trajectory: Trajectory) -> Ledger:
        """Return the merged ledger."""
        return {name: paid_N for part in self.parts for name, paid_N in part(trajectory).items()}

    async def ask(self, groups: Sequence[Group]) -> Mapping[str, float]:
        """Let every part ask; return the sums of their counts."""
        counts: Counter[str] = Counter()
        for part in self.parts:
            counts.update(await part.ask(groups))
        return counts


@dataclass(frozen=True, slots=True)
class FunctionTransform(Transform):
    """A transform from a plain function of the trajectory and its ledger."""

    function: Callable[[Trajectory, Ledger], Ledger]

    def __call__(self, trajectory: Trajectory, ledger: Ledger) -> Ledger:
        """Return what the function returns."""
        return self.function(trajectory, ledger)


@dataclass(frozen=True, slots=True)
class Scaled(Reward):
    """Pays ``factor`` times what ``reward`` pays, under the same names."""

    reward: Reward
    factor: float

    @property
    def signals(self) -> frozenset[str]:
        """Same as those of ``reward``."""
        return self.reward.signals

    @property
    def components(self) -> frozenset[str]:
        """Same as those of ``reward``."""
        return self.reward.components

    def __call__(self, trajectory: Trajectory) -> Ledger:
        """Return the scaled ledger."""
        return {
            name: floats(paid_N.astype(np.float64) * self.factor)
            for name, paid_N in self.reward(trajectory).items()
        }

    async def ask(self, groups: Sequence[Group]) -> Mapping[str, float]:
        """Let ``reward`` ask."""
        return await self.reward.ask(groups)
