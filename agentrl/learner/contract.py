"""The learning side's contracts: what trains the policy, and what learns beside it.

``TorchLearner`` is the one ``Learner`` of this package. Whoever needs a learner (the run, a teacher that is another model, a scorer)
asks the run's ``MakeLearner`` for it, so a learner that lives elsewhere takes the place of all of them at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from agentrl.learner.optimiser import Compute, Optimisation
from agentrl.learner.spec import ModelSpec
from agentrl.render import Renderer
from agentrl.types import Json, Need, ScoredGroup

if TYPE_CHECKING:
    from torch import Tensor

    from agentrl.learner.batch import Batch
    from agentrl.losses.objective import Objective

Weights = Mapping[str, "Tensor"]
"""A model's weights by their names in its ``state_dict``."""


class Learner(Protocol):
    """Holds the weights that learn, and their optimiser."""

    @property
    def trained_names(self) -> frozenset[str]:
        """Names of the weights that learn, as in the model's ``named_parameters``."""
        ...

    def start(self, optimisation: Optimisation, total_updates: int) -> None:
        """Begin a stage of ``total_updates`` updates: a fresh optimiser; the reference policy is the policy as it is now."""
        ...

    def annotate(
        self, groups: Sequence[ScoredGroup], needs: frozenset[Need], temperature: float = 1.0
    ) -> list[ScoredGroup]:
        """Return the groups with every measurement that ``needs`` names.

        Raises:
            ConfigError: a measurement that this learner cannot make, such as values without a value head.
        """
        ...

    def update(
        self,
        batch: Batch,
        objective: Objective,
        *,
        epochs: int = 1,
        minibatches: int = 1,
        seed: int = 0,
        temperature: float = 1.0,
    ) -> dict[str, float]:
        """Take ``epochs * minibatches`` optimiser steps on ``batch``; return what was measured on the way.

        Raises:
            ConfigError: the objective needs what the batch or the learner does not have.
            Diverged: a loss or gradient is not finite; no step was taken with it.
        """
        ...

    def weights(self) -> Weights:
        """Return the weights by their names in the model's ``state_dict``, adapters merged in. Copy what must outlast the next update."""
        ...

    def load_weights(self, weights: Weights) -> None:
        """Replace all weights by ``weights``, which have the names that ``weights`` returns."""
        ...

    def save_model(self, folder: Path) -> None:
        """Write the model, adapters merged in, as a folder that ``transformers`` loads."""
        ...

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Return all that decides the next update: tensors (weights, moments, value head, reference) and counts."""
        ...

    def load_state_dict(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Json]) -> None:
        """Continue from what ``state_dict`` returned.

        Raises:
            ConfigError: it is the state of another model.
        """
        ...


class MakeLearner(Protocol):
    """Builds learners: the one place that decides what they are and where they live."""

    def __call__(
        self,
        model: ModelSpec,
        compute: Compute,
        *,
        vocab_size: int,
        renderer: Renderer,
        seed: int,
        value_head: bool = False,
    ) -> Learner:
        """Build a learner of ``model``.

        ``renderer`` says which tokens an action may consist of; ``seed`` decides random weights.

        Raises:
            ConfigError: the model cannot be built or trained.
        """
        ...


class OpenScorer(Protocol):
    """A scorer at work: it pays a component of its own, and learns from the same episodes after the policy did."""

    @property
    def learner(self) -> Learner:
        """Holds its weights and moments, which checkpoints keep."""
        ...

    def start(self, weights: Weights, updates: int) -> None:
        """Begin a stage of ``updates`` updates from the policy's weights."""
        ...

    def score(self, groups: Sequence[ScoredGroup], temperature: float) -> list[ScoredGroup]:
        """Return the groups with the scorer's component in every ledger."""
        ...

    def learn(self, groups: Sequence[ScoredGroup], temperature: float) -> dict[str, float]:
        """Learn from groups that ``score`` returned; return measurements."""
        ...


class Scorer(Protocol):
    """A process reward from a model that learns beside the policy, without labels for single turns: frozen data that opens it.

    ``agentrl.learner.implicit`` holds the one that ships.
    """

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
        make: MakeLearner,
        model: ModelSpec,
        compute: Compute,
        *,
        vocab_size: int,
        renderer: Renderer,
        seed: int,
    ) -> OpenScorer:
        """Build it. ``model`` is the policy's, ``make`` builds its learner."""
        ...
