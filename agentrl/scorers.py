"""Scorers: process rewards from a model that learns beside the policy, without a label for any step.

A scorer is opened with the run, pays a component of its own once the policy's log-probabilities are known, and learns from the same
episodes after the policy did. Its weights and moments are kept in checkpoints. ``agentrl.implicit`` holds the one that ships.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from agentrl.model import ModelSpec
from agentrl.optimiser import Compute, Optimisation
from agentrl.types import Need, ScoredGroup

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from agentrl.learner import Learner, Weights


class OpenScorer(Protocol):
    """A scorer at work."""

    @property
    def learner(self) -> Learner:
        """Holds its weights and moments."""
        ...

    def start(self, weights: Weights, updates: int) -> None:
        """Begin a stage of so many updates from the policy's weights."""
        ...

    def score(self, groups: Sequence[ScoredGroup], temperature: float) -> list[ScoredGroup]:
        """Return the groups with the scorer's component in every ledger."""
        ...

    def learn(self, groups: Sequence[ScoredGroup], temperature: float) -> dict[str, float]:
        """Learn from groups that ``score`` returned; return measurements."""
        ...


class Scorer(Protocol):
    """A configured scorer: frozen data."""

    @property
    def needs(self) -> frozenset[Need]:
        """What the policy must measure first."""
        ...

    @property
    def optimisation(self) -> Optimisation:
        """How it learns."""
        ...

    def open(
        self,
        model: ModelSpec,
        *,
        vocab_size: int,
        compute: Compute,
        allowed_V: npt.NDArray[np.bool_] | None,
        seed: int,
    ) -> OpenScorer:
        """Build it, of the policy's own kind."""
        ...
