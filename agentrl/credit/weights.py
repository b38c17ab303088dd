"""Weights on finished advantages: how much a turn or a token counts, whatever it was worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from agentrl.credit.components import component
from agentrl.credit.turns import Array, checked, spread
from agentrl.errors import ConfigError
from agentrl.types import Credited, Need, Scored, ScoredGroup, floats


@dataclass(frozen=True, slots=True)
class Duration:
    """Weigh each turn with its duration over the batch's mean (Yang et al. 2025, "RL for machine-learning-engineering agents").

    Where actors play on their own and whoever is done is trained on, quick actions are over-represented in proportion to one over their
    duration; this takes it out. Episodes that are waited for, as with ``max_staleness = 0``, have no such bias: do not use it there.

    ``signal`` names a measured duration; empty: the wall clock of acting and stepping, which does not repeat from run to run. Weights are
    at most ``max_weight``; a duration of 0 counts as ``min_s``.
    """

    signal: str = ""
    max_weight: float = 10.0
    min_s: float = 1e-6
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return the weighted advantages."""
        taken = [[self._durations(scored) for scored in group] for group in groups]
        flat = np.concatenate([np.zeros(0), *(seconds_N for group in taken for seconds_N in group)])
        mean = float(flat.mean()) if len(flat) else 1.0
        weights = iter(
            [np.minimum(seconds_N / mean, self.max_weight) for group in taken for seconds_N in group]
        )
        return _weighted(groups, credited, lambda scored: spread(next(weights), scored.num_tokens_N))

    def _durations(self, scored: Scored) -> Array:
        turns = scored.trajectory.turns
        seconds = (
            [turn.duration_s for turn in turns]
            if not self.signal
            else [float(v) for v in scored.trajectory.signal(self.signal)]
        )
        return np.maximum(np.array(seconds, dtype=np.float64), self.min_s)


@dataclass(frozen=True, slots=True)
class ConflictTokens:
    """Take the conflict out of what successes and failures of a group have in common (GTPO, Simoni et al. 2025).

    A conflict token stands at the same place with the same value in an episode with a positive advantage and in one with a negative, in an
    unbroken row of such from the beginning or from the end. It counts ``up`` times where it was good and ``down`` times where it was bad:
    failures do not unlearn what successes also say. Places are counted over the action tokens of the whole episode.
    """

    up: float = 2.0
    down: float = 0.0
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return the weighted advantages; a group with one kind of episode only is left alone."""
        weights = iter(
            [
                weight
                for group, credit in zip(groups, credited, strict=True)
                for weight in self._weights(group, credit)
            ]
        )
        return _weighted(groups, credited, lambda scored: next(weights))

    def _weights(self, group: ScoredGroup, credit: Sequence[Credited]) -> list[Array]:
        tokens = [
            np.concatenate([np.zeros(0, np.int32), *(turn.action.tokens for turn in one.trajectory.turns)])
            for one in group
        ]
        signs = [float(np.sign(one.advantages_T.sum(dtype=np.float64))) for one in credit]
        weights = [np.ones(len(tokens_T)) for tokens_T in tokens]
        for i, sign in enumerate(signs):
            for j, other in enumerate(signs):
                if sign * other < 0:
                    shared_T = _common_ends(tokens[i], tokens[j])
                    weights[i][shared_T] = self.up if sign > 0 else self.down
        return weights


@dataclass(frozen=True, slots=True)
class KeepVaried:
    """Of each group keep the ``num`` episodes whose advantages vary most, the best and the worst; the others count 0 (D3S).

    Chosen after credit, so the others still were the baseline; advantages are not centred again.
    """

    num: int
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        if self.num < 2:
            raise ConfigError(f"a spread needs at least 2 episodes; found num={self.num}")

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return the advantages of those that are kept, and zeros."""
        kept = iter(
            [
                float(i in most_varied(_means(credit), self.num))
                for credit in credited
                for i in range(len(credit))
            ]
        )
        return _weighted(groups, credited, lambda scored: np.full(scored.trajectory.num_tokens, next(kept)))


