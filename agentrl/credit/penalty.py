"""KL inside the reward: what a turn is paid, less its divergence from the reference model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from agentrl.credit import Credit
from agentrl.credit.turns import Array, checked
from agentrl.types import Credited, Need, Scored, ScoredGroup, floats


@dataclass(frozen=True, slots=True)
class KLPenalty:
    """Pay ``credit`` with the ledger plus ``-coef * sum_t (log pi_old - log pi_ref)`` of each turn's tokens (k1, nats).

    Here the k1 estimator belongs: its expected gradient as a loss is zero, while in the return it makes the policy gradient that of the
    expected return minus ``coef`` times the divergence (Ziegler et al. 2019, eq. 2). Log-ratios are cut at 20.
    """

    credit: Credit
    coef: float = 0.001

    @property
    def needs(self) -> frozenset[Need]:
        """What the rule needs, and the reference."""
        return self.credit.needs | {"ref_logprobs"}

    @property
    def min_group(self) -> int:
        """The rule's."""
        return self.credit.min_group

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Assign credit for the penalised rewards."""
        return self.credit(
            [tuple(self._penalised(scored) for scored in group) for group in checked(groups, self.needs)]
        )

    def _penalised(self, scored: Scored) -> Scored:
        assert scored.ref_logprobs_T is not None
        turns = scored.trajectory.turns
        sampled = (
            [turn.action.logprobs for turn in turns]
            if scored.old_logprobs_T is None
            else [scored.old_logprobs_T]
        )
        old_T: Array = np.concatenate([np.zeros(0), *sampled])
        ends = np.cumsum(scored.num_tokens_N)
        until_T = np.concatenate(
            [np.zeros(1), np.cumsum(np.clip(old_T - scored.ref_logprobs_T, -20.0, 20.0))]
        )
        kl_N = until_T[ends] - until_T[ends - scored.num_tokens_N]
        return replace(scored, ledger={**scored.ledger, "kl": floats(-self.coef * kl_N)})
