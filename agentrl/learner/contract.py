"""The interfaces of the learning side: the learner that trains the policy, and scorers that learn beside it.

``TorchLearner`` is the only ``Learner`` of this package. The run, teachers that are models of their own, and
scorers all get their learners from the run's ``MakeLearner``, so another implementation, for example one in
another process, replaces all of them at once.
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
    """Holds the weights that are trained, and their optimiser."""

    @property
    def trained_names(self) -> frozenset[str]:
        """Names of the trained weights, as in the model's ``named_parameters``."""
        ...

    def start(self, optimisation: Optimisation, total_updates: int) -> None:
        """Begin a stage of ``total_updates`` updates.

        The optimiser starts anew, and the policy's current weights become the reference policy.
        """
        ...

    def annotate(
        self, groups: Sequence[ScoredGroup], needs: frozenset[Need], temperature: float = 1.0
    ) -> list[ScoredGroup]:
        """Return the groups with every measurement that ``needs`` names.

        Raises:
            ConfigError: this learner cannot make a measurement, such as values without a value head.
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
        """Take ``epochs * minibatches`` optimiser steps on ``batch``, and return measurements.

        Raises:
            ConfigError: the objective needs something that the batch or the learner does not have.
            Diverged: a loss or gradient is not finite; that minibatch made no optimiser step.
        """
        ...

    def weights(self) -> Weights:
        """Return the weights by their names in the model's ``state_dict``, with adapters merged in.

        The next update may change the tensors; copy those that must last longer.
        """
        ...

    def load_weights(self, weights: Weights) -> None:
        """Replace all weights; the names are those that ``weights()`` returns."""
        ...

    def save_model(self, folder: Path) -> None:
        """Write the model, with adapters merged in, as a folder that ``transformers`` can load."""
        ...

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Return everything that determines the next update.

        The first mapping holds tensors (weights, optimiser moments, value head, reference weights), the
        second holds counts.
        """
        ...

    def load_state_dict(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Json]) -> None:
        """Restore the state that ``state_dict`` returned as ``tensors`` and ``numbers``.

        Raises:
            ConfigError: the state belongs to another model.
        """
        ...


class MakeLearner(Protocol):
    """Builds learners: the one place that decides how they are implemented and where they run."""

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

        ``renderer`` determines the tokens that an action may consist of, ``seed`` the random weights.

        Raises:
            ConfigError: the model cannot be built or trained.
        """
        ...


class OpenScorer(Protocol):
    """An opened scorer: a model whose rewards are a component of their own in each trajectory's ledger.

    In each update it learns from the same episodes as the policy, after the policy has learned.
    """

    @property
    def learner(self) -> Learner:
        """The learner that holds the scorer's weights and optimiser moments, which checkpoints store."""
        ...

    def start(self, weights: Weights, updates: int) -> None:
        """Begin a stage of ``updates`` updates, starting from ``weights``, which are the policy's."""
        ...

    def score(self, groups: Sequence[ScoredGroup], temperature: float) -> list[ScoredGroup]:
        """Return the groups with the scorer's rewards as one more component in every trajectory's ledger."""
        ...

    def learn(self, groups: Sequence[ScoredGroup], temperature: float) -> dict[str, float]:
        """Learn from groups that ``score`` returned, and return measurements by the name of their metric."""
        ...


class Scorer(Protocol):
    """A process reward from a model that learns beside the policy, without labels for single turns.

    A scorer is frozen data; ``open`` builds its model. ``agentrl.learner.implicit`` has an implementation.
    """

    @property
    def needs(self) -> frozenset[Need]:
        """Measurements that the policy's learner must have made before ``score`` is called."""
        ...

    @property
    def optimisation(self) -> Optimisation:
        """How the scorer's model is optimised."""
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
        """Build the scorer's model; ``model`` is the policy's model, and ``make`` builds learners."""
        ...
