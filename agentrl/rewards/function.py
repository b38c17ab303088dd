"""Rewards from plain functions of a trajectory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from agentrl.errors import ConfigError
from agentrl.rewards import Reward
from agentrl.types import Ledger, Trajectory, floats


class Pay(Protocol):
    """A function that returns what an episode is paid: a number for the last turn, or one per turn."""

    __name__: str

    def __call__(self, trajectory: Trajectory, /) -> float | Sequence[float]:
        """Return what ``trajectory`` is paid."""
        ...


@dataclass(frozen=True, slots=True)
class FunctionReward(Reward):
    """Pays what ``function`` returns, under ``name``. A single number is paid on the last turn."""

    function: Pay
    name: str
    reads: tuple[str, ...] = ()
    """The signals that the function reads."""

    @property
    def signals(self) -> frozenset[str]:
        """The signals that the function reads."""
        return frozenset(self.reads)

    @property
    def components(self) -> frozenset[str]:
        """The one component, ``name``."""
        return frozenset({self.name})

    def __call__(self, trajectory: Trajectory) -> Ledger:
        """Return the ledger of ``trajectory``, with one component."""
        paid = np.asarray(self.function(trajectory), dtype=float)
        if paid.ndim == 0:
            paid_N = np.zeros(len(trajectory.turns))
            paid_N[-1:] = paid
            return {self.name: floats(paid_N)}
        return {self.name: floats(paid)}


def reward(*, name: str = "", signals: Sequence[str] = ()) -> Callable[[Pay], FunctionReward]:
    """Make a reward of a function; its component has the function's name unless ``name`` is given.

    ``signals`` names the signals that the function reads: a recipe whose environment does not report them is
    refused before it runs.

    Raises:
        ConfigError: a lambda without a name.

    >>> @reward(signals=("success",))
    ... def quick(trajectory):
    ...     return trajectory.success / max(1, len(trajectory.turns))
    >>> quick.name, sorted(quick.signals)
    ('quick', ['success'])
    """

    def decorate(function: Pay) -> FunctionReward:
        component = name or function.__name__
        if component == "<lambda>":
            raise ConfigError(
                "a reward of a lambda has no name; write reward(name=...), or define a function"
            )
        return FunctionReward(function, component, tuple(signals))

    return decorate
