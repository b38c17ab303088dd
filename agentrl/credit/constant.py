"""The same advantage for every token: imitation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agentrl.credit.turns import checked
from agentrl.types import Credited, Need, ScoredGroup, floats


@dataclass(frozen=True, slots=True)
class Constant:
    """Credit every action token with ``value``; with ``NegativeLogLikelihood`` that is supervised learning on the actions."""

    value: float = 1.0
    needs: ClassVar[frozenset[Need]] = frozenset()
    min_group: ClassVar[int] = 1

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Ignore what was paid."""
        return [tuple(Credited(floats(np.full(scored.trajectory.num_tokens, self.value))) for scored in group) for group in checked(groups)]
