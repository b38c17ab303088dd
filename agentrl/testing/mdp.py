"""The exact bias of a credit rule, on a decision process that is small enough to enumerate every episode.

``bias(rule)`` computes the expectation of the rule's gradient estimate over all groups of episodes that can
be sampled, weighted by their probability, and compares it with the true policy gradient. Nothing is sampled,
so an unbiased rule agrees up to rounding.

The process is a walk on a line. A turn is either one token, ``stop``, or two tokens: ``go``, then ``left`` or
``right``. Stopping ends the episode, with the value of the place as reward (the component ``outcome``); each
step to the right has a small reward at once (the component ``steps``); and a limit ends the episode after
three turns. So episodes end at different times, turns have different lengths, rewards arrive along the way,
and there are 15 episodes. The policy is a softmax with one logit per decision and place; the logit of the
other token is 0.

The suffix of an array's name says what the array has one entry for: ``T`` for each token of an episode, ``N``
for each turn, ``P`` for each parameter (logit) of the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import numpy.typing as npt

from agentrl.types import (
    Action,
    Credited,
    End,
    Measured,
    Observation,
    Scored,
    ScoredGroup,
    Task,
    Trajectory,
    Turn,
    floats,
    ints,
)

Array = npt.NDArray[np.float64]
Rule = Callable[[Sequence[ScoredGroup]], list[tuple[Credited, ...]]]
MAX_TURNS = 3
PLACES = range(-MAX_TURNS, MAX_TURNS + 1)
STOP_PAYS = {-3: 0.0, -2: 2.0, -1: -1.0, 0: 0.5, 1: 0.0, 2: 3.0, 3: 1.0}
STEP_PAYS = {"left": 0.0, "right": 0.3}
Decision = tuple[str, int]
DECISIONS: list[Decision] = [(kind, place) for kind in ("stop?", "right?") for place in PLACES]
TASK = Task("walk")


@dataclass(frozen=True)
class MdpEpisode:
    """One possible episode and the probability that the policy plays it."""

    probability: float
    trajectory: Trajectory
    rewards: tuple[float, ...]
    """Reward of each turn, summed over components."""
    scores_TP: Array
    """Gradient of each token's log-probability with respect to the policy's parameters."""
    keys_T: tuple[tuple[int, str, int], ...]
    """(turn, decision, place) of each token: the state that a critic sees."""
    logprobs_T: tuple[float, ...]
    entropies_T: tuple[float, ...]

    @property
    def score_P(self) -> Array:
        """Gradient of the episode's log-probability."""
        return np.asarray(self.scores_TP.sum(0))


@dataclass(frozen=True)
class Bias:
    """How a credit rule's expected gradient estimate compares with the policy gradient."""

    cosine: float
    """Cosine of the estimate with the policy gradient: 1 means that the direction is right."""
    scale: float
    """Signed length of the estimate's projection on the policy gradient, divided by the gradient's length: 1
    means that the step size is right, too."""
    error: float
    """Length of the difference between the policy gradient and the estimate times the best constant factor,
    divided by the length of the policy gradient: 0 means unbiased up to a factor."""
    variance: float
    """Trace of the estimate's covariance for the given group size, divided by the squared length of the
    policy gradient."""


