"""Credit from states that several turns of a group share: such turns are compared with each other.

Two turns are in the same state if the policy was shown the same text. What is compared is the discounted
return from the turn on. Neither ``GiGPO`` nor ``HGPO`` needs a critic or additional episodes. If no state is
visited twice, only the comparison of whole episodes is left (which ``HGPO`` leaves out by default).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

import numpy as np

from agentrl.credit.group import GroupCredit
from agentrl.credit.turns import Array, per_turn, returns_to_go, standardised
from agentrl.errors import ConfigError
from agentrl.types import Credited, Observation, ScoredGroup

StateKey = Callable[[Observation], Hashable]
"""Maps an observation to a key; turns whose observations have equal keys are in the same state."""


def text_of(observation: Observation) -> str:
    """Return the text that the policy was shown, without the fields that only experts see.

    >>> text_of(Observation.text("a door", actions=("open door",)))
    'a door'
    """
    return "\n".join(message.content for message in observation.messages)


@dataclass(frozen=True, slots=True)
class GiGPO(GroupCredit):
    """``A_n = A_episode + weight * A_state(n)`` (Feng et al. 2025, "Group-in-group policy optimization").

    ``A_episode`` compares the episode's return with those of its group. ``A_state`` compares the return from
    turn ``n`` on with those of all turns of the group in the same state; it is 0 for a state that was visited
    once. ``deviation``: also divide by the standard deviation (with Bessel's correction). With ``similarity``
    below 1, two texts are the same state if their share of matching characters is at least ``similarity``.

    Published code computes the episode statistics over turns, so that long episodes count more often:
    ``stats_over="turn"``.
    """

    gamma: float = 0.95
    weight: float = 1.0
    deviation: bool = False
    stats_over: Literal["trajectory", "turn"] = "trajectory"
    similarity: float = 1.0
    state_key: StateKey = text_of
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if not 0.0 < self.similarity <= 1.0:
            raise ConfigError(
                "similarity is a share of matching characters, above 0 and at most 1; "
                f"found {self.similarity}"
            )

    def credit_group(self, group: ScoredGroup) -> tuple[Credited, ...]:
        """Credit each turn with its episode's advantage plus ``weight`` times its state's advantage."""
        episodes_G = self._episodes(group)
        returns_GN = [returns_to_go(scored.rewards_N, gamma=self.gamma) for scored in group]
        states_GN = [np.zeros(len(returns_N)) for returns_N in returns_GN]
        for cluster in self._clusters(group):
            if len(cluster) > 1:
                found = self._compare(np.array([returns_GN[i][n] for i, n in cluster]))
                for (i, n), advantage in zip(cluster, found, strict=True):
                    states_GN[i][n] = advantage
        rows = zip(group, episodes_G, states_GN, strict=True)
        return tuple(per_turn(scored, episode + self.weight * states_N) for scored, episode, states_N in rows)

    def _episodes(self, group: ScoredGroup) -> Array:
        """Return one advantage per episode, from the comparison of its return with those of its group."""
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

    def _clusters(self, group: ScoredGroup) -> list[list[tuple[int, int]]]:
        """Return each state's turns as pairs ``(member, turn)``; states in the order of their first visit."""
        clusters: dict[Hashable, list[tuple[int, int]]] = {}
        for i, scored in enumerate(group):
            for n, turn in enumerate(scored.trajectory.turns):
                key = self.state_key(turn.observation)
                clusters.setdefault(self._similar_key(key, clusters), []).append((i, n))
        return list(clusters.values())

    def _similar_key(self, key: Hashable, known: dict[Hashable, list[tuple[int, int]]]) -> Hashable:
        """Return the first known key that is similar enough, else ``key`` itself."""
        if self.similarity >= 1.0 or key in known or not isinstance(key, str):
            return key
        alike = (other for other in known if isinstance(other, str) and _ratio(key, other) >= self.similarity)
        return next(alike, key)


@dataclass(frozen=True, slots=True)
class HGPO(GroupCredit):
    """Compares turns at several depths of shared history; deeper histories have larger weights (HGPO).

    For each window ``w = 1 .. depth + 1``, the turns of the group whose last ``w`` states agree form a
    cluster; a cluster of one turn contributes nothing. The advantages of a turn's clusters are averaged with
    weights ``(w + 1) ** alpha``. ``episode_weight`` adds the episode's own advantage (not used in the paper).

    Published code leaves a cluster out of the average if the turn's advantage in it is exactly 0; here such
    an advantage counts, because an average return is information too.
    """

    gamma: float = 0.95
    depth: int = 2
    alpha: float = 1.0
    deviation: bool = True
    episode_weight: float = 0.0
    state_key: StateKey = text_of
    eps: float = 1e-6

    def credit_group(self, group: ScoredGroup) -> tuple[Credited, ...]:
        """Credit each turn with the mean of its clusters' advantages, weighted by depth."""
        returns_GN = [returns_to_go(scored.rewards_N, gamma=self.gamma) for scored in group]
        totals_GN = [np.zeros(len(returns_N)) for returns_N in returns_GN]
        weights_GN = [np.zeros(len(returns_N)) for returns_N in returns_GN]
        seen_GN = [[self.state_key(turn.observation) for turn in scored.trajectory.turns] for scored in group]
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
    """Return the clusters of turns whose last ``window`` states agree.

    A turn with fewer than ``window`` states up to and including its own is in no cluster.
    """
    clusters: dict[Hashable, list[tuple[int, int]]] = {}
    for i, seen_N in enumerate(seen_GN):
        for n in range(window - 1, len(seen_N)):
            clusters.setdefault(tuple(seen_N[n + 1 - window : n + 1]), []).append((i, n))
    return list(clusters.values())


def _ratio(one: str, other: str) -> float:
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return matcher.ratio() if matcher.real_quick_ratio() > 0 else 0.0
