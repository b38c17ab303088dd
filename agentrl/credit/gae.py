"""Generalised advantage estimation (Schulman et al. 2016, eq. 16) over tokens and over turns.

``delta_t = r_t + gamma V_{t+1} - V_t`` and ``A_t = delta_t + gamma lam A_{t+1}``; the critic's targets are ``A + V``.

Values live on action tokens alone, so observation tokens cannot enter the recursion: from the last token of an action it steps to the first
token of the next. (Running it over observation tokens too, with whatever the critic says there, is the classic multi-turn mistake.)

After the last action the value is 0, whether the task ended or a limit truncated the episode: the limit belongs to the task, and the return
that is learned is the one that is reported. A turn without tokens is no step; its reward goes to the action before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agentrl.credit.turns import Array, checked, spread
from agentrl.types import Credited, Need, Scored, ScoredGroup, floats


def gae(rewards: Array, values: Array, *, gamma: float, lam: float) -> Array:
    """Return the advantages of a row of steps that ends with value 0.

    >>> gae(np.array([0.2, 1.0]), np.array([0.1, 0.4]), gamma=0.99, lam=0.95)
    array([1.0603, 0.6   ])
    """
    advantages = np.zeros(len(values))
    value = advantage = 0.0
    for step in reversed(range(len(values))):
        advantage = float(rewards[step]) + gamma * value - float(values[step]) + gamma * lam * advantage
        value = float(values[step])
        advantages[step] = advantage
    return advantages


@dataclass(frozen=True, slots=True)
class TokenGAE:
    """The action is the token. A turn's reward sits on its last token; every token is a target of the critic."""

    gamma: float = 1.0
    """Discount per token."""
    lam: float = 0.95
    needs: ClassVar[frozenset[Need]] = frozenset({"values"})
    min_group: ClassVar[int] = 1

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Credit each token with an estimate of its own."""
        return [tuple(self._credit(scored) for scored in group) for group in checked(groups, self.needs)]

    def _credit(self, scored: Scored) -> Credited:
        values_T = _values(scored)
        rewards_T = np.zeros(len(values_T))
        for end, reward in zip(np.cumsum(scored.num_tokens_N), scored.rewards_N, strict=True):
            if end > 0:
                rewards_T[end - 1] += reward
        advantages_T = gae(rewards_T, values_T, gamma=self.gamma, lam=self.lam)
        return Credited(floats(advantages_T), floats(advantages_T + values_T))


@dataclass(frozen=True, slots=True)
class TurnGAE:
    """The action is the turn (turn-PPO): its value is read at its first token, which is also the critic's only target in it."""

    gamma: float = 0.99
    """Discount per turn."""
    lam: float = 0.95
    needs: ClassVar[frozenset[Need]] = frozenset({"values"})
    min_group: ClassVar[int] = 1

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Credit all tokens of a turn with the turn's estimate."""
        return [tuple(self._credit(scored) for scored in group) for group in checked(groups, self.needs)]

    def _credit(self, scored: Scored) -> Credited:
        lengths = scored.num_tokens_N[scored.num_tokens_N > 0]
        first = np.cumsum(lengths) - lengths
        values_K = _values(scored)[first]
        rewards_K = np.zeros(len(lengths))
        for step, reward in zip(np.cumsum(scored.num_tokens_N > 0), scored.rewards_N, strict=True):
            if step > 0:
                rewards_K[step - 1] += reward
        advantages_K = gae(rewards_K, values_K, gamma=self.gamma, lam=self.lam)
        targets_T = np.full(scored.trajectory.num_tokens, np.nan)
        targets_T[first] = advantages_K + values_K
        return Credited(spread(advantages_K, lengths), floats(targets_T))


def _values(scored: Scored) -> Array:
    assert scored.values_T is not None
    return scored.values_T.astype(np.float64)
