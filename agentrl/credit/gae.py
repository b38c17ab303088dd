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
import numpy.typing as npt

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
        lengths, rewards_K = _steps(scored)
        first = np.cumsum(lengths) - lengths
        values_K = _values(scored)[first]
        advantages_K = gae(rewards_K, values_K, gamma=self.gamma, lam=self.lam)
        targets_T = np.full(scored.trajectory.num_tokens, np.nan)
        targets_T[first] = advantages_K + values_K
        return Credited(spread(advantages_K, lengths), floats(targets_T))


@dataclass(frozen=True, slots=True)
class BiLevelGAE:
    """Turns first, then tokens inside each turn (VAGEN, Wang et al. 2025).

    Over turns, with the critic's value at each turn's *last* token: ``A_k = r_k + gamma_turn V_{k+1} - V_k + gamma_turn lam A_{k+1}``. That
    advantage stands at the turn's last token, and inside the turn ``A_t = gamma V_{t+1} - V_t + gamma lam A_{t+1}`` runs back from it.
    Every token is a target of the critic, ``A + V``. With a single turn it is token GAE.
    """

    gamma_turn: float = 0.95
    gamma: float = 1.0
    """Discount per token inside a turn."""
    lam: float = 1.0
    needs: ClassVar[frozenset[Need]] = frozenset({"values"})
    min_group: ClassVar[int] = 1

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Credit each token with an estimate that ends in its turn's."""
        return [tuple(self._credit(scored) for scored in group) for group in checked(groups, self.needs)]

    def _credit(self, scored: Scored) -> Credited:
        values_T = _values(scored)
        lengths, rewards_K = _steps(scored)
        last = np.cumsum(lengths) - 1
        turns_K = gae(rewards_K, values_T[last], gamma=self.gamma_turn, lam=self.lam)
        advantages_T = np.zeros(len(values_T))
        for end, length, at_end in zip(last, lengths, turns_K, strict=True):
            advantages_T[end] = advantage = float(at_end)
            for t in reversed(range(end - length + 1, end)):
                advantages_T[t] = advantage = (
                    self.gamma * values_T[t + 1] - values_T[t] + self.gamma * self.lam * advantage
                )
        return Credited(floats(advantages_T), floats(advantages_T + values_T))


def _steps(scored: Scored) -> tuple[npt.NDArray[np.int32], Array]:
    """Return lengths and rewards of the turns that have tokens; the reward of a turn without any goes to the action before it."""
    lengths = scored.num_tokens_N[scored.num_tokens_N > 0]
    rewards_K = np.zeros(len(lengths))
    for step, reward in zip(np.cumsum(scored.num_tokens_N > 0), scored.rewards_N, strict=True):
        if step > 0:
            rewards_K[step - 1] += reward
    return lengths, rewards_K


def _values(scored: Scored) -> Array:
    assert scored.values_T is not None
    return scored.values_T.astype(np.float64)
