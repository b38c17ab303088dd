"""Losses optimise: per-token terms, and aggregation as a separate function of lengths alone.

Legend: ``A`` the action tokens of a micro-batch, sequence after sequence, in order of time.

The loss of an update is ``sum_A weights_A * (loss_A + sum of regularisers_A)``. ``weights_A`` comes from an ``Aggregation`` that has
seen the lengths of the *whole* batch, so the sum over micro-batches is the loss of the batch, whatever the split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from agentrl.types import Need

MAX_LOG_RATIO = 20.0
"""Log-ratios are cut here: ``exp`` of what lies beyond is no number to learn from."""


@dataclass(frozen=True, slots=True, eq=False)
class LossInputs:
    """What a loss may look at, every tensor of shape ``[A]``. Sequences are never split between micro-batches.

    ``old_logprobs_A``: the learner's own at the start of the update where somebody needs ``old_logprobs``, else ``behaviour_logprobs_A``,
    those of the distribution that sampled. ``sequence_A``, ``turn_A`` and ``group_A`` number the sequences, turns and groups of the
    micro-batch from 0; a group is whole where the loss asks for ``whole_groups``, else any part of it. ``given_A``: whether the token was
    given, rather than sampled by the policy from this context (``None``: none was); its ``behaviour_logprobs_A`` are of another context.
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


Terms = tuple[Tensor, Mapping[str, Tensor]]
"""A per-token loss ``[A]``, and named per-token measurements ``[A]`` that are averaged over the update's tokens."""


class Loss(Protocol):
    """A policy loss, or a regulariser: the same shape, so they add.

    One that compares the sequences of a group says so with a class attribute ``whole_groups = True``: groups then stay together in
    minibatches and micro-batches, even where one is above the token budget.
    """

    @property
    def needs(self) -> frozenset[Need]:
        """Measurements that must be present in ``LossInputs``."""
        ...

    def __call__(self, x: LossInputs) -> Terms:
        """Return the per-token loss and measurements."""
        ...


class Aggregation(Protocol):
    """From the lengths of a batch to a weight per token."""

    def __call__(self, turn_lengths: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
        """Return ``weights_A`` for the batch; ``turn_lengths[i][k]`` is the number of action tokens in turn ``k`` of sequence ``i``.

        Sequences without action tokens count in no denominator.
        """
        ...


class OffPolicy(Protocol):
    """How much each token of another sampler counts."""

    def __call__(self, old_logprobs_A: Tensor, behaviour_logprobs_A: Tensor, sequence_A: Tensor) -> Tensor:
        """Return a weight per token ``[A]``, without gradient."""
        ...
