"""Return-to-go per turn, minus a baseline: REINFORCE with the turn as the action."""

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
class TurnReturn(Credit):
    """``A_n = G_n - b_n`` for every token of turn ``n`` (Williams 1992).

    ``G_n`` is the discounted return from turn ``n`` on, and ``b_n`` what ``baseline`` returns for the turn.
    An episode that a limit truncated has the return that it was paid: the limit belongs to the task.
    """

    gamma: float = 1.0
    """Discount per turn. Below 1, the weight ``gamma**n`` of turn ``n`` itself is left out, as is usual in
    practice."""
    baseline: Baseline = field(default_factory=NoBaseline)
    needs: ClassVar[frozenset[Need]] = frozenset()

    @property
    def min_group(self) -> int:
        """Same as that of ``baseline``."""
        return self.baseline.min_group

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Credit each turn with its return-to-go, which includes its own reward, minus the baseline."""
        credited = []
        for group in checked(groups):
            returns_GN = [returns_to_go(scored.rewards_N, gamma=self.gamma) for scored in group]
            pairs = zip(group, returns_GN, self.baseline(group, returns_GN), strict=True)
            credited.append(
                tuple(per_turn(scored, returns_N - baseline_N) for scored, returns_N, baseline_N in pairs)
            )
        return credited


def turn_rloo(*, gamma: float = 0.97) -> Modified:
    """Return turn RLOO: the return from a turn on minus the others' mean return from the start.

    The others are the other members of the group. Returns are discounted per turn, and the difference is
    divided by its standard deviation over the batch. The rule is unbiased up to a common scale, and cheap: it
    needs no critic, one forward pass and one optimiser step.
    """
    return Modified(TurnReturn(gamma, OthersStart()), (UnitDeviation(),))


def reinforce_plus_plus(*, kl: float = 0.0) -> Modified:
    """Return REINFORCE++ (Hu 2025): undiscounted return-to-go, whitened over the batch.

    ``kl`` times the divergence from the reference is subtracted from the rewards. The batch is the baseline,
    so an update needs many tasks of similar difficulty.
    """
    credit: Credit = TurnReturn()
    return Modified(KLPenalty(credit, kl) if kl else credit, (Whiten(per="token"),))


def reinforce_plus_plus_baseline() -> Modified:
    """Return REINFORCE++ with baseline (Hu 2025): returns centred per group, then whitened over the batch."""
    return Modified(DrGRPO(), (Whiten(per="token"),))
