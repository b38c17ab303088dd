"""Modifiers that weigh finished advantages: how much a turn or token counts, whatever its reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from agentrl.credit import Modifier
from agentrl.credit.components import component
from agentrl.credit.turns import Array, checked, spread, with_advantages
from agentrl.errors import ConfigError
from agentrl.types import Credited, Need, Scored, ScoredGroup


@dataclass(frozen=True, slots=True)
class DurationWeights(Modifier):
    """Weighs each turn with its duration divided by the batch's mean duration.

    Yang et al. 2025, "RL for machine-learning-engineering agents". If episodes are trained on as soon as they
    end, quick actions are over-represented, in proportion to the inverse of their duration; these weights
    correct that. If all episodes of an update are waited for, as with ``max_staleness = 0``, there is no such
    bias: do not use this modifier then.

    ``signal`` names a measured duration in seconds; if it is empty, the wall-clock time of acting and
    stepping is used, which differs between runs. Weights are at most ``max_weight``; a duration below
    ``min_s`` counts as ``min_s``.
    """

    signal: str = ""
    max_weight: float = 10.0
    min_s: float = 1e-6
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return the advantages, each multiplied by the weight of its turn."""
        taken = [[self._durations(scored) for scored in group] for group in groups]
        flat = np.concatenate([np.zeros(0), *(seconds_N for group in taken for seconds_N in group)])
        mean = float(flat.mean()) if len(flat) else 1.0
        weights = iter(
            [np.minimum(seconds_N / mean, self.max_weight) for group in taken for seconds_N in group]
        )
        return with_advantages(
            groups,
            credited,
            lambda scored, advantages_T: advantages_T * spread(next(weights), scored.num_tokens_N),
        )

    def _durations(self, scored: Scored) -> Array:
        turns = scored.trajectory.turns
        seconds = (
            [turn.duration_s for turn in turns]
            if not self.signal
            else [float(v) for v in scored.trajectory.signal(self.signal)]
        )
        return np.maximum(np.array(seconds, dtype=np.float64), self.min_s)


@dataclass(frozen=True, slots=True)
class ConflictTokens(Modifier):
    """Weighs tokens that successes and failures of a group have in common (GTPO, Simoni et al. 2025).

    A conflict token is at the same position and has the same value in an episode with a positive advantage
    and in one with a negative one, within an unbroken run of such tokens from the beginning or the end of the
    episode. It is multiplied by ``up`` in the episode with the positive advantage and by ``down`` in the
    other, so that failures do not unlearn what successes also contain. Positions are counted over the action
    tokens of the whole episode.
    """

    up: float = 2.0
    down: float = 0.0
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return the weighted advantages; a group whose advantages all have the same sign is unchanged."""
        weights = iter(
            [
                weight
                for group, credit in zip(groups, credited, strict=True)
                for weight in self._weights(group, credit)
            ]
        )
        return with_advantages(groups, credited, lambda scored, advantages_T: advantages_T * next(weights))

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
class KeepVaried(Modifier):
    """Keeps ``num`` episodes of each group, the best and the worst, whose advantages vary most (D3S).

    The other episodes get advantages of 0. The choice is made after credit, so they were still part of the
    baseline; advantages are not centred again.
    """

    num: int
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        if self.num < 2:
            raise ConfigError(f"KeepVaried keeps at least 2 episodes; found num={self.num}")

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return the advantages of the episodes that are kept, and zeros for the others."""
        kept = iter(
            [
                float(i in most_varied(_means(credit), self.num))
                for credit in credited
                for i in range(len(credit))
            ]
        )
        return with_advantages(groups, credited, lambda scored, advantages_T: advantages_T * next(kept))


@dataclass(frozen=True, slots=True)
class KeepTokens(Modifier):
    """Keeps the ``share`` of an episode's tokens with the largest ``|A| * entropy`` (D3S).

    The other tokens get advantages of 0.
    """

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
        """Return the advantages of the tokens that are kept, and zeros for the others.

        Among tokens with equal ``|A| * entropy`` the earlier is kept.
        """
        checked(groups, self.needs)
        return with_advantages(groups, credited, self._kept)

    def _kept(self, scored: Scored, advantages_T: Array) -> Array:
        assert scored.measured.entropies is not None
        scores_T = np.abs(advantages_T) * scored.measured.entropies
        kept_T = np.zeros(len(scores_T))
        kept_T[np.argsort(-scores_T, kind="stable")[: int(np.ceil(self.share * len(scores_T)))]] = 1.0
        return advantages_T * kept_T


@dataclass(frozen=True, slots=True)
class Attribution(Modifier):
    """Weighs each turn by how clearly the process reward up to it predicts the outcome.

    OREAL, Lyu et al. 2025, where tokens are weighed instead of turns. With
    ``p_n = sigmoid(mean of the component over turns 0 to n)``, where the component is a process reward in
    logits, positive advantages are multiplied by ``(p_n - threshold) / (1 - threshold)``, clipped to [0, 1],
    and negative ones by the same expression with ``1 - p_n`` instead of ``p_n``.
    """

    component: str
    threshold: float = 0.5
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold < 1.0:
            raise ConfigError(
                f"the threshold of Attribution must be at least 0 and below 1; found {self.threshold}; "
                "0.5 is usual"
            )

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return the advantages, each multiplied by the weight of its turn.

        Raises:
            ConfigError: nothing pays the component.
        """
        flat = (one for credit in credited for one in credit)
        weights = iter([self._weights(scored, next(flat)) for group in groups for scored in group])
        return with_advantages(groups, credited, lambda scored, advantages_T: advantages_T * next(weights))

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
    """Return the indices of the ``num`` values that have the largest variance among all choices of ``num``.

    The choice is exact: the values are some of the highest and some of the lowest values.

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
    """Return the positions in ``one_T`` of its longest common prefix and suffix with ``other_T``."""
    length = min(len(one_T), len(other_T))
    front = int(np.logical_and.accumulate(one_T[:length] == other_T[:length]).sum())
    back = int(np.logical_and.accumulate(one_T[::-1][:length] == other_T[::-1][:length]).sum())
    return np.unique(np.concatenate([np.arange(front), np.arange(len(one_T) - back, len(one_T))]))
