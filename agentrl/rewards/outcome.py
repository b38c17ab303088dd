"""Rewards for what happened: an outcome, a signal, the environment's own reward, invalid actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agentrl.rewards import Reward
from agentrl.types import Ledger, Trajectory, floats


@dataclass(frozen=True, slots=True)
class Outcome(Reward):
    """Pays the last turn its value of ``signal`` and all other turns nothing."""

    signal: str = "success"
    name: str = "outcome"

    @property
    def signals(self) -> frozenset[str]:
        """The single signal that the reward reads."""
        return frozenset({self.signal})

    @property
    def components(self) -> frozenset[str]:
        """The single component that the reward pays."""
        return frozenset({self.name})

    def __call__(self, trajectory: Trajectory) -> Ledger:
        """Return ``{name: [0, ..., 0, signal]}``."""
        paid_N = np.zeros(len(trajectory.turns))
        paid_N[-1:] = trajectory.signal(self.signal)[-1:]
        return {self.name: floats(paid_N)}


@dataclass(frozen=True, slots=True)
class Process(Reward):
    """Pays each turn its value of ``signal``; the component has the signal's name."""

    signal: str

    @property
    def signals(self) -> frozenset[str]:
        """The single signal that the reward reads."""
        return frozenset({self.signal})

    @property
    def components(self) -> frozenset[str]:
        """The single component that the reward pays."""
        return frozenset({self.signal})

    def __call__(self, trajectory: Trajectory) -> Ledger:
        """Return ``{signal: the signal's values}``, one per turn."""
        return {self.signal: trajectory.signal(self.signal)}


@dataclass(frozen=True, slots=True)
class EnvReward(Reward):
    """Pays each turn the environment's own reward for it."""

    signals: ClassVar[frozenset[str]] = frozenset()
    components: ClassVar[frozenset[str]] = frozenset({"env"})

    def __call__(self, trajectory: Trajectory) -> Ledger:
        """Return ``{"env": the environment's rewards}``, one per turn."""
        return {"env": floats([turn.reward for turn in trajectory.turns])}


@dataclass(frozen=True, slots=True)
class Format(Reward):
    """Charges ``penalty`` for each turn whose action the environment did not understand."""

    penalty: float = 0.05
    signals: ClassVar[frozenset[str]] = frozenset({"valid"})
    components: ClassVar[frozenset[str]] = frozenset({"format"})

    def __call__(self, trajectory: Trajectory) -> Ledger:
        """Return ``{"format": payments}``: ``-penalty`` for a turn with the signal ``valid`` at 0, else 0."""
        return {"format": floats(np.where(trajectory.signal("valid") > 0.0, 0.0, -self.penalty))}
