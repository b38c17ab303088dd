"""Rewards pay: pure functions from a trajectory's signals to a ledger, one number per turn and named component.

A ``Reward`` looks at one trajectory; a ``Transform`` rewrites its ledger with a per-episode decision (gates, clips, penalties). Neither
sees other trajectories (that is credit) nor tokens' probabilities (that is the loss), so stored trajectories can be paid again offline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from agentrl.errors import ConfigError
from agentrl.types import Group, Ledger, Trajectory


class Reward(Protocol):
    """Pays a trajectory. Each component of the result has exactly one number per turn."""

    @property
    def signals(self) -> frozenset[str]:
        """Signals that it reads; an environment that does not report them is the wrong one, and that is found before any work."""
        ...

    @property
    def components(self) -> frozenset[str]:
        """Names that it pays under."""
        ...

    def __call__(self, trajectory: Trajectory) -> Ledger:
        """Return the ledger of ``trajectory``."""
        ...


class Transform(Protocol):
    """Rewrites a ledger by a decision about the whole episode."""

    def __call__(self, trajectory: Trajectory, ledger: Ledger) -> Ledger:
        """Return the new ledger."""
        ...


@runtime_checkable
class Inquiring(Protocol):
    """A reward whose numbers come from elsewhere, such as a judge: asked about a whole update at once, before it pays."""

    async def ask(self, groups: Sequence[Group]) -> Mapping[str, float]:
        """Find out what paying these groups takes; return counts, by the names of metrics.

        What could not be found out makes paying that episode raise ``Unjudged``: it is left out of its group.
        """
        ...


@runtime_checkable
class Gauged(Protocol):
    """A transform that tells what it decided, so that a gate that nothing ever opened is seen."""

    def gauge(self, trajectory: Trajectory, ledger: Ledger) -> Mapping[str, float]:
        """Return numbers about one episode, before the transform; their means over an update's episodes are metrics."""
        ...


def sound(ledger: Ledger, trajectory: Trajectory) -> Ledger:
    """Return the ledger, if it can be learned from.

    Raises:
        ConfigError: a component pays another number of turns than there are, or something that is no finite number.
    """
    for name, paid_N in ledger.items():
        where = f"the reward component {name!r} of task {trajectory.task.id!r}"
        if np.shape(paid_N) != (len(trajectory.turns),):
            raise ConfigError(
                f"{where} has shape {np.shape(paid_N)}, the episode {len(trajectory.turns)} turns; pay one number for each turn in an array"
            )
        if not np.isfinite(paid_N).all():
            turn = int(np.flatnonzero(~np.isfinite(paid_N))[0])
            raise ConfigError(
                f"{where} is {float(paid_N[turn])} on turn {turn}; every payment must be a finite number. Raise Unjudged for an episode "
                "that cannot be paid: it is left out and counted"
            )
    return ledger
