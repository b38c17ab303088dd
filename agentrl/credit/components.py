"""Credit that keeps the ledger's components apart: each is compared with its own kind before they are added.

If rewards are added first and their sums are compared, the component with the largest spread dominates, and
different outcomes can have the same sum. All rules here ask for components by name, so the ledger must keep
them; it is an error if no reward pays into a component.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agentrl.credit import Credit
from agentrl.credit.group import GroupCredit
from agentrl.credit.turns import Array, checked, per_episode, per_turn, returns_to_go, standardised
from agentrl.errors import ConfigError
from agentrl.types import Credited, Need, Scored, ScoredGroup


@dataclass(frozen=True, slots=True)
class GDPO(Credit):
    """``A = sum_c weight_c * (r_c - mean_c) / (std_c + eps)`` over the group, then whitened over the batch.

    This rule is GDPO. ``r_c`` is what component ``c`` paid the episode. ``weights`` maps the components to
    their weights; with a single component the rule is GRPO and nothing is whitened. A component that is
    constant in a group contributes exactly 0. Whitening is over episodes: ``(A - mean) / (std + eps)``.
    """

    weights: Mapping[str, float]
    eps: float = 1e-4
    needs: ClassVar[frozenset[Need]] = frozenset()
    min_group: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not self.weights:
            raise ConfigError(
                "GDPO needs the weight of each component of the ledger that it is to compare; found none"
            )

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Credit each episode with the weighted sum of its components' standard scores."""
        sums = [self._sum(group) for group in checked(groups)]
        if len(self.weights) > 1 and sums:
            flat = np.concatenate(sums)
            scale = (float(flat.std(ddof=1)) if len(flat) > 1 else 0.0) + self.eps
            sums = [(sums_G - flat.mean()) / scale for sums_G in sums]
        return [per_episode(group, sums_G) for group, sums_G in zip(groups, sums, strict=True)]

    def _sum(self, group: ScoredGroup) -> Array:
        total_G = np.zeros(len(group))
        for name, weight in self.weights.items():
            totals_G = np.array([component(scored, name).sum() for scored in group])
            total_G += weight * standardised(totals_G, ddof=1, eps=self.eps)
        return total_G


@dataclass(frozen=True, slots=True)
class MTGRPO(GroupCredit):
    """``A_n = A_outcome + alpha * sum_{m >= n} A_turn(m)`` (Zeng et al. 2025, MT-GRPO).

    The paper has one tool call per episode; here there may be any number. ``A_outcome`` is the standard score
    of the episode's payment from ``outcome``. ``A_turn(m)`` is the standard score, among the
    members that reached turn ``m``, of what ``process`` paid for that turn. ``present`` names a signal that
    is positive on turns that can have such a reward, for example on tool calls; other turns have none. An
    episode without any such turn is credited with the standard score of its whole return, as published.

    Comparing turns by their index is biased if episodes differ in length: an episode is charged the mean
    process reward of its group for each turn that it takes. ``TurnReturn(baseline=OthersAtTurn())`` has no
    such charge.
    """

    process: str
    outcome: str = "outcome"
    alpha: float = 1.0
    present: str = ""
    eps: float = 1e-4

    def credit_group(self, group: ScoredGroup) -> tuple[Credited, ...]:
        """Credit each turn with the outcome's score and those of the rewarded turns from this turn on."""
        rewarded_GN = [self._rewarded(scored) for scored in group]
        steps_GN = [component(scored, self.process) for scored in group]
        outcomes_G = self._compare([component(scored, self.outcome).sum() for scored in group])
        wholes_G = self._compare(
            [
                component(scored, self.outcome).sum() + steps_N.sum()
                for scored, steps_N in zip(group, steps_GN, strict=True)
            ]
        )
        turns_GN = [np.zeros(len(rewarded_N)) for rewarded_N in rewarded_GN]
        for n in range(max(map(len, rewarded_GN), default=0)):
            members = [i for i, rewarded_N in enumerate(rewarded_GN) if n < len(rewarded_N) and rewarded_N[n]]
            scores = self._compare([steps_GN[i][n] for i in members])
            for i, score in zip(members, scores, strict=True):
                turns_GN[i][n] = score
        credited = []
        for scored, rewarded_N, turns_N, outcome, whole in zip(
            group, rewarded_GN, turns_GN, outcomes_G, wholes_G, strict=True
        ):
            paid_N = (
                outcome + self.alpha * returns_to_go(turns_N, gamma=1.0)
                if any(rewarded_N)
                else np.full(len(turns_N), whole)
            )
            credited.append(per_turn(scored, paid_N))
        return tuple(credited)

    def _rewarded(self, scored: Scored) -> list[bool]:
        if not self.present:
            return [True] * len(scored.trajectory.turns)
        return [bool(value > 0) for value in scored.trajectory.signal(self.present)]

    def _compare(self, values: Sequence[float]) -> Array:
        return standardised(np.array(values, dtype=np.float64), ddof=1, eps=self.eps)


@dataclass(frozen=True, slots=True)
class EpisodeAndSteps(GroupCredit):
    """``A_n = A_outcome + alpha * A_process(n)``: the combination used by iStar (Liu et al. 2025).

    ``A_outcome`` compares what the episode was paid besides ``process`` with its group. ``A_process(n)``
    compares the process reward of turn ``n`` with those of *all turns of the group*, so the scale of step
    rewards does not matter. Published code takes the statistics from the first turn of each episode only;
    here every turn counts.
    """

    process: str = "implicit"
    alpha: float = 1.0
    eps: float = 1e-6

    def credit_group(self, group: ScoredGroup) -> tuple[Credited, ...]:
        """Credit each turn with its episode's standard score plus ``alpha`` times its own."""
        steps_GN = [component(scored, self.process) for scored in group]
        episodes_G = standardised(
            np.array(
                [(scored.rewards_N - steps_N).sum() for scored, steps_N in zip(group, steps_GN, strict=True)]
            ),
            ddof=1,
            eps=self.eps,
        )
        flat = standardised(np.concatenate([np.zeros(0), *steps_GN]), ddof=1, eps=self.eps)
        parts = np.split(flat, np.cumsum([len(steps_N) for steps_N in steps_GN])[:-1])
        rows = zip(group, episodes_G, parts, strict=True)
        return tuple(per_turn(scored, episode + self.alpha * part_N) for scored, episode, part_N in rows)


def component(scored: Scored, name: str) -> Array:
    """Return what the component ``name`` paid, one float64 number per turn.

    Raises:
        ConfigError: the ledger has no component of that name.
    """
    if name not in scored.ledger:
        raise ConfigError(
            f"credit asks for the component {name!r}, which nothing pays; "
            f"the ledger has {', '.join(sorted(scored.ledger))}"
        )
    return np.asarray(scored.ledger[name], dtype=np.float64)
