"""Batches: credited trajectories as rows of tokens, and their division into minibatches and micro-batches.

Legend: ``L`` the tokens of a row; ``N`` the tokens of a micro-batch; ``A`` its action tokens, sequence after
sequence, in order of time; ``S`` the tokens that are not part of an action, without the
first token of each row.

A row is one *segment*: turns over which the context only grows. A ``fresh`` action, whose prompt does not
continue the context before it, starts the next row of its trajectory. Rows
are never cut and never padded: the learner lays the rows of a micro-batch end to end. The rows of one
trajectory always stay together, because a loss may need whole sequences. The trajectories of a group stay
together if a loss compares them (``whole_groups``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agentrl.types import Credited, FloatArray, IntArray, Measured, Scored, ScoredGroup, seed_of

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A segment of a trajectory. Arrays over ``A`` belong to the tokens at ``positions_A``."""

    tokens_L: IntArray
    positions_A: npt.NDArray[np.int64]
    """The positions of the action tokens in ``tokens_L``; each is at least 1, because nothing predicts the
    first token."""
    turn_A: IntArray
    """The turn of its trajectory that each action token belongs to."""
    behaviour_A: FloatArray
    given_A: BoolArray
    """Whether each token was given to the policy, not sampled from this context (``Trajectory.given``)."""
    advantages_A: FloatArray
    targets_A: FloatArray
    """The critic's target for the state before each action token; NaN if there is none."""
    measured: Measured[FloatArray] = Measured()  # noqa: RUF009 - frozen

    @property
    def is_action_L(self) -> BoolArray:
        """Whether each token belongs to an action."""
        mask_L = np.zeros(len(self.tokens_L), dtype=np.bool_)
        mask_L[self.positions_A] = True
        return mask_L


@dataclass(frozen=True, slots=True, eq=False)
class TrajectoryRows:
    """The rows of one trajectory, in order of time."""

    rows: tuple[Row, ...]
    turn_lengths: tuple[int, ...]
    """Number of action tokens of each turn."""
    group: int = 0
    """Index of the trajectory's group within the update."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all rows, in contexts and actions together."""
        return sum(len(row.tokens_L) for row in self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The trajectories of an update that have tokens, in the order of their groups."""

    sequences: tuple[TrajectoryRows, ...]

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all rows, in contexts and actions together."""
        return sum(sequence.num_tokens for sequence in self.sequences)

    @property
    def num_action_tokens(self) -> int:
        """Number of action tokens in all rows."""
        return sum(sum(sequence.turn_lengths) for sequence in self.sequences)

    @property
    def turn_lengths(self) -> list[tuple[int, ...]]:
        """Number of action tokens in each turn of each sequence: the input of an aggregation."""
        return [sequence.turn_lengths for sequence in self.sequences]

    def units(self, *, whole_groups: bool) -> list[tuple[int, ...]]:
        """Return the units that are never divided: whole groups, or single sequences, as sequence indices."""
        if not whole_groups:
            return [(index,) for index in range(len(self.sequences))]
        members: dict[int, list[int]] = {}
        for index, sequence in enumerate(self.sequences):
            members.setdefault(sequence.group, []).append(index)
        return [tuple(indices) for indices in members.values()]

    def minibatches(self, number: int, seed: int, *, whole_groups: bool = False) -> list[Batch]:
        """Divide the sequences, or groups, at random into ``number`` parts of nearly the same count.

        There are fewer parts if there are fewer sequences or groups.

        If there is only one part, it is the batch itself, in its own order.
        """
        units = self.units(whole_groups=whole_groups)
        number = min(number, len(units))
        if number <= 1:
            return [self] if units else []
        order = np.random.default_rng(seed_of(seed, "minibatches")).permutation(len(units))
        parts = [
            [index for place in part for index in units[place]] for part in np.array_split(order, number)
        ]
        return [Batch(tuple(self.sequences[index] for index in part)) for part in parts]

    def packs(self, token_budget: int, *, whole_groups: bool = False) -> list[tuple[int, ...]]:
        """Divide the sequences into micro-batches of at most ``token_budget`` tokens.

        Return the sequence indices of each.

        The method is first-fit decreasing: the longest sequences (or groups) are placed first. A sequence, or
        group, above the budget is a micro-batch of its own. The same input always gives the same division.
        """
        units = self.units(whole_groups=whole_groups)
        sizes = [sum(self.sequences[index].num_tokens for index in unit) for unit in units]
        packs: list[list[int]] = []
        room: list[int] = []
        for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
            home = next((pack for pack, free in enumerate(room) if free >= sizes[index]), None)
            if home is None:
                packs.append([*units[index]])
                room.append(token_budget - sizes[index])
            else:
                packs[home].extend(units[index])
                room[home] -= sizes[index]
        return [tuple(pack) for pack in packs]


def make_batch(
    groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]] | None = None
) -> Batch:
    """Lay trajectories out as rows.

    ``credited`` has the shape of ``groups``, or is ``None`` if the batch is only measured, not trained on.

    Trajectories without tokens have no rows and are left out.

    Raises:
        ValueError: shapes differ, or an action token has no context before it.
    """
    given: Sequence[Sequence[Credited | None]] = (
        [[None] * len(group) for group in groups] if credited is None else credited
    )
    sequences = [
        TrajectoryRows(tuple(_rows(scored, credit)), tuple(scored.num_tokens_N.tolist()), number)
        for number, (group, credits_) in enumerate(zip(groups, given, strict=True))
        for scored, credit in zip(group, credits_, strict=True)
    ]
    return Batch(tuple(sequence for sequence in sequences if sequence.rows))


