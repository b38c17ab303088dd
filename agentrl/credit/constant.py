"""The same advantage for every token of an episode: imitation of all episodes, or credit by outcome alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agentrl.credit import Credit
from agentrl.credit.turns import checked
from agentrl.types import Credited, Need, Scored, ScoredGroup, floats


@dataclass(frozen=True, slots=True)
class ConstantCredit(Credit):
    """Credits every action token with ``value``.

    With the loss ``NegativeLogLikelihood`` this is supervised learning on the actions.
    """

    value: float = 1.0
    needs: ClassVar[frozenset[Need]] = frozenset()
    min_group: ClassVar[int] = 1

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Credit every action token with ``value``; rewards are ignored."""
        return [
            tuple(Credited(floats(np.full(scored.trajectory.num_tokens, self.value))) for scored in group)
            for group in checked(groups)
        ]


@dataclass(frozen=True, slots=True)
class ByOutcome(Credit):
    """Credits every token of a success with ``success`` and of other episodes with ``failure``.

    Zhu et al. 2025, "negative reinforcement". The defaults are the paper's weighted REINFORCE, which keeps
    the policy diverse. ``ByOutcome(1, 0)`` learns from successes alone, ``ByOutcome(0, -1)`` from failures
    alone. Success is the environment's signal and not a reward, so reward shaping does not change which
    episodes are successes.
    """

    success: float = 0.1
    failure: float = -1.0
    needs: ClassVar[frozenset[Need]] = frozenset()
    min_group: ClassVar[int] = 1

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Credit every token of an episode by the episode's outcome."""
        return [tuple(self._credit(scored) for scored in group) for group in checked(groups)]

    def _credit(self, scored: Scored) -> Credited:
        value = self.success if scored.trajectory.success else self.failure
        return Credited(floats(np.full(scored.trajectory.num_tokens, value)))
