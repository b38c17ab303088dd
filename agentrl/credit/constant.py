"""The same advantage for every token: imitation, of everything or by outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agentrl.credit.turns import checked
from agentrl.types import Credited, Need, Scored, ScoredGroup, floats


@dataclass(frozen=True, slots=True)
class Constant:
    """Credit every action token with ``value``; with ``NegativeLogLikelihood`` that is supervised learning on the actions."""

    value: float = 1.0
    needs: ClassVar[frozenset[Need]] = frozenset()
    min_group: ClassVar[int] = 1

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Ignore what was paid."""
        return [
            tuple(Credited(floats(np.full(scored.trajectory.num_tokens, self.value))) for scored in group)
            for group in checked(groups)
        ]


@dataclass(frozen=True, slots=True)
class ByOutcome:
    """Credit every token of a success with ``success`` and of the others with ``failure`` (Zhu et al. 2025, "negative reinforcement").

    The defaults are their weighted REINFORCE, which keeps variety. ``ByOutcome(1, 0)`` learns from successes alone, ``ByOutcome(0, -1)``
    from failures alone. Success is the environment's signal, not a reward, so no shaping changes who is one.
    """

    success: float = 0.1
    failure: float = -1.0
    needs: ClassVar[frozenset[Need]] = frozenset()
    min_group: ClassVar[int] = 1

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Look at nothing but the outcome."""
        return [tuple(self._credit(scored) for scored in group) for group in checked(groups)]

    def _credit(self, scored: Scored) -> Credited:
        value = self.success if scored.trajectory.success else self.failure
        return Credited(floats(np.full(scored.trajectory.num_tokens, value)))
