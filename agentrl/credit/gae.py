"""Generalised advantage estimation (Schulman et al. 2016, eq. 16) over tokens and over turns.

``delta_t = r_t + gamma V_{t+1} - V_t`` and ``A_t = delta_t + gamma lam A_{t+1}``; the critic's targets are
``A + V``.

Only action tokens have values, so observation tokens cannot enter the recursion: it steps from the last token
of an action to the first token of the next. (A common multi-turn mistake is to run it over observation tokens
too, with the critic's output there.)

After the last action the value is 0, whether the task ended or a limit truncated the episode: the limit
belongs to the task, so the return that is learned is the one that is reported. A turn without tokens is not a
step; its reward goes to the action before it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from agentrl.credit import Credit
from agentrl.credit.turns import Array, checked, spread
from agentrl.types import Credited, Need, Scored, ScoredGroup, floats


def gae(rewards: Array, values: Array, *, gamma: float, lam: float) -> Array:
    """Return the advantages of a sequence of steps; the value after the last step is 0.

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


class CriticCredit(Credit):
    """Credits each trajectory by itself, from its rewards and the critic's values."""

    __slots__ = ()
    needs: ClassVar[frozenset[Need]] = frozenset({"values"})
    min_group: ClassVar[int] = 1

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Return the credit of each trajectory, in the shape of ``groups``."""
        return [tuple(self.credit_one(scored) for scored in group) for group in checked(groups, self.needs)]

    @abstractmethod
    def credit_one(self, scored: Scored) -> Credited:
        """Return the advantages and the critic's targets of one trajectory."""


@dataclass(frozen=True, slots=True)
class TokenGAE(CriticCredit):
    """Generalised advantage estimation with each token as an action.

    A turn's reward is paid on its last token; every token has a target for the critic.
    """

    gamma: float = 1.0
    """Discount per token."""
    lam: float = 0.95

    def credit_one(self, scored: Scored) -> Credited:
        """Credit each token with its own advantage."""
        values_T = _values(scored)
        rewards_T = np.zeros(len(values_T))
        for end, reward in zip(np.cumsum(scored.num_tokens_N), scored.rewards_N, strict=True):
            if end > 0:
                rewards_T[end - 1] += reward
        advantages_T = gae(rewards_T, values_T, gamma=self.gamma, lam=self.lam)
        return Credited(floats(advantages_T), floats(advantages_T + values_T))


@dataclass(frozen=True, slots=True)
class TurnGAE(CriticCredit):
    """Generalised advantage estimation with each turn as an action (turn-PPO).

    A turn's value is read at its first token, and only that token has a target for the critic.
    """

    gamma: float = 0.99
    """Discount per turn."""
    lam: float = 0.95

    def credit_one(self, scored: Scored) -> Credited:
        """Credit all tokens of a turn with the turn's advantage."""
        lengths, rewards_K = _steps(scored)
        first = np.cumsum(lengths) - lengths
        values_K = _values(scored)[first]
        advantages_K = gae(rewards_K, values_K, gamma=self.gamma, lam=self.lam)
        targets_T = np.full(scored.trajectory.num_tokens, np.nan)
        targets_T[first] = advantages_K + values_K
        return Credited(spread(advantages_K, lengths), floats(targets_T))


@dataclass(frozen=True, slots=True)
class BiLevelGAE(CriticCredit):
    """Generalised advantage estimation over turns, then over the tokens inside each turn (VAGEN).

    Wang et al. 2025. Over turns, with the critic's value at each turn's *last* token:
    ``A_k = r_k + gamma_turn V_{k+1} - V_k + gamma_turn lam A_{k+1}``. This is the advantage of the turn's
    last token, and inside the turn ``A_t = gamma V_{t+1} - V_t + gamma lam A_{t+1}`` runs backwards from it.
    Every token has a target for the critic, ``A + V``. For an episode of a single turn
    the result is that of ``TokenGAE`` with the same ``gamma`` and ``lam``.
    """

    gamma_turn: float = 0.95
    gamma: float = 1.0
    """Discount per token inside a turn."""
    lam: float = 1.0

    def credit_one(self, scored: Scored) -> Credited:
        """Credit each token with an advantage that is computed backwards from that of its turn."""
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
    """Return lengths and rewards of the turns that have tokens.

    The reward of a turn without tokens is added to the last earlier turn that has tokens.
    """
    lengths = scored.num_tokens_N[scored.num_tokens_N > 0]
    rewards_K = np.zeros(len(lengths))
    for step, reward in zip(np.cumsum(scored.num_tokens_N > 0), scored.rewards_N, strict=True):
        if step > 0:
            rewards_K[step - 1] += reward
    return lengths, rewards_K


def _values(scored: Scored) -> Array:
    assert scored.measured.values is not None
    return scored.measured.values.astype(np.float64)