def _rows(scored: Scored, credit: Credited | None) -> Iterator[Row]:
    """Yield the rows: ``prompt0 + tokens0 + prompt1 + ...``, and a new row at each fresh action."""
    turns = scored.trajectory.turns
    num_tokens = scored.trajectory.num_tokens
    for name, array in (
        ("advantages", credit.advantages_T if credit else None),
        ("targets", credit.targets_T if credit else None),
        *scored.measured.known().items(),
    ):
        if array is not None and array.shape != (num_tokens,):
            raise ValueError(
                f"{name} of task {scored.trajectory.task.id!r}: {array.shape} numbers for {num_tokens} "
                "action tokens"
            )
    starts = [index for index, turn in enumerate(turns) if index == 0 or turn.action.fresh]
    offset = 0
    for start, stop in pairwise([*starts, len(turns)]):
        row = _row(scored, credit, start, stop, offset)
        offset += len(row.positions_A)
        if len(row.tokens_L):
            yield row


def _row(scored: Scored, credit: Credited | None, start: int, stop: int, offset: int) -> Row:
    actions = [turn.action for turn in scored.trajectory.turns[start:stop]]
    tokens_L = np.concatenate([part for action in actions for part in (action.prompt, action.tokens)])
    lengths = [len(action.tokens) for action in actions]
    is_action_L = np.repeat(
        [False, True] * len(actions),
        [n for action in actions for n in (len(action.prompt), len(action.tokens))],
    )
    positions_A = np.flatnonzero(is_action_L)
    if len(positions_A) and positions_A[0] == 0:
        raise ValueError(
            f"turn {start} of task {scored.trajectory.task.id!r}: an action token has no context before it"
        )
    span = slice(offset, offset + len(positions_A))
    unknown_A = np.full(len(positions_A), np.nan, dtype=np.float32)
    return Row(
        tokens_L=tokens_L,
        positions_A=positions_A,
        turn_A=np.repeat(np.arange(start, stop, dtype=np.int32), lengths),
        behaviour_A=np.concatenate([action.logprobs for action in actions]),
        given_A=np.repeat([action.version < 0 for action in actions], lengths),
        advantages_A=unknown_A if credit is None else credit.advantages_T[span],
        targets_A=unknown_A if credit is None or credit.targets_T is None else credit.targets_T[span],
        measured=Measured(**{need: array_T[span] for need, array_T in scored.measured.known().items()}),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Micro:
    """A micro-batch on the device: its rows, and the data of their action tokens.

    ``predicts_A`` holds the position before each action token; the hidden state there predicts the token.
    """

    rows: tuple[IntArray, ...]
    predicts_A: Tensor
    tokens_A: Tensor
    sequence_A: Tensor
    group_A: Tensor
    turn_A: Tensor
    behaviour_A: Tensor
    given_A: Tensor
    advantages_A: Tensor
    targets_A: Tensor
    measured: Measured[Tensor]
    observes_S: Tensor
    """The position before each token that is not part of an action and has a context."""
    observed_S: Tensor

    @classmethod
    def lay(cls, sequences: Sequence[TrajectoryRows], device: torch.device) -> Micro:
        """Lay ``sequences`` end to end, and shift positions by one, so that each predicts the next token."""
        rows = [row for sequence in sequences for row in sequence.rows]
        tokens_N = np.concatenate([row.tokens_L for row in rows]).astype(np.int64)
        starts = offsets([len(row.tokens_L) for row in rows])
        positions_A = np.concatenate(
            [row.positions_A + start for row, start in zip(rows, starts, strict=True)]
        )
        is_observed_N = np.ones(len(tokens_N), dtype=np.bool_)
        is_observed_N[positions_A] = False
        is_observed_N[starts] = False
        observed_S = np.flatnonzero(is_observed_N)
        counts = [sum(len(row.positions_A) for row in sequence.rows) for sequence in sequences]
        turns = [row.turn_A for row in rows]
        sequence_A = np.repeat(np.arange(len(sequences)), counts)
        groups = np.unique([sequence.group for sequence in sequences], return_inverse=True)[1]

        def put(array: npt.NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(device)

        known = [row.measured.known() for row in rows]
        everywhere = set.intersection(*(set(found) for found in known))

        return cls(
            rows=tuple(row.tokens_L for row in rows),
            predicts_A=put(positions_A - 1),
            tokens_A=put(tokens_N[positions_A]),
            sequence_A=put(sequence_A),
            group_A=put(np.repeat(groups, counts)),
            turn_A=put(_number(sequence_A, np.concatenate(turns))),
            behaviour_A=put(np.concatenate([row.behaviour_A for row in rows])),
            given_A=put(np.concatenate([row.given_A for row in rows])),
            advantages_A=put(np.concatenate([row.advantages_A for row in rows])),
            targets_A=put(np.concatenate([row.targets_A for row in rows])),
            measured=Measured(
                **{need: put(np.concatenate([found[need] for found in known])) for need in sorted(everywhere)}
            ),
            observes_S=put(observed_S - 1),
            observed_S=put(tokens_N[observed_S]),
        )


def _number(sequence_A: npt.NDArray[Any], turn_A: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the number of each token's turn, counting the turns of all sequences from 0."""
    changes_A = np.ones(len(turn_A), dtype=np.bool_)
    changes_A[1:] = (sequence_A[1:] != sequence_A[:-1]) | (turn_A[1:] != turn_A[:-1])
    return np.cumsum(changes_A) - 1


def offsets(lengths: Sequence[int]) -> list[int]:
    """Return where each span starts when spans lie end to end.

    >>> offsets([2, 3, 1])
    [0, 2, 5]
    """
    return [0, *accumulate(lengths)][: len(lengths)]