@dataclass(frozen=True)
class Mdp:
    """The walk under a policy with the given logits."""

    logits: tuple[float, ...]

    @classmethod
    def random(cls, seed: int) -> Mdp:
        """Return the walk under a random policy."""
        return cls(tuple(np.random.default_rng(seed).normal(0.0, 0.8, len(DECISIONS))))

    @cached_property
    def episodes(self) -> list[MdpEpisode]:
        """Return all possible episodes."""
        return list(self._from(0, 0, 1.0, (), ()))

    @property
    def expected_return(self) -> float:
        """Return the expected sum of rewards."""
        return sum(one.probability * sum(one.rewards) for one in self.episodes)

    @property
    def gradient_P(self) -> Array:
        """Return the policy gradient by its definition: the sum over episodes of ``p R grad log p``.

        ``p`` is the probability of an episode, and ``R`` is the sum of its rewards.
        """
        return np.asarray(sum(one.probability * sum(one.rewards) * one.score_P for one in self.episodes))

    def differences_P(self, objective: Callable[[Mdp], float], step: float = 1e-5) -> Array:
        """Return the gradient of ``objective`` with respect to the logits, by central differences."""
        shifts = step * np.eye(len(DECISIONS))
        ups, downs = (
            [objective(Mdp(tuple(np.array(self.logits) + sign * shift))) for shift in shifts]
            for sign in (1, -1)
        )
        return np.asarray((np.array(ups) - np.array(downs)) / (2 * step))

    @cached_property
    def values(self) -> dict[tuple[int, str, int], float]:
        """Return the true value of each token's state: the expected sum of rewards from its turn on."""
        totals: dict[tuple[int, str, int], list[float]] = {}
        for one in self.episodes:
            for key in one.keys_T:
                to_go = sum(one.rewards[key[0] :])
                total = totals.setdefault(key, [0.0, 0.0])
                total[0] += one.probability * to_go
                total[1] += one.probability
        return {key: paid / weight for key, (paid, weight) in totals.items()}

    def scored(self, one: MdpEpisode, *, wrong_by: float = 0.0) -> Scored:
        """Return the episode with rewards and measurements.

        The critic's values are off by ``wrong_by`` times a number that depends on the state.
        """
        values_T = [self.values[key] + wrong_by * (1 + key[2] - key[0]) for key in one.keys_T]
        stopped = one.trajectory.end is End.TERMINATED
        last_N = np.arange(len(one.rewards)) == len(one.rewards) - 1
        outcome_N = np.where(last_N & stopped, one.rewards, 0.0)
        ledger = {"outcome": floats(outcome_N), "steps": floats(np.array(one.rewards) - outcome_N)}
        logprobs_T = floats(one.logprobs_T)
        measured = Measured(
            values=floats(values_T),
            entropies=floats(one.entropies_T),
            old_logprobs=logprobs_T,
            ref_logprobs=logprobs_T,
        )
        return Scored(one.trajectory, ledger, measured)

    def estimate(self, credit: Rule, group_size: int, *, wrong_by: float = 0.0) -> tuple[Array, float]:
        """Return the expected gradient estimate over all groups, and the trace of its covariance."""
        paid = [self.scored(one, wrong_by=wrong_by) for one in self.episodes]
        mean_P, square = np.zeros(len(DECISIONS)), 0.0
        for members in product(range(len(paid)), repeat=group_size):
            probability = float(np.prod([self.episodes[i].probability for i in members]))
            (credited,) = credit([tuple(paid[i] for i in members)])
            estimate_P = np.zeros(len(DECISIONS))
            for i, one in zip(members, credited, strict=True):
                estimate_P += self.episodes[i].scores_TP.T @ one.advantages_T.astype(np.float64) / group_size
            mean_P += probability * estimate_P
            square += probability * float(estimate_P @ estimate_P)
        return mean_P, square - float(mean_P @ mean_P)

    def _from(
        self, turn: int, place: int, probability: float, tokens: _Tokens, turns: _Turns
    ) -> Iterator[MdpEpisode]:
        """Yield every complete episode that begins with ``tokens`` and ``turns``, which lead to ``place``."""
        stop, stop_score, go, go_score = self._choice(("stop?", place))
        entropy = _entropy(stop)
        stopped = (turn, "stop?", place, stop_score, float(np.log(stop)), entropy)
        yield self._end(
            End.TERMINATED, probability * stop, (*tokens, stopped), (*turns, (STOP_PAYS[place], place, 1))
        )
        right, right_score, left, left_score = self._choice(("right?", place))
        for step, chance, score, move in (("right", right, right_score, 1), ("left", left, left_score, -1)):
            went = (turn, "stop?", place, go_score, float(np.log(go)), entropy)
            walked = (*tokens, went, (turn, "right?", place, score, float(np.log(chance)), _entropy(right)))
            after = (*turns, (STEP_PAYS[step], place, 2))
            if turn + 1 == MAX_TURNS:
                yield self._end(End.TRUNCATED, probability * go * chance, walked, after)
            else:
                yield from self._from(turn + 1, place + move, probability * go * chance, walked, after)

    def _choice(self, decision: Decision) -> tuple[float, Array, float, Array]:
        """Return the probability of yes, the gradient of its logarithm, and then both for no."""
        index = DECISIONS.index(decision)
        yes = float(1.0 / (1.0 + np.exp(-self.logits[index])))
        direction_P = np.eye(len(DECISIONS))[index]
        return yes, (1.0 - yes) * direction_P, 1.0 - yes, -yes * direction_P

    def _end(self, end: End, probability: float, tokens: _Tokens, turns: _Turns) -> MdpEpisode:
        logprobs = [logprob for *_, logprob, _ in tokens]
        played, start = [], 0
        for _, place, length in turns:
            said = Action(
                "a", ints([7]), ints(range(length)), floats(logprobs[start : start + length]), version=0
            )
            played.append(Turn(Observation.text(f"at {place}"), said))
            start += length
        return MdpEpisode(
            probability,
            Trajectory(TASK, tuple(played), end),
            tuple(reward for reward, _, _ in turns),
            np.array([score for _, _, _, score, _, _ in tokens]),
            tuple((turn, decision, place) for turn, decision, place, _, _, _ in tokens),
            tuple(logprobs),
            tuple(entropy for *_, entropy in tokens),
        )


_Tokens = tuple[tuple[int, str, int, Array, float, float], ...]
"""Turn, decision, place, score, log-probability and entropy of each token so far."""
_Turns = tuple[tuple[float, int, int], ...]
"""Reward, place and number of tokens of each turn so far."""


def _entropy(yes: float) -> float:
    return -yes * float(np.log(yes)) - (1.0 - yes) * float(np.log(1.0 - yes))


def bias(rule: Rule, *, group_size: int = 3, seed: int = 0, wrong_by: float = 0.0) -> Bias:
    """Return exactly how a credit rule's expected gradient differs from the policy gradient.

    ``rule`` is any ``Credit``, with or without modifiers (``agentrl.credit.modifiers.Modified``). ``seed``
    chooses the policy, and ``wrong_by`` makes the critic wrong. Group sizes of 1 to 3 take seconds. The bias
    of a rule that divides by a deviation of the same episodes depends on the group size.

    >>> from agentrl.credit.group import GRPO, RLOO
    >>> round(bias(RLOO(), group_size=2).error, 6), bias(GRPO(), group_size=2).error > 0.1
    (0.0, True)
    """
    mdp = Mdp.random(seed)
    estimate_P, variance = mdp.estimate(rule, group_size, wrong_by=wrong_by)
    true_P = mdp.gradient_P
    square = float(true_P @ true_P)
    length = float(np.linalg.norm(estimate_P))
    along = float(estimate_P @ true_P) / square
    cosine = float(estimate_P @ true_P) / (length * square**0.5) if length > 0.0 else 0.0
    factor = float(estimate_P @ true_P) / length**2 if length > 0.0 else 0.0
    error = float(np.linalg.norm(factor * estimate_P - true_P)) / square**0.5
    return Bias(cosine, along, error, variance / square)
