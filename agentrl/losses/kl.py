"""Divergence from a reference policy, estimated from the sampled tokens.

Schulman 2020, "Approximating KL divergence". With ``d = log pi - log pi_ref`` cut at 20 nats on either side:

* k1, ``d``: unbiased as a number; as a loss its expected gradient is zero, so it belongs in the reward.
* k2, ``d**2 / 2``: as a loss, on-policy, the gradient of ``KL(pi || pi_ref)``.
* k3, ``exp(-d) - 1 + d``: never negative, unbiased as a number; as a loss, on-policy, the gradient of
  ``KL(pi_ref || pi)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from agentrl.errors import ConfigError
from agentrl.losses import MAX_LOG_RATIO, Loss, LossInputs, Terms
from agentrl.types import Need

if TYPE_CHECKING:
    from torch import Tensor

MAX_K3 = 10.0


def k1(log_ratio_A: Tensor) -> Tensor:
    """Return the log-ratio ``d = log pi - log pi_ref`` itself."""
    return log_ratio_A


def k2(log_ratio_A: Tensor) -> Tensor:
    """Return ``d**2 / 2`` for the log-ratio ``d = log pi - log pi_ref``."""
    return log_ratio_A.square() / 2.0


def k3(log_ratio_A: Tensor) -> Tensor:
    """Return ``exp(-d) - 1 + d``, at most 10, for the log-ratio ``d = log pi - log pi_ref``."""
    import torch

    return (torch.expm1(-log_ratio_A) + log_ratio_A).clamp(max=MAX_K3)


@dataclass(frozen=True, slots=True)
class KL(Loss):
    """A penalty for diverging from the reference: ``coef * estimator(log pi - log pi_ref)`` per token."""

    coef: float = 0.001
    estimator: Callable[[Tensor], Tensor] = k3
    needs: ClassVar[frozenset[Need]] = frozenset({"ref_logprobs"})

    def __post_init__(self) -> None:
        if self.estimator is k1:
            raise ConfigError(
                "the k1 estimator as a loss has an expected gradient of zero and only adds noise; "
                "use k2 or k3, or put it into the reward with credit.penalty.KLPenalty"
            )

    def __call__(self, x: LossInputs) -> Terms:
        """Return the penalty; measured: ``ref_kl`` (k1, whose mean is the divergence in nats per token)."""
        assert x.ref_logprobs_A is not None, "ref_logprobs were not measured"
        log_ratio_A = (x.logprobs_A - x.ref_logprobs_A).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        return self.coef * self.estimator(log_ratio_A), {"ref_kl": k1(log_ratio_A).detach()}
