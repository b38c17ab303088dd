"""Losses: one term per action token, and aggregations that weigh the terms by lengths alone.

Legend: the suffix ``_A`` and the shape ``[A]`` mean one number for each of the action tokens of a
micro-batch, sequence after sequence, in order of time.

The loss of an update is ``sum_A weights_A * (loss_A + sum of regularisers_A)``. ``weights_A`` comes from an
``Aggregation`` that has seen the lengths of the *whole* batch, so the sum over micro-batches is the loss of
the batch, however it is split.

Losses and off-policy weights inherit from ``Loss`` and ``OffPolicy``: what a class does not define has the
default given there. An ``Aggregation`` may be a plain function.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from agentrl.types import Json, Need

if TYPE_CHECKING:
    from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Bound of log-ratios in nats, on either side: the exponential of a larger one is useless for learning."""


@dataclass(frozen=True, slots=True, eq=False)
class LossInputs:
    """What a loss may look at; every tensor has the shape ``[A]``.

    Sequences are never split between micro-batches. ``old_logprobs_A``: the learner's own at the start of the
    update if a part of the objective needs ``old_logprobs``, else ``behaviour_logprobs_A``, those of the
    distribution that sampled. ``sequence_A``, ``turn_A`` and ``group_A`` number the sequences, turns and
    groups of the micro-batch from 0; a group is whole if the loss sets ``whole_groups``, otherwise it may be
    any part of a group. ``given_A``: whether the token was given, rather than sampled by the policy from this
    context (``None``: no token was); the ``behaviour_logprobs_A`` of given tokens belong to another context.
    """

    logprobs_A: Tensor
    old_logprobs_A: Tensor
    behaviour_logprobs_A: Tensor
    advantages_A: Tensor
    sequence_A: Tensor
    turn_A: Tensor
    entropies_A: Tensor | None = None
    ref_logprobs_A: Tensor | None = None
    group_A: Tensor | None = None
    given_A: Tensor | None = None


Terms = tuple["Tensor", Mapping[str, "Tensor"]]
"""A per-token loss ``[A]``, and named per-token measurements ``[A]`` that are averaged over the update's
tokens."""


class Aggregation(Protocol):
    """Computes a weight per action token from the lengths of a batch's turns."""

    def __call__(self, turn_lengths: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
        """Return one weight per action token of the batch.

        ``turn_lengths[i][k]`` is the number of action tokens in turn ``k`` of sequence ``i``. Sequences
        without action tokens count in no denominator.
        """
        ...


class Loss(Protocol):
    """A policy loss or a regulariser: both have the same shape, so they can be added."""

    __slots__ = ()

    @property
    @abstractmethod
    def needs(self) -> frozenset[Need]:
        """Measurements that must be present in ``LossInputs``."""

    @abstractmethod
    def __call__(self, x: LossInputs) -> Terms:
        """Return the loss and the measurements of each action token."""

    @property
    def aggregate(self) -> Aggregation | None:
        """A regulariser's own aggregation; ``None`` uses the objective's."""
        return None

    @property
    def whole_groups(self) -> bool:
        """Whether the loss compares the sequences of a group with each other.

        If so, groups stay together in minibatches and micro-batches, even a group that exceeds the token
        budget.
        """
        return False

    @property
    def handles_given(self) -> bool:
        """Whether the loss treats given tokens (``given_A``) differently from those the policy sampled."""
        return False

    @property
    def remembers(self) -> bool:
        """Whether the loss uses what it measured in earlier updates. If so, its state is kept in checkpoints.

        Only regularisers may remember; the learner calls ``observe`` for them.
        """
        return False

    def observe(self, means: Mapping[str, float]) -> None:
        """Learn from an update: ``means`` holds the mean of each measurement over action tokens."""
        return

    def state_dict(self) -> Mapping[str, Json]:
        """Return what must survive a resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Restore what ``state_dict`` returned."""
        return


class OffPolicy(Protocol):
    """Weighs each token by how far the policy that sampled it differs from the learner's."""

    __slots__ = ()

    @property
    def cap(self) -> float | None:
        """Maximum weight; ``None`` if weights have no bound."""
        return None

    @abstractmethod
    def __call__(self, old_logprobs_A: Tensor, behaviour_logprobs_A: Tensor, sequence_A: Tensor) -> Tensor:
        """Return a weight per token ``[A]``, without gradient."""


@dataclass(frozen=True, slots=True)
class NegativeLogLikelihood(Loss):
    """``-advantage * log pi``: imitation if the advantages are 1, weighted imitation otherwise."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, x: LossInputs) -> Terms:
        """Return the loss; measured: ``nll`` (``-log pi``, nats per token, without the advantage)."""
        return -x.advantages_A * x.logprobs_A, {"nll": -x.logprobs_A.detach()}


@dataclass(frozen=True, slots=True)
class PolicyGradient(Loss):
    """``-advantage * log pi``: REINFORCE, for data that the current policy sampled.

    If an older policy sampled the data, nothing bounds how far an update moves the policy.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, x: LossInputs) -> Terms:
        """Return the loss; measured: ``ratio`` (``pi / pi_old``), ``approx_kl`` (old to new policy, nats)."""
        log_ratio_A = (x.logprobs_A - x.old_logprobs_A).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        ratio_A = log_ratio_A.exp()
        return -x.advantages_A * x.logprobs_A, {"ratio": ratio_A, "approx_kl": ratio_A - 1.0 - log_ratio_A}
