"""Rewards: pure functions from a trajectory's signals to a ledger of components.

A ledger holds one number per turn and named component: what the component pays the turn. A ``Reward`` looks
at one trajectory; a ``Transform`` rewrites its ledger by a decision about the whole episode (gates, clips,
penalties). Neither sees other trajectories (that is credit) or the probabilities of tokens (that is the
loss), so stored trajectories can be paid again offline.

Implementations inherit from these protocols: what a class does not define has the default given here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from agentrl.errors import ConfigError
from agentrl.types import Group, Json, Ledger, Trajectory


class Reward(Protocol):
    """Pays a trajectory: returns a ledger whose components have exactly one number per turn each."""

    __slots__ = ()

    @property
    @abstractmethod
    def signals(self) -> frozenset[str]:
        """Signals that the reward reads.

        An environment that does not report these signals is refused before any episode is played.
        """

    @property
    @abstractmethod
    def components(self) -> frozenset[str]:
        """Names of the components that the reward pays."""

    @abstractmethod
    def __call__(self, trajectory: Trajectory) -> Ledger:
        """Return the ledger of ``trajectory``.

        Raises:
            Unjudged: the episode cannot be paid. The episode is left out of its group and counted.
        """

    async def ask(self, groups: Sequence[Group]) -> Mapping[str, float]:
        """Obtain from elsewhere, such as from a judge, what is needed to pay ``groups``.

        This is called once for a whole update, before the update is paid, and returns counts by metric name.
        Most rewards need nothing from elsewhere and return no counts. If nothing could be obtained about an
        episode, the reward raises ``Unjudged`` when it is asked to pay it.
        """
        return {}


class Transform(Protocol):
    """Rewrites a ledger by a decision about the whole episode."""

    __slots__ = ()

    @property
    def signals(self) -> frozenset[str]:
        """Signals that the transform reads; the environment must report them."""
        return frozenset()

    @abstractmethod
    def __call__(self, trajectory: Trajectory, ledger: Ledger) -> Ledger:
        """Return the new ledger."""

    def gauge(self, trajectory: Trajectory, ledger: Ledger) -> Mapping[str, float]:
        """Return numbers about the decision for one episode, given its ledger before the transform.

        Their means over an update's episodes are metrics; for example, they show that a gate was never open.
        """
        return {}

    @property
    def remembers(self) -> bool:
        """Whether the transform learns from update to update. If so, its state is kept in checkpoints."""
        return False

    def observe(self, means: Mapping[str, float]) -> None:
        """Learn from an update: ``means`` holds the mean of each gauge over the update's episodes."""
        return

    def state_dict(self) -> Mapping[str, Json]:
        """Return what must survive a resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Restore what ``state_dict`` returned."""
        return


def check_ledger(ledger: Ledger, trajectory: Trajectory) -> Ledger:
    """Return the ledger, after checking that its shapes and numbers are valid.

    Raises:
        ConfigError: a component does not pay one number per turn, or pays a number that is not finite.
    """
    for name, paid_N in ledger.items():
        where = f"the reward component {name!r} of task {trajectory.task.id!r}"
        if np.shape(paid_N) != (len(trajectory.turns),):
            raise ConfigError(
                f"{where} has shape {np.shape(paid_N)}, the episode {len(trajectory.turns)} turns; "
                "pay one number for each turn in an array"
            )
        if not np.isfinite(paid_N).all():
            turn = int(np.flatnonzero(~np.isfinite(paid_N))[0])
            raise ConfigError(
                f"{where} is {float(paid_N[turn])} on turn {turn}; every payment must be a finite number. "
                "Raise Unjudged for an episode that cannot be paid: it is left out and counted"
            )
    return ledger
