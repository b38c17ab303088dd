"""Credit inside a group of the same task: turns that stood in the same place are compared with each other.

Two turns stand in the same place where the policy was shown the same. The number compared is the discounted return from the turn on.
Neither rule needs a critic or more episodes; where no place is visited twice, both fall back on what the episode as a whole is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.turns import Array, checked, per_turn, returns_to_go, standardised
from agentrl.errors import ConfigError
from agentrl.types import Credited, Need, Observation, ScoredGroup

Place = Callable[[Observation], Hashable]
"""What makes two observations the same place."""


def text_of(observation: Observation) -> str:
    """Return what the policy was shown, without what only experts see.

    >>> text_of(Observation.text("a door", actions=("open door",)))
    'a door'
    """
    return "\n".join(message.content for message in observation.messages)


@dataclass(frozen=True, slots=True)
class GiGPO:
    """``A_n = A_episode + weight * A_place(n)`` (Feng et al. 2025, "Group-in-group policy optimization").

    ``A_episode`` compares the episode's return with its group's, ``A_place`` the return from turn ``n`` on with those of all turns of the
    group at the same place; a place that was visited once gives 0. ``deviation``: also divide by the standard deviation (Bessel's).
    ``similarity`` below 1 takes texts for the same place when their ratio of matching characters reaches it.

    Published code takes the episode statistics over turns, so long episodes count more often: ``stats_over="turn"``.
    """

    gamma: float = 0.95
    weight: float = 1.0
    deviation: bool = False
    stats_over: Literal["trajectory", "turn"] = "trajectory"
    similarity: float = 1.0
    place: Place = text_of
    eps: float = 1e-6
    needs: ClassVar[frozenset[Need]] = frozenset()
    min_group: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not 0.0 < self.similarity <= 1.0:
            raise ConfigError(
                f"similarity is a share of matching characters, above 0 and at most 1; found {self.similarity}"
            )

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Credit each turn with its episode's and its place's advantage."""
        return [self._group(group) for group in checked(groups)]

    def _group(self, group: ScoredGroup) -> tuple[Credited, ...]:
        episodes_G = self._episodes(group)
        returns_GN = [returns_to_go(scored.rewards_N, gamma=self.gamma) for scored in group]
        places_GN = [np.zeros(len(returns_N)) for returns_N in returns_GN]
        for cluster in self._places(group):
            if len(cluster) > 1:
                found = self._compare(np.array([returns_GN[i][n] for i, n in cluster]))
                for (i, n), advantage in zip(cluster, found, strict=True):
                    places_GN[i][n] = advantage
        rows = zip(group, episodes_G, places_GN, strict=True)
        return tuple(per_turn(scored, episode + self.weight * places_N) for scored, episode, places_N in rows)

    def _episodes(self, group: ScoredGroup) -> Array:
        """Return the advantage of each episode as a whole."""
        returns_G = np.array([scored.rewards_N.sum() for scored in group])
        if len(group) < 2:
            return np.zeros(len(group))
        if self.stats_over == "trajectory":
            return self._compare(returns_G)
        rows = np.repeat(returns_G, [len(scored.trajectory.turns) for scored in group])
        if len(rows) < 2:
            return np.zeros(len(group))
        scale = float(rows.std(ddof=1)) + self.eps if self.deviation else 1.0
        return np.asarray((returns_G - rows.mean()) / scale)

    def _compare(self, values: Array) -> Array:
        return standardised(values, ddof=1, eps=self.eps if self.deviation else None)

    def _places(self, group: ScoredGroup) -> list[list[tuple[int, int]]]:
        """Return the turns ``(member, turn)`` of each place, in the order in which places were first seen."""
        clusters: dict[Hashable, list[tuple[int, int]]] = {}
        for i, scored in enumerate(group):
            for n, turn in enumerate(scored.trajectory.turns):
                key = self.place(turn.observation)
                clusters.setdefault(self._like(key, clusters), []).append((i, n))
        return list(clusters.values())

    def _like(self, key: Hashable, known: dict[Hashable, list[tuple[int, int]]]) -> Hashable:
        """Return the first known place that is similar enough, else ``key`` itself."""
        if self.similarity >= 1.0 or key in known or not isinstance(key, str):
            return key
        alike = (other for other in known if isinstance(other, str) and _ratio(key, other) >= self.similarity)
        return next(alike, key)


@dataclass(frozen=True, slots=True)
class HGPO:
    """Places with memory: turns are compared at every depth of shared history, deeper ones with more weight (HGPO).

    For each window ``w = 1 .. depth + 1``, turns of the group whose last ``w`` observations agree form a cluster; a cluster of one says
    nothing. The advantages of the clusters that a turn belongs to are averaged with weights ``(w + 1) ** alpha``. ``episode_weight`` adds
    the episode's own advantage (off in the paper).

    Published code leaves a cluster out of the average where its advantage is exactly 0; here an average turn counts as one.
    """

    gamma: float = 0.95
    depth: int = 2
    alpha: float = 1.0
    deviation: bool = True
    episode_weight: float = 0.0
    place: Place = text_of
    eps: float = 1e-6
    needs: ClassVar[frozenset[Need]] = frozenset()
    min_group: ClassVar[int] = 2

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Credit each turn with the weighted mean of its clusters' advantages."""
        return [self._group(group) for group in checked(groups)]

    def _group(self, group: ScoredGroup) -> tuple[Credited, ...]:
        returns_GN = [returns_to_go(scored.rewards_N, gamma=self.gamma) for scored in group]
        totals_GN = [np.zeros(len(returns_N)) for returns_N in returns_GN]
        weights_GN = [np.zeros(len(returns_N)) for returns_N in returns_GN]
        seen_GN = [[self.place(turn.observation) for turn in scored.trajectory.turns] for scored in group]
        for window in range(1, self.depth + 2):
            weight = float((window + 1) ** self.alpha)
            for cluster in _clusters(seen_GN, window):
                if len(cluster) > 1:
                    found = self._compare(np.array([returns_GN[i][n] for i, n in cluster]))
                    for (i, n), advantage in zip(cluster, found, strict=True):
                        totals_GN[i][n] += weight * float(advantage)
                        weights_GN[i][n] += weight
        episodes_G = self._compare(np.array([scored.rewards_N.sum() for scored in group]))
        credited = []
        for scored, total_N, weight_N, episode in zip(group, totals_GN, weights_GN, episodes_G, strict=True):
            mean_N = np.divide(total_N, weight_N, out=np.zeros(len(total_N)), where=weight_N > 0)
            credited.append(per_turn(scored, mean_N + self.episode_weight * episode))
        return tuple(credited)

    def _compare(self, values: Array) -> Array:
        return standardised(values, ddof=0, eps=self.eps if self.deviation else None)


def _clusters(seen_GN: Sequence[Sequence[Hashable]], window: int) -> list[list[tuple[int, int]]]:
    """Return the turns whose last ``window`` places agree; turns with a shorter past are in none."""
    clusters: dict[Hashable, list[tuple[int, int]]] = {}
    for i, seen_N in enumerate(seen_GN):
        for n in range(window - 1, len(seen_N)):
            clusters.setdefault(tuple(seen_N[n + 1 - window : n + 1]), []).append((i, n))
    return list(clusters.values())


def _ratio(one: str, other: str) -> float:
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return matcher.ratio() if matcher.real_quick_ratio() > 0 else 0.0