@dataclass(frozen=True, slots=True)
class KeepTokens:
    """Keep the ``share`` of an episode's tokens with the largest ``|A| * entropy``; the others count 0 (D3S)."""

    share: float = 0.2
    needs: ClassVar[frozenset[Need]] = frozenset({"entropies"})

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ConfigError(
                f"the share of tokens to keep must be above 0 and at most 1; found {self.share}"
            )

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return the advantages of the tokens that are kept, and zeros; ties are decided by place."""
        checked(groups, self.needs)
        return [
            tuple(
                replace(one, advantages_T=floats(one.advantages_T * self._kept(scored, one)))
                for scored, one in zip(group, credit, strict=True)
            )
            for group, credit in zip(groups, credited, strict=True)
        ]

    def _kept(self, scored: Scored, one: Credited) -> Array:
        assert scored.entropies_T is not None
        scores_T = np.abs(one.advantages_T.astype(np.float64)) * scored.entropies_T
        kept_T = np.zeros(len(scores_T))
        kept_T[np.argsort(-scores_T, kind="stable")[: int(np.ceil(self.share * len(scores_T)))]] = 1.0
        return kept_T


@dataclass(frozen=True, slots=True)
class Attribution:
    """Weigh each turn by how clearly what is known up to it foretells the outcome (OREAL, Lyu et al. 2025; there by token).

    With ``p_n = sigmoid(mean of the component over turns 0 to n)``, the opinion of a process reward in logits, positive advantages are
    multiplied with ``(p_n - threshold) / (1 - threshold)``, cut to [0, 1], and negative ones with the same of ``1 - p_n``.
    """

    component: str
    threshold: float = 0.5
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold < 1.0:
            raise ConfigError(
                f"the threshold of an attribution must be at least 0 and below 1; found {self.threshold}; usual is 0.5"
            )

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return the weighted advantages.

        Raises:
            ConfigError: nothing pays the component.
        """
        flat = (one for credit in credited for one in credit)
        weights = iter([self._weights(scored, next(flat)) for group in groups for scored in group])
        return _weighted(groups, credited, lambda scored: next(weights))

    def _weights(self, scored: Scored, one: Credited) -> Array:
        opinions_N = component(scored, self.component)
        foretold_N = 0.5 + 0.5 * np.tanh(np.cumsum(opinions_N) / (2.0 * np.arange(1, len(opinions_N) + 1)))
        good_T, bad_T = (
            spread(self._clear(share_N), scored.num_tokens_N) for share_N in (foretold_N, 1.0 - foretold_N)
        )
        return np.where(one.advantages_T > 0, good_T, bad_T)

    def _clear(self, share_N: Array) -> Array:
        return np.clip((share_N - self.threshold) / (1.0 - self.threshold), 0.0, 1.0)


def most_varied(values: Array, num: int) -> list[int]:
    """Return the places of ``num`` values with the largest variance: some of the highest and some of the lowest, exactly.

    >>> most_varied(np.array([-1.2, -0.9, -0.1, 0.0, 0.1, 0.4, 0.9, 1.6]), 4)
    [0, 1, 6, 7]
    """
    order = np.argsort(values, kind="stable")
    num = min(num, len(order))
    choices = [[*order[: num - high], *order[len(order) - high :]] for high in range(num + 1)]
    return sorted(
        int(i) for i in max(choices, key=lambda chosen: float(values[chosen].var()) if chosen else 0.0)
    )


def _means(credit: Sequence[Credited]) -> Array:
    return np.array(
        [float(one.advantages_T.mean(dtype=np.float64)) if len(one.advantages_T) else 0.0 for one in credit]
    )


def _common_ends(one_T: npt.NDArray[np.int32], other_T: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return the places of ``one_T`` in its longest common prefix and suffix with ``other_T``."""
    length = min(len(one_T), len(other_T))
    front = int(np.logical_and.accumulate(one_T[:length] == other_T[:length]).sum())
    back = int(np.logical_and.accumulate(one_T[::-1][:length] == other_T[::-1][:length]).sum())
    return np.unique(np.concatenate([np.arange(front), np.arange(len(one_T) - back, len(one_T))]))


def _weighted(
    groups: Sequence[ScoredGroup],
    credited: Sequence[tuple[Credited, ...]],
    weight: Callable[[Scored], npt.NDArray[np.floating]],
) -> list[tuple[Credited, ...]]:
    """Multiply advantages with ``weight(scored)``, one number per token, called once for each trajectory in order."""
    return [
        tuple(
            replace(one, advantages_T=floats(one.advantages_T.astype(np.float64) * weight(scored)))
            for scored, one in zip(group, credit, strict=True)
        )
        for group, credit in zip(groups, credited, strict=True)
    ]
