"""Losses without a ratio: imitation, and the plain policy gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from agentrl.losses import MAX_LOG_RATIO, Loss, LossInputs, Terms
from agentrl.types import Need


@dataclass(frozen=True, slots=True)
class NegativeLogLikelihood(Loss):
    """``-A log pi``: imitation if the advantages are 1, weighted imitation otherwise."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, x: LossInputs) -> Terms:
        """Return the loss; measured: ``nll`` (nats per token, unweighted)."""
        return -x.advantages_A * x.logprobs_A, {"nll": -x.logprobs_A.detach()}


@dataclass(frozen=True, slots=True)
class PolicyGradient(Loss):
    """``-A log pi``: REINFORCE, for data that the current policy sampled.

    Nothing bounds the step if the data are older.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, x: LossInputs) -> Terms:
        """Return the loss; measured: ``ratio`` and ``approx_kl`` (old to new, nats)."""
        log_ratio_A = (x.logprobs_A - x.old_logprobs_A).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        ratio_A = log_ratio_A.exp()
        return -x.advantages_A * x.logprobs_A, {"ratio": ratio_A, "approx_kl": ratio_A - 1.0 - log_ratio_A}
