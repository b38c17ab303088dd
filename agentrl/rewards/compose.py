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
    """Pays what all ``parts`` pay, as separate components of the ledger; no two may have the same name.

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
        """All signals that the parts read."""
        return frozenset[str]().union(*(part.signals for part in self.parts))

    @property
    def components(self) -> frozenset[str]:
        """All components that the parts pay."""
        return frozenset[str]().union(*(part.components for part in self.parts))

    def __call__(self, trajectory: Trajectory) -> Ledger:
        """Return one ledger with the components of all parts."""
        return {name: paid_N for part in self.parts for name, paid_N in part(trajectory).items()}

    async def ask(self, groups: Sequence[Group]) -> Mapping[str, float]:
        """Let every part ask its judges; return the sums of the parts' counts."""
        counts: Counter[str] = Counter()
        for part in self.parts:
            counts.update(await part.ask(groups))
        return counts


@dataclass(frozen=True, slots=True)
class FunctionTransform(Transform):
    """A transform from a plain function of the trajectory and its ledger."""

    function: Callable[[Trajectory, Ledger], Ledger]

    def __call__(self, trajectory: Trajectory, ledger: Ledger) -> Ledger:
        """Return the ledger that ``function`` returns."""
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
        """Return the ledger of ``reward`` times ``factor``."""
        return {
            name: floats(paid_N.astype(np.float64) * self.factor)
            for name, paid_N in self.reward(trajectory).items()
        }

    async def ask(self, groups: Sequence[Group]) -> Mapping[str, float]:
        """Let ``reward`` ask its judges; return its counts."""
        return await self.reward.ask(groups)
