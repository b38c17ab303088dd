"""Regularisers towards another policy (the reference, a teacher) or towards a target entropy.

All are per-token terms with their own coefficient, estimated from sampled tokens. ``pi`` is the policy that
is trained, and ``pi_0`` the policy that sampled the tokens. ``ref_logprobs`` are the log-probabilities of the
reference that the recipe measures: the initial model, or a teacher.
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


def forward_kl(log_ratio_A: Tensor) -> Tensor:
    """Return ``u - 1 - log u`` for ``u = pi / pi_0``.

    The mean over samples of ``pi_0`` is ``KL(pi_0 || pi)``.
    """
    import torch

    return torch.expm1(log_ratio_A) - log_ratio_A


def jensen_shannon(log_ratio_A: Tensor) -> Tensor:
    """Return ``u log u - (u + 1) log((u + 1) / 2)`` for ``u = pi / pi_0``.

    This is the generator of the Jensen-Shannon divergence: the mean over samples of ``pi_0`` measures it.
    """
    import torch

    ratio_A = log_ratio_A.exp()
    return ratio_A * log_ratio_A - (ratio_A + 1.0) * torch.log((ratio_A + 1.0) / 2.0)


def chi_squared(log_ratio_A: Tensor) -> Tensor:
    """Return ``(u - 1)**2`` for ``u = pi / pi_0``; its mean over samples of ``pi_0`` is chi squared."""
    import torch

    return torch.expm1(log_ratio_A).square()


@dataclass(frozen=True, slots=True)
class AlphaDivergence:
    """The alpha divergence, by its generator ``(u**(1 - a) - (1 - a) u - a) / (a (a - 1))``.

    ``u = pi / pi_0``, and tokens are samples of ``pi_0``.
    """

    a: float = 0.2

    def __post_init__(self) -> None:
        if self.a in (0.0, 1.0):
            raise ConfigError(
                f"the alpha divergence is not defined at {self.a:g}; "
                "its limits there are the two KL divergences"
            )

    def __call__(self, log_ratio_A: Tensor) -> Tensor:
        """Return the generator's value at each token."""
        import torch

        ratio_A = log_ratio_A.exp()
        return (torch.exp((1.0 - self.a) * log_ratio_A) - (1.0 - self.a) * ratio_A - self.a) / (
            self.a * (self.a - 1.0)
        )


@dataclass(frozen=True, slots=True)
class Rehearsal(Loss):
    """``coef * generator(log pi - log pi_0)`` on rows that the reference ``pi_0`` itself sampled (DPH-RL).

    This loss keeps the policy from losing what the reference could do. No live reference is needed: the rows
    carry the log-probabilities with which they were sampled. Published coefficients are 0.01 to 0.05 for
    ``forward_kl`` and 0.05 to 0.2 for ``jensen_shannon``.
    """

    coef: float = 0.02
    generator: Callable[[Tensor], Tensor] = forward_kl
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, x: LossInputs) -> Terms:
        """Return the penalty; measured: ``kept_divergence`` (the generator's value, without ``coef``)."""
        log_ratio_A = (x.logprobs_A - x.behaviour_logprobs_A).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        divergence_A = self.generator(log_ratio_A)
        return self.coef * divergence_A, {"kept_divergence": divergence_A.detach()}


@dataclass(frozen=True, slots=True)
class TeacherKL(Loss):
    """``coef * (log pi_teacher - log pi)**2 / 2`` on the policy's own tokens (KDRL, Xu et al. 2025).

    The estimator is k2 (see ``losses.kl``), whose gradient is that of the reverse KL divergence,
    ``KL(pi || pi_teacher)``. ``only_failures`` leaves out tokens with
    a positive advantage, as successes need no teacher.
    """

    coef: float = 5e-3
    only_failures: bool = False
    needs: ClassVar[frozenset[Need]] = frozenset({"ref_logprobs"})

    def __call__(self, x: LossInputs) -> Terms:
        """Return the penalty; measured: ``teacher_kl`` (``log pi - log pi_teacher``, nats per token)."""
        import torch

        assert x.ref_logprobs_A is not None, "ref_logprobs were not measured"
        log_ratio_A = (x.logprobs_A - x.ref_logprobs_A).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        term_A = log_ratio_A.square() / 2.0
        if self.only_failures:
            term_A = torch.where(x.advantages_A > 0, torch.zeros_like(term_A), term_A)
        return self.coef * term_A, {"teacher_kl": log_ratio_A.detach()}


@dataclass(frozen=True, slots=True)
class EntropyTarget(Loss):
    """``coef * max(|H - target| - slack, 0)`` per token, with the entropy ``H`` in nats.

    The loss pulls the entropy towards ``target`` from either side; within ``slack`` of it there is no
    penalty.
    """

    target: float
    coef: float = 0.001
    slack: float = 0.0
    needs: ClassVar[frozenset[Need]] = frozenset({"entropies"})

    def __call__(self, x: LossInputs) -> Terms:
        """Return the penalty; measured: ``entropy`` (nats per token)."""
        assert x.entropies_A is not None, "entropies were not measured"
        return self.coef * ((x.entropies_A - self.target).abs() - self.slack).clamp(min=0.0), {
            "entropy": x.entropies_A.detach()
        }
