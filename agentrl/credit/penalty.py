"""KL inside the reward: a turn's reward minus its divergence from the reference model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from agentrl.credit import Credit
from agentrl.credit.turns import Array, checked
from agentrl.types import Credited, Need, Scored, ScoredGroup, floats


@dataclass(frozen=True, slots=True)
class KLPenalty(Credit):
    """Adds ``-coef * sum_t (log pi_old - log pi_ref)`` over each turn's tokens to the rewards.

    The rule ``credit`` sees what is added as the component ``kl``. ``log pi_old - log pi_ref`` is the
    estimator k1 of the divergence, in nats. The k1 estimator belongs here: as a loss its expected gradient is
    zero, while in the return it makes the policy gradient that of the expected return minus ``coef`` times
    the divergence (Ziegler et al. 2019, eq. 2). Log-ratios are cut at 20 nats on either side. ``pi_old`` is
    the learner at the start of the update if ``old_logprobs`` were measured, else the distribution that
    sampled.
    """

    credit: Credit
    coef: float = 0.001

    @property
    def needs(self) -> frozenset[Need]:
        """The measurements that ``credit`` needs, and the reference's log-probabilities."""
        return self.credit.needs | {"ref_logprobs"}

    @property
    def min_group(self) -> int:
        """Same as that of ``credit``."""
        return self.credit.min_group

    @property
    def handles_given(self) -> bool:
        """Same as that of ``credit``."""
        return self.credit.handles_given

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Return the credit that ``credit`` assigns for the penalised rewards."""
        return self.credit(
            [tuple(self._penalised(scored) for scored in group) for group in checked(groups, self.needs)]
        )

    def _penalised(self, scored: Scored) -> Scored:
        assert scored.measured.ref_logprobs is not None
        turns = scored.trajectory.turns
        sampled = (
            [turn.action.logprobs for turn in turns]
            if scored.measured.old_logprobs is None
            else [scored.measured.old_logprobs]
        )
        old_T: Array = np.concatenate([np.zeros(0), *sampled])
        ends = np.cumsum(scored.num_tokens_N)
        until_T = np.concatenate(
            [np.zeros(1), np.cumsum(np.clip(old_T - scored.measured.ref_logprobs, -20.0, 20.0))]
        )
        kl_N = until_T[ends] - until_T[ends - scored.num_tokens_N]
        return replace(scored, ledger={**scored.ledger, "kl": floats(-self.coef * kl_N)})
