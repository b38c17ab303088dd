"""Policy losses that differ in how they use the ratio ``rho = pi / pi_old``, per token or per sequence.

They differ from the clipped surrogate of ``agentrl.losses.clip`` in which tokens still have a gradient once
the policy has moved, and in the size of that gradient. Log-ratios are cut at 20 nats on either side.
On-policy, where every ratio is 1, all but ``CritiqueShaped`` have the plain policy gradient. In formulas
``A`` is the advantage of a token and ``sg`` stops the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from agentrl.errors import ConfigError
from agentrl.losses import MAX_LOG_RATIO, Loss, LossInputs, Terms
from agentrl.types import Need

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class GSPO(Loss):
    """One ratio per sequence, ``s = exp(mean_t log rho_t)``, clipped as in PPO (Zheng et al. 2025).

    Each token's gradient is ``s * grad log pi``. Aggregate with ``seq_mean_then_mean``, and do not combine
    with per-token importance weights. The range is much narrower than PPO's, because a mean of log-ratios
    hardly moves.
    """

    low: float = 3e-4
    high: float = 4e-4
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)

    def __call__(self, x: LossInputs) -> Terms:
        """Return the loss; measured: ``ratio`` (that of the sequence), ``clip_fraction``, ``approx_kl``."""
        import torch

        log_ratio_A = log_ratio(x)
        mean_A = sequence_means(log_ratio_A.detach(), x.sequence_A)
        ratio_A = torch.exp(
            mean_A + log_ratio_A - log_ratio_A.detach()
        )  # its value is s, its gradient s * grad log pi
        free_A = -ratio_A * x.advantages_A
        bound_A = -ratio_A.clamp(1.0 - self.low, 1.0 + self.high) * x.advantages_A
        return torch.maximum(free_A, bound_A), measure(mean_A.exp(), log_ratio_A, bound_A > free_A)


@dataclass(frozen=True, slots=True)
class CISPO(Loss):
    """``-sg(clip(rho)) A log pi``: clips the weight, so every token keeps its gradient (MiniMax 2025)."""

    low: float = 1.0
    """The weight is at least ``1 - low``; 1 means no lower bound, as in the original."""
    high: float = 0.28
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)

    def __call__(self, x: LossInputs) -> Terms:
        """Return the weighted loss.

        Measured: ``ratio``, ``clip_fraction`` (share of weights that were clipped) and ``approx_kl``.
        """
        log_ratio_A = log_ratio(x)
        ratio_A = log_ratio_A.detach().exp()
        weight_A = ratio_A.clamp(1.0 - self.low, 1.0 + self.high)
        return -weight_A * x.advantages_A * x.logprobs_A, measure(ratio_A, log_ratio_A, weight_A != ratio_A)


@dataclass(frozen=True, slots=True)
class SAPO(Loss):
    """``-(4 / tau) sigmoid(tau (rho - 1)) A``: a soft gate replaces the clip (SAPO, 2025).

    ``tau`` is ``positive`` for positive advantages, else ``negative``, which by default makes a sharper gate.
    """

    positive: float = 1.0
    negative: float = 1.05
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        if not (self.positive > 0.0 and self.negative > 0.0):
            raise ConfigError(
                f"SAPO's temperatures must be above 0; found {self.positive} and {self.negative}; "
                "1.0 and 1.05 are usual"
            )

    def __call__(self, x: LossInputs) -> Terms:
        """Return the loss; measured: ``ratio``, ``gate`` (slope of the gate, 1 on-policy), ``approx_kl``."""
        import torch

        log_ratio_A = log_ratio(x)
        ratio_A = log_ratio_A.exp()
        tau_A = torch.where(x.advantages_A > 0, self.positive, self.negative).to(ratio_A.dtype)
        gate_A = torch.sigmoid(tau_A * (ratio_A - 1.0))
        measured = measure(ratio_A.detach(), log_ratio_A, torch.zeros_like(gate_A, dtype=torch.bool))
        return -gate_A * (4.0 / tau_A) * x.advantages_A, {
            **measured,
            "gate": (4.0 * gate_A * (1.0 - gate_A)).detach(),
        }


@dataclass(frozen=True, slots=True)
class GMPO(Loss):
    """One ratio per sequence: the geometric mean of its tokens' clipped ratios (Zhao et al. 2025).

    That is ``exp(mean_t clip(log rho_t, -c, c))`` with ``c = log_clip``. With ``one_sided`` a ratio is
    clipped only on the side on which PPO clips, as in published code. Aggregate with ``seq_mean_then_mean``.
    """

    log_clip: float = 0.4
    one_sided: bool = False
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        if not self.log_clip > 0.0:
            raise ConfigError(
                f"GMPO clips log-ratios at a positive number of nats; found {self.log_clip}; 0.4 is usual"
            )

    def __call__(self, x: LossInputs) -> Terms:
        """Return the loss; measured: ``ratio`` (that of the sequence), ``clip_fraction``, ``approx_kl``."""
        import torch

        log_ratio_A = log_ratio(x)
        clipped_A = log_ratio_A.abs() > self.log_clip
        if self.one_sided:
            clipped_A = clipped_A & (log_ratio_A * x.advantages_A > 0)
        cut_A = torch.where(clipped_A, log_ratio_A.clamp(-self.log_clip, self.log_clip), log_ratio_A)
        ratio_A = torch.exp(sequence_means(cut_A.detach(), x.sequence_A) + cut_A - cut_A.detach())
        return -ratio_A * x.advantages_A, measure(ratio_A.detach(), log_ratio_A, clipped_A)


@dataclass(frozen=True, slots=True)
class TOPR(Loss):
    """``-A log pi``; if ``A`` is not positive, it is weighted by ``sg(clip(pi(tau) / mu(tau), 0, 1))``.

    Tapered off-policy REINFORCE (Le Roux et al. 2025). The weight is one number for the whole sequence
    ``tau``, and ``mu`` is the distribution that sampled it. Successes are imitated whatever policy sampled
    them; failures lose their weight as the policy moves away from them. For long sequences the ratio of a
    failure goes to 0: that is the taper. The loss is meant for advantages of -1 and 1, without division by a
    deviation. Aggregate with ``seq_sum_then_mean``.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, x: LossInputs) -> Terms:
        """Return the tapered loss; measured: ``ratio``, ``taper`` (the weights), ``approx_kl``."""
        import torch

        log_ratio_A = log_ratio(x)
        behaviour_A = (x.logprobs_A - x.behaviour_logprobs_A).detach()
        sums_A = sequence_sums(behaviour_A, x.sequence_A)
        weight_A = torch.where(
            x.advantages_A > 0, torch.ones_like(sums_A), sums_A.clamp(-MAX_LOG_RATIO * 4, 0.0).exp()
        )
        measured = measure(
            log_ratio_A.detach().exp(), log_ratio_A, torch.zeros_like(weight_A, dtype=torch.bool)
        )
        return -weight_A * x.advantages_A * x.logprobs_A, {**measured, "taper": weight_A}


