"""Return-to-go per turn, minus a baseline: REINFORCE whose action is the turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from agentrl.credit import Credit
from agentrl.credit.baselines import Baseline, NoBaseline, OthersStart
from agentrl.credit.group import DrGRPO
from agentrl.credit.modifiers import Modified, UnitDeviation, Whiten
from agentrl.credit.penalty import KLPenalty
from agentrl.credit.turns import checked, per_turn, returns_to_go
from agentrl.types import Credited, Need, ScoredGroup


@dataclass(frozen=True, slots=True)
class TurnReturn:
    """``A_n = G_n - b_n`` for every token of turn ``n``, with ``G_n`` the discounted return from turn ``n`` on (Williams 1992).

    An episode that a limit truncated has the return that it was paid: the limit belongs to the task.
    """

    gamma: float = 1.0
    """Discount per turn. Below 1, the weight ``gamma**n`` of turn ``n`` itself is left out, as everywhere in practice."""
    baseline: Baseline = field(default_factory=NoBaseline)
    needs: ClassVar[frozenset[Need]] = frozenset()

    @property
    def min_group(self) -> int:
        """The baseline's."""
        return self.baseline.min_group

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Credit each turn with what came after it."""
        credited = []
        for group in checked(groups):
            returns_GN = [returns_to_go(scored.rewards_N, gamma=self.gamma) for scored in group]
            pairs = zip(group, returns_GN, self.baseline(group, returns_GN), strict=True)
            credited.append(
                tuple(per_turn(scored, returns_N - baseline_N) for scored, returns_N, baseline_N in pairs)
            )
        return credited


def turn_rloo(*, gamma: float = 0.97) -> Modified:
    """Turn RLOO: the discounted return from a turn on, minus the mean start return of the others, over the batch's deviation.

    Unbiased up to the common scale, needs no critic, and cheap: one pass, one step.
    """
    return Modified(TurnReturn(gamma, OthersStart()), (UnitDeviation(),))


def reinforce_plus_plus(*, kl: float = 0.0) -> Modified:
    """REINFORCE++ (Hu 2025): undiscounted return-to-go, less ``kl`` times the divergence from the reference, whitened over the batch.

    The batch is the baseline, so it needs many tasks of like difficulty in an update.
    """
    credit: Credit = TurnReturn()
    return Modified(KLPenalty(credit, kl) if kl else credit, (Whiten(per="token"),))


def reinforce_plus_plus_baseline() -> Modified:
    """REINFORCE++ with baseline (Hu 2025): centred in the group, then whitened over the batch."""
    return Modified(DrGRPO(), (Whiten(per="token"),))
