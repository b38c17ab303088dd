"""Losses by origin: one for tokens that the policy sampled, another for tokens that were given."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

from agentrl.losses import MAX_LOG_RATIO, Loss, LossInputs, Terms
from agentrl.types import Need

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ByOrigin(Loss):
    """The loss ``own`` for tokens that the policy sampled from their context, ``given`` for given tokens.

    Each is multiplied by its weight. Use this to imitate demonstrations beside reinforcement (HPT) or the
    policy's own successes at another temperature (AEPO) with ``NegativeLogLikelihood``, to learn from
    refinements with ``CritiqueShaped`` (Critique-GRPO), or from the policy's privileged play with
    ``FromTeacher`` (pi-Distill). The aggregation counts the tokens of both kinds; ``own_weight`` and
    ``given_weight`` multiply only the losses.
    """

    own: Loss
    given: Loss
    own_weight: float = 1.0
    given_weight: float = 1.0
    handles_given: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[Need]:
        """The measurements that the two losses need."""
        return self.own.needs | self.given.needs

    @property
    def whole_groups(self) -> bool:
        """Whether one of the losses compares the sequences of a group with each other."""
        return self.own.whole_groups or self.given.whole_groups

    def __call__(self, x: LossInputs) -> Terms:
        """Return the loss.

        Measured: what each loss measures, averaged over its own tokens, and ``given``, the share of tokens
        that were given.
        """
        import torch

        given_A = torch.zeros_like(x.logprobs_A, dtype=torch.bool) if x.given_A is None else x.given_A
        loss_A = torch.zeros_like(x.logprobs_A)
        measured: dict[str, Tensor] = {}
        for loss, weight, mask_A in (
            (self.own, self.own_weight, ~given_A),
            (self.given, self.given_weight, given_A),
        ):
            if mask_A.any():
                part_P, found = loss(_only(x, mask_A))
                loss_A = loss_A.masked_scatter(mask_A, weight * part_P)
                for name, values_P in found.items():
                    measured[name] = torch.cat([measured[name], values_P]) if name in measured else values_P
        return loss_A, {**measured, "given": given_A.to(loss_A.dtype)}


@dataclass(frozen=True, slots=True)
class FromTeacher(Loss):
    """``-(pi / pi_T) A - beta * (log pi - log pi_T)``: the student's part of pi-Distill (2026).

    The policy learns to do without privileged information what it did with that information. ``pi_T`` is the
    distribution that sampled the tokens, from a prompt with the information; its log-probabilities are
    ``behaviour_logprobs_A``. The second term has the gradient of ``beta * KL(pi_T || pi)``. Both terms are
    per token and under the same aggregation.
    """

    beta: float = 0.25
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, x: LossInputs) -> Terms:
        """Return the loss; measured: ``teacher_ratio`` (``pi / pi_T``) and ``teacher_kl``.

        ``teacher_kl`` is ``log pi_T - log pi``, in nats.
        """
        log_ratio_A = (x.logprobs_A - x.behaviour_logprobs_A).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        ratio_A = log_ratio_A.exp()
        return -ratio_A * x.advantages_A - self.beta * log_ratio_A, {
            "teacher_ratio": ratio_A.detach(),
            "teacher_kl": -log_ratio_A.detach(),
        }


def _only(x: LossInputs, mask_A: Tensor) -> LossInputs:
    """Return the inputs for the tokens at which ``mask_A`` is true."""
    chosen = {
        field.name: tensor_A[mask_A]
        for field in fields(x)
        if (tensor_A := getattr(x, field.name)) is not None
    }
    return replace(x, **chosen)