@dataclass(frozen=True, slots=True)
class MirrorDescent(Loss):
    """``-rho A + (rho log rho - rho + 1) / step``: not clipped, but held near the old policy.

    MDPO, Tomar et al. 2020. The mean of ``rho log rho - rho + 1`` over samples of the old policy is the
    divergence ``KL(pi || pi_old)``. Several optimiser steps on one batch approach
    ``pi ~ pi_old exp(step * A)``. ``step`` should be lowered from 1 in the course of training.
    """

    step: float = 1.0
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        if not self.step > 0.0:
            raise ConfigError(f"mirror descent needs a step above 0; found {self.step}")

    def __call__(self, x: LossInputs) -> Terms:
        """Return the penalised surrogate; measured: ``ratio``, ``clip_fraction`` (0), ``approx_kl``."""
        import torch

        log_ratio_A = log_ratio(x)
        ratio_A = log_ratio_A.exp()
        divergence_A = ratio_A * log_ratio_A - ratio_A + 1.0  # its mean under pi_old is KL(pi || pi_old)
        measured = measure(ratio_A.detach(), log_ratio_A, torch.zeros_like(ratio_A, dtype=torch.bool))
        return -ratio_A * x.advantages_A + divergence_A / self.step, measured


@dataclass(frozen=True, slots=True)
class CritiqueShaped(Loss):
    """``-f(pi) A`` with ``f = pi / (pi + gamma)``: for tokens that were sampled from another prompt.

    For example, for refinements after a critique (Critique-GRPO, Zhang et al. 2025). As the policy did not
    sample them from this prompt, there is no ratio to clip; the probability of tokens that the policy finds
    unlikely changes slowly.
    """

    gamma: float = 0.1
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, x: LossInputs) -> Terms:
        """Return the shaped loss; measured: ``shape`` (the value of ``f``)."""
        probability_A = x.logprobs_A.exp()
        shape_A = probability_A / (probability_A + self.gamma)
        return -shape_A * x.advantages_A, {"shape": shape_A.detach()}


def log_ratio(x: LossInputs) -> Tensor:
    """Return ``log pi - log pi_old`` of each token, cut at 20 nats on either side."""
    return (x.logprobs_A - x.old_logprobs_A).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def sequence_sums(values_A: Tensor, sequence_A: Tensor) -> Tensor:
    """Return for each token the sum of the values of its sequence."""
    if not len(values_A):
        return values_A
    return values_A.new_zeros(int(sequence_A.max()) + 1).index_add(0, sequence_A, values_A)[sequence_A]


def sequence_means(values_A: Tensor, sequence_A: Tensor) -> Tensor:
    """Return for each token the mean of the values of its sequence."""
    import torch

    return sequence_sums(values_A, sequence_A) / sequence_sums(torch.ones_like(values_A), sequence_A)


def measure(ratio_A: Tensor, log_ratio_A: Tensor, clipped_A: Tensor) -> dict[str, Tensor]:
    """Return what every loss with a ratio measures: ``ratio``, ``clip_fraction`` and ``approx_kl``.

    ``clip_fraction`` is 1 for a clipped token, else 0. ``approx_kl`` is the divergence from the old to the
    new policy, in nats.
    """
    import torch

    with torch.no_grad():
        return {
            "ratio": ratio_A,
            "clip_fraction": clipped_A.to(ratio_A.dtype),
            "approx_kl": torch.expm1(log_ratio_A) - log_ratio_A,
        }


def _check_range(low: float, high: float) -> None:
    if not (0.0 <= low <= 1.0 and high >= 0.0):
        raise ConfigError(f"the clip range needs 0 <= low <= 1 and high >= 0; found low={low}, high={high}")
