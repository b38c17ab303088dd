"""Importance weights with a bound: how much a token counts that another distribution sampled.

Yao et al. 2025; Espeholt et al. 2018. ``w = min(pi_old / pi_behaviour, cap)`` corrects for a sampler that was
not the learner: older weights, or an engine with another arithmetic. ``w`` multiplies a loss whose own ratio
and clip are those of ``pi / pi_old``; the two ratios are never mixed (decoupled PPO, Hilton et al. 2022).
Weights carry no gradient. The denominators of the aggregation stay those of the whole batch, even if a weight
is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrl.errors import ConfigError
from agentrl.losses import MAX_LOG_RATIO, OffPolicy

if TYPE_CHECKING:
    from torch import Tensor

NEARLY_ZERO = 1e-3
"""Tokens with a smaller weight count as lost in the metric ``off_policy_zero``."""


def weight_metrics(rule: OffPolicy, weights_A: Tensor) -> Mapping[str, Tensor]:
    """Return metrics of the weights: their values, which are at the cap, and which are nearly 0.

    Products over long sequences tend to the cap or to 0, and the mean weight does not show it, so look at the
    shares of both before trusting the weights.
    """
    found = {"off_policy_weight": weights_A, "off_policy_zero": (weights_A < NEARLY_ZERO).to(weights_A.dtype)}
    if rule.cap is not None:
        found["off_policy_capped"] = (weights_A >= rule.cap).to(weights_A.dtype)
    return found


@dataclass(frozen=True, slots=True)
class TokenTIS(OffPolicy):
    """One weight per token: ``pi_old / pi_behaviour`` of the token, at most ``cap``."""

    cap: float = 2.0

    def __post_init__(self) -> None:
        _check_cap(self.cap)

    def __call__(self, old_logprobs_A: Tensor, behaviour_logprobs_A: Tensor, sequence_A: Tensor) -> Tensor:
        """Return one weight per action token: the ratio of old to sampling probability, at most ``cap``."""
        return _ratio(old_logprobs_A - behaviour_logprobs_A).clamp(max=self.cap)


@dataclass(frozen=True, slots=True)
class SequenceTIS(OffPolicy):
    """One weight per sequence: the product of its tokens' ratios, at most ``cap``.

    For long sequences the product tends to the cap or to 0: look at the measured weights before trusting
    them.
    """

    cap: float = 2.0

    def __post_init__(self) -> None:
        _check_cap(self.cap)

    def __call__(self, old_logprobs_A: Tensor, behaviour_logprobs_A: Tensor, sequence_A: Tensor) -> Tensor:
        """Return one weight per action token, the same for all tokens of a sequence."""
        log_ratio_A = (old_logprobs_A - behaviour_logprobs_A).detach()
        if not len(log_ratio_A):
            return log_ratio_A
        sums_S = log_ratio_A.new_zeros(int(sequence_A.max()) + 1).index_add(0, sequence_A, log_ratio_A)
        return _ratio(sums_S).clamp(max=self.cap)[sequence_A]


@dataclass(frozen=True, slots=True)
class TokenRejection(OffPolicy):
    """The weight 1 if the token's ``pi_old / pi_behaviour`` is within ``[1 / cap, cap]``, else 0.

    So very off-policy tokens are dropped.
    """

    cap: float = 2.0

    def __post_init__(self) -> None:
        _check_cap(self.cap)

    def __call__(self, old_logprobs_A: Tensor, behaviour_logprobs_A: Tensor, sequence_A: Tensor) -> Tensor:
        """Return one weight per action token: 1 if the token is kept, 0 if it is dropped."""
        ratio_A = _ratio(old_logprobs_A - behaviour_logprobs_A)
        return ((ratio_A <= self.cap) & (ratio_A >= 1.0 / self.cap)).to(ratio_A.dtype)


def _check_cap(cap: float) -> None:
    if not cap >= 1.0:
        raise ConfigError(
            "the cap of an importance weight must be at least 1, the weight of on-policy data; "
            f"found {cap}; 2 to 5 is usual"
        )


def _ratio(log_ratio: Tensor) -> Tensor:
    import torch

    return torch.exp(log_ratio.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
