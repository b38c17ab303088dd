"""Aggregations: how much each action token of a batch counts.

A weight depends on lengths alone and is computed for the whole batch, so weighted sums of micro-batches add
up to the loss of the batch. Weights are in the order of the tokens: sequence after sequence, turn after turn.
Sequences and turns without action tokens count in no denominator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agentrl.errors import ConfigError

Weights = npt.NDArray[np.float64]


def token_mean(turn_lengths: Sequence[Sequence[int]]) -> Weights:
    """Weigh every token alike (DAPO, Yu et al. 2025).

    >>> token_mean([[1, 2], [1]])
    array([0.25, 0.25, 0.25, 0.25])
    """
    total = sum(map(sum, turn_lengths))
    return np.full(total, 1.0 / max(total, 1))


def seq_sum_then_mean(turn_lengths: Sequence[Sequence[int]]) -> Weights:
    """Sum over a sequence, then take the mean over sequences.

    This is the policy gradient of the expected return, without length normalisation.

    >>> seq_sum_then_mean([[1, 2], [1]])
    array([0.5, 0.5, 0.5, 0.5])
    """
    return SeqSumOver(1.0)(turn_lengths)


def seq_mean_then_mean(turn_lengths: Sequence[Sequence[int]]) -> Weights:
    """Return the token weights of a mean over each sequence, then over sequences (GRPO, Shao et al. 2024).

    Tokens of long sequences weigh less: long failures are punished less per token, which can reward padding.

    >>> seq_mean_then_mean([[1, 1], [1]])
    array([0.25, 0.25, 0.5 ])
    """
    return _mean_of_means([sum(turns) for turns in turn_lengths])


def turn_mean(turn_lengths: Sequence[Sequence[int]]) -> Weights:
    """Return the weights of a mean over each turn, then over all turns: long and short actions count equally.

    >>> turn_mean([[2, 1]])
    array([0.25, 0.25, 0.5 ])
    """
    return _mean_of_means([length for turns in turn_lengths for length in turns])


def nested_mean(turn_lengths: Sequence[Sequence[int]]) -> Weights:
    """Take the mean over a turn, then over a sequence's turns, then over sequences (EPO, Xu et al. 2025).

    Turns without tokens are left out.

    >>> nested_mean([[1, 2], [1]])
    array([0.25 , 0.125, 0.125, 0.5  ])
    """
    sequences = [kept for turns in turn_lengths if (kept := [length for length in turns if length > 0])]
    per_turn = [
        (length, 1.0 / (len(sequences) * len(turns) * length)) for turns in sequences for length in turns
    ]
    return np.concatenate([np.zeros(0), *(np.full(length, weight) for length, weight in per_turn)])


@dataclass(frozen=True, slots=True)
class SeqSumOver:
    """Sums over a sequence, divides by ``constant``, and takes the mean over sequences.

    Dr.GRPO, Liu et al. 2025; there ``constant`` is the maximum number of tokens that an episode may have.

    >>> SeqSumOver(2)([[1, 2], [1]])
    array([0.25, 0.25, 0.25, 0.25])
    """

    constant: float

    def __post_init__(self) -> None:
        if not self.constant > 0:
            raise ConfigError(
                f"SeqSumOver divides by a positive constant; found {self.constant}; "
                "give the largest number of tokens that an episode can have"
            )

    def __call__(self, turn_lengths: Sequence[Sequence[int]]) -> Weights:
        """Return the same weight for each token."""
        lengths = [sum(turns) for turns in turn_lengths]
        num_sequences = sum(length > 0 for length in lengths)
        return np.full(sum(lengths), 1.0 / (self.constant * max(num_sequences, 1)))


def _mean_of_means(lengths: Sequence[int]) -> Weights:
    """Return ``1 / (number of spans * length of the token's span)`` for spans that are not empty."""
    spans = np.array([length for length in lengths if length > 0], dtype=np.int64)
    return np.repeat(1.0 / (spans * max(len(spans), 1)), spans)
