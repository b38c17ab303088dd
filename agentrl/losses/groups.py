"""Losses that distinguish the successes of a group from its failures, by the sign of their advantages.

Advantages must be one number per episode. ``NFT`` and ``OREAL`` need nothing more: all they need to know of
the group is in the advantages, so any division into micro-batches gives the same gradient. ``CoPG``,
``DisCO`` and ``KLBound`` compare the sequences of a group under the current policy, so they ask for whole
groups, which must then fit a micro-batch. Their values are those of the published objectives under the
aggregation that each docstring names, and each token's gradient is its sequence's coefficient times
``grad log pi``. Sequences without action tokens are left out of the comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from agentrl.errors import ConfigError
from agentrl.losses import Aggregation, Loss, LossInputs, Terms
from agentrl.losses.aggregation import token_mean
from agentrl.losses.ratios import log_ratio, measure
from agentrl.types import Need

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class NFT(Loss):
    """Negative-aware fine-tuning: imitates successes, and what failures imply about successes.

    Chen et al. 2025.

    The old policy is a mixture of a policy of successes and a policy of failures, so failures imply a policy
    of successes too. With ``p`` the group's share of successes and ``rho = pi / pi_old`` per token, the loss
    is ``-w log rho`` for a success, and ``-w log max((1 - p rho) / (1 - p), floor)`` for a failure, whose
    gradient passes through the floor. ``p`` is computed from the advantages, which must be those of
    ``DrGRPO`` on returns of 0 and 1: ``1 - p`` and ``-p``. It is kept ``bound`` away from 0 and 1; a group of
    one kind has advantages of 0 and no loss. ``w = 1 - p``, or ``sqrt((1 - p) / p)`` if ``normalised``:
    on-policy the gradient is that of Dr.GRPO, or of GRPO with the population's deviation. Published with a
    token sum over a constant, ``SeqSumOver``.
    """

    floor: float = 1.0
    bound: float = 0.02
    normalised: bool = False
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        if not (0.0 < self.floor <= 1.0 and 0.0 < self.bound < 0.5):
            raise ConfigError(
                "NFT needs 0 < floor <= 1 and 0 < bound < 0.5; "
                f"found floor={self.floor}, bound={self.bound}; 1 and 0.02 are usual"
            )

    def __call__(self, x: LossInputs) -> Terms:
        """Return the loss; measured: ``ratio``, ``clip_fraction`` (tokens at the floor), ``approx_kl``.

        Raises:
            ConfigError: the advantages are not those of ``DrGRPO`` on returns of 0 and 1.
        """
        import torch

        if bool((x.advantages_A.abs() >= 1.0).any()):
            raise ConfigError(
                "NFT computes a group's share of successes from advantages between -1 and 1; "
                f"found {float(x.advantages_A[x.advantages_A.abs().argmax()]):g}; "
                "use DrGRPO and a reward that pays an episode 0 or 1 in total"
            )
        log_ratio_A = log_ratio(x)
        good_A = x.advantages_A > 0
        share_A = torch.where(good_A, 1.0 - x.advantages_A, -x.advantages_A).clamp(
            self.bound, 1.0 - self.bound
        )
        implied_A = (1.0 - share_A * log_ratio_A.exp()) / (1.0 - share_A)
        below_A = implied_A.detach() < self.floor
        floored_A = implied_A + (implied_A.clamp(min=self.floor) - implied_A).detach()
        weight_A = ((1.0 - share_A) / share_A).sqrt() if self.normalised else 1.0 - share_A
        loss_A = -weight_A * torch.where(good_A, log_ratio_A, floored_A.log())
        informative_A = x.advantages_A != 0
        measured = measure(log_ratio_A.detach().exp(), log_ratio_A, below_A & informative_A & ~good_A)
        return torch.where(informative_A, loss_A, torch.zeros_like(loss_A)), measured


@dataclass(frozen=True, slots=True)
class OREAL(Loss):
    """``-positive A log pi`` for successes, ``-negative A exp(log pi - sg log pi)`` for failures.

    Lyu et al. 2025; ``A`` is the advantage, ``sg`` stops the gradient. Both terms have the gradient of a
    weighted ``-A log pi``; imitating successes is right whatever policy sampled them. Use the advantages of
    ``RLOO``; ``Attribution`` adds the paper's weights of single steps, and ``KeepVaried(2)`` keeps one
    success and one failure of each group, as published. It was published with ``KL(0.01)`` and a mean over
    tokens.
    """

    positive: float = 1.0
    negative: float = 0.5
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        if not (self.positive >= 0.0 and self.negative >= 0.0):
            raise ConfigError(
                f"OREAL's weights must not be negative; found {self.positive} and {self.negative}; "
                "1.0 and 0.5 are usual"
            )

    def __call__(self, x: LossInputs) -> Terms:
        """Return the weighted loss; measured: ``nll`` (of successes, unweighted; other tokens count as 0)."""
        import torch

        good_A = x.advantages_A > 0
        imitated_A = self.positive * x.logprobs_A
        unlearned_A = self.negative * torch.exp(x.logprobs_A - x.logprobs_A.detach())
        loss_A = -x.advantages_A * torch.where(good_A, imitated_A, unlearned_A)
        return loss_A, {"nll": torch.where(good_A, -x.logprobs_A.detach(), torch.zeros_like(loss_A))}


@dataclass(frozen=True, slots=True)
class CoPG(Loss):
    """Contrastive policy gradient: makes all regularised returns of a group equal.

    Flet-Berliac et al. 2024; formula from descriptions that agree. Any policy may have sampled the episodes.
    The loss of a group of ``k`` episodes is ``1 / (k - 1) * sum over pairs of (R_i - R_j)**2 / (2 beta)``
    with ``R_i = A_i - beta * sum_t log(pi / pi_ref)``. The coefficient of sequence ``i`` is the mean of
    ``R_i - R_j`` over the other sequences: with ``pi = pi_ref`` that is ``RLOO``. No importance weights are
    needed, and only differences of advantages count: use those of ``DrGRPO``. Aggregate with
    ``seq_sum_then_mean``. A group of one has no loss.
    """

    beta: float = 0.1
    needs: ClassVar[frozenset[Need]] = frozenset({"ref_logprobs"})
    whole_groups: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.beta > 0.0:
            raise ConfigError(f"CoPG needs a beta above 0; found {self.beta}; 0.01 to 0.1 is usual")

    def __call__(self, x: LossInputs) -> Terms:
        """Return the loss.

        Measured: ``pair_gap`` (the group's ``sum over pairs of (R_i - R_j)**2 / (k - 1)``) and ``ref_kl``
        (``log pi - log pi_ref``, nats).
        """
        assert x.ref_logprobs_A is not None, "ref_logprobs were not measured"
        groups = _Groups.of(x)
        log_ratio_A = x.logprobs_A - x.ref_logprobs_A
        returns_S = groups.sequence_means(x.advantages_A) - self.beta * groups.sequence_sums(
            log_ratio_A.detach()
        )
        off_S = returns_S - groups.group_sums(returns_S) / groups.sizes_S
        others_S = (groups.sizes_S - 1.0).clamp(min=1.0)
        coefficient_S = off_S * groups.sizes_S / others_S
        gap_S = groups.group_sums(off_S.square()) * groups.sizes_S / others_S
        value_S = gap_S / (2.0 * self.beta * groups.sizes_S * groups.lengths_S)
        loss_A = _with_gradient(value_S[groups.sequence_A], -coefficient_S[groups.sequence_A] * x.logprobs_A)
        return loss_A, {"pair_gap": gap_S[groups.sequence_A], "ref_kl": log_ratio_A.detach()}


@dataclass(frozen=True, slots=True)
class DisCO(Loss):
    """Discriminative constrained optimisation: scores successes above failures (Li et al. 2025).

    All groups weigh the same, however hard. The loss of a group is
    ``-(mean(s+) - tau log mean exp(s- / tau))``, or with ``tau`` None ``-(mean(s+) - mean(s-))``; ``s`` is a
    sequence's mean log-probability, or with ``ratios`` its mean ``pi / pi_old``; ``s+`` are the scores of
    successes and ``s-`` those of failures. A small ``tau`` concentrates on the likeliest failures. Only the
    sign of a sequence's advantage counts. Groups without both successes and failures have no loss. Aggregate
    with ``seq_mean_then_mean``, and keep the policy near the old one with the regulariser ``KLBound``.
    Published code uses the loss without ``tau`` for the variant with ratios; here they are independent.
    """

    tau: float | None = 10.0
    ratios: bool = False
    needs: ClassVar[frozenset[Need]] = frozenset()
    whole_groups: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.tau is not None and not self.tau > 0.0:
            raise ConfigError(
                "DisCO needs a tau above 0, or None for the plain difference of means; "
                f"found {self.tau}; 10 is usual"
            )

    def __call__(self, x: LossInputs) -> Terms:
        """Return the loss.

        Measured: ``margin`` (the negative loss of the group), ``one_sided`` (share of tokens in groups
        without both successes and failures) and ``approx_kl``.
        """
        import torch

        groups = _Groups.of(x)
        log_ratio_A = log_ratio(x)
        score_A = log_ratio_A.exp() if self.ratios else x.logprobs_A
        score_S, advantage_S = groups.sequence_means(score_A.detach()), groups.sequence_means(x.advantages_A)
        good_S, bad_S = (advantage_S > 0).to(score_S.dtype), (advantage_S < 0).to(score_S.dtype)
        num_good_S, num_bad_S = groups.group_sums(good_S), groups.group_sums(bad_S)
        both_S = ((num_good_S > 0) & (num_bad_S > 0)).to(score_S.dtype)
        good_share_S = good_S / num_good_S.clamp(min=1.0)
        if self.tau is None:
            bad_share_S = bad_S / num_bad_S.clamp(min=1.0)
            worst_S = groups.group_sums(bad_share_S * score_S)
        else:
            top_S = groups.group_maxima(torch.where(bad_S > 0, score_S / self.tau, -torch.inf)).nan_to_num(
                neginf=0.0
            )
            tilted_S = torch.where(
                bad_S > 0, torch.exp(score_S / self.tau - top_S), torch.zeros_like(score_S)
            )
            total_S = groups.group_sums(tilted_S)
            bad_share_S = tilted_S / torch.where(num_bad_S > 0, total_S, 1.0)
            worst_S = self.tau * (
                top_S + torch.where(num_bad_S > 0, total_S / num_bad_S.clamp(min=1.0), 1.0).log()
            )
        margin_S = both_S * (groups.group_sums(good_share_S * score_S) - worst_S)
        coefficient_S = both_S * groups.sizes_S * (good_share_S - bad_share_S)
        loss_A = _with_gradient(-margin_S[groups.sequence_A], -coefficient_S[groups.sequence_A] * score_A)
        with torch.no_grad():
            measured = {"margin": margin_S[groups.sequence_A], "one_sided": 1.0 - both_S[groups.sequence_A]}
            return loss_A, {**measured, "approx_kl": torch.expm1(log_ratio_A) - log_ratio_A}


@dataclass(frozen=True, slots=True)
class KLBound(Loss):
    """DisCO's constraint: ``[beta (KL - delta)]_+ * KL`` of each group, the bracket without gradient.

    The penalty is 0 while ``KL <= delta``. ``KL`` is the divergence from the old policy, the mean of
    ``rho - 1 - log rho`` over the group's tokens, with ``rho = pi / pi_old``. Published code takes the mean
    over a whole micro-batch; a bound for each group is stricter, and does not depend on the division into
    micro-batches. The aggregation weighs groups by their tokens.
    """

    beta: float = 1e3
    delta: float = 1e-4
    aggregate: ClassVar[Aggregation] = staticmethod(token_mean)
    needs: ClassVar[frozenset[Need]] = frozenset()
    whole_groups: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.beta > 0.0 and self.delta >= 0.0):
            raise ConfigError(
                "KLBound needs a beta above 0 and a delta of at least 0; "
                f"found {self.beta} and {self.delta}; 1000 and 0.0001 are usual"
            )

    def __call__(self, x: LossInputs) -> Terms:
        """Return the penalty; measured: ``bound_exceeded`` (share of tokens in groups beyond ``delta``)."""
        import torch

        groups = _Groups.of(x)
        log_ratio_A = log_ratio(x)
        divergence_A = torch.expm1(log_ratio_A) - log_ratio_A
        mean_S = groups.group_sums(groups.sequence_sums(divergence_A.detach())) / groups.group_sums(
            groups.lengths_S
        )
        force_S = (self.beta * (mean_S - self.delta)).clamp(min=0.0)
        return force_S[groups.sequence_A] * divergence_A, {
            "bound_exceeded": (force_S > 0)[groups.sequence_A].to(divergence_A.dtype)
        }


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """The sequences of a micro-batch that have action tokens, and their groups.

    The suffix ``_S`` means one number per sequence.
    """

    sequence_A: Tensor
    group_S: Tensor
    lengths_S: Tensor
    sizes_S: Tensor
    """For each sequence, the number of sequences in its group."""

    @classmethod
    def of(cls, x: LossInputs) -> _Groups:
        import torch

        assert x.group_A is not None, "groups are not numbered"
        kept, sequence_A = torch.unique(x.sequence_A, return_inverse=True)
        group_S = x.group_A.new_zeros(len(kept)).scatter(0, sequence_A, x.group_A)
        group_S = torch.unique(group_S, return_inverse=True)[1]
        ones_A = torch.ones_like(x.advantages_A)
        lengths_S = ones_A.new_zeros(len(kept)).index_add(0, sequence_A, ones_A)
        sizes_S = torch.bincount(group_S)[group_S].to(lengths_S.dtype)
        return cls(sequence_A, group_S, lengths_S, sizes_S)

    def sequence_sums(self, values_A: Tensor) -> Tensor:
        """Return for each sequence the sum of the values of its tokens."""
        return values_A.new_zeros(len(self.lengths_S)).index_add(0, self.sequence_A, values_A)

    def sequence_means(self, values_A: Tensor) -> Tensor:
        """Return for each sequence the mean of the values of its tokens."""
        return self.sequence_sums(values_A) / self.lengths_S

    def group_sums(self, values_S: Tensor) -> Tensor:
        """Return for each sequence the sum of the values of all sequences in its group."""
        return values_S.new_zeros(len(values_S)).index_add(0, self.group_S, values_S)[self.group_S]

    def group_maxima(self, values_S: Tensor) -> Tensor:
        """Return for each sequence the largest value among the sequences of its group."""
        import torch

        return values_S.new_full((len(values_S),), -torch.inf).scatter_reduce(
            0, self.group_S, values_S, "amax"
        )[self.group_S]


def _with_gradient(value_A: Tensor, slope_A: Tensor) -> Tensor:
    """Return ``value_A`` with the gradient of ``slope_A``."""
    return value_A.detach() + slope_A - slope_A.detach()
