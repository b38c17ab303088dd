"""A reward for progress, normalised so that a whole episode is paid at most 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agentrl.errors import ConfigError
from agentrl.rewards import Reward
from agentrl.types import Ledger, Trajectory, floats


@dataclass(frozen=True, slots=True)
class Dense(Reward):
    """Pays each turn ``signal / N`` (Wang et al. 2025, "A practitioner's guide to multi-turn agentic RL").

    ``N`` is the number of turns with a positive signal if the episode succeeded, else the task's own maximum,
    ``most``; ``N`` is at least 1. So every success is paid 1 in total, whatever way it took, and a failure is
    paid the share of progress that it made.
    """

    signal: str
    most: str | int
    """Maximum number of turns with a positive signal that an episode can have: a key of ``Task.data`` that
    holds this number for each task, or one number for all tasks."""
    components: ClassVar[frozenset[str]] = frozenset({"dense"})

    @property
    def signals(self) -> frozenset[str]:
        """The names of the progress signal and of ``success``."""
        return frozenset({self.signal, "success"})

    def __call__(self, trajectory: Trajectory) -> Ledger:
        """Return ``{"dense": signal / N}``, one number per turn.

        Raises:
            ConfigError: ``Task.data`` holds no number under the key ``most``.
        """
        progress_N = trajectory.signal(self.signal).astype(np.float64)
        number = float((progress_N > 0.0).sum()) if trajectory.success else self._most(trajectory)
        return {"dense": floats(progress_N / max(number, 1.0))}

    def _most(self, trajectory: Trajectory) -> float:
        if isinstance(self.most, int):
            return float(self.most)
        most = trajectory.task.data.get(self.most)
        if isinstance(most, (int, float)) and not isinstance(most, bool):
            return float(most)
        raise ConfigError(
            f"the dense reward divides by the task's {self.most!r}; "
            f"task {trajectory.task.id!r} has {most!r} there, its data has the keys "
            f"{', '.join(sorted(trajectory.task.data)) or '(none)'}; name a key that holds a number"
        )
