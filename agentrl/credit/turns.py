"""Array operations that credit rules share, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from agentrl.types import Credited, End, FloatArray, IntArray, Need, Scored, ScoredGroup, floats

Array = npt.NDArray[np.float64]
Singleton = Literal["zero", "raw"]
"""What a group of one is credited: zero, as there is nothing to compare with, or its raw return, as some
published code does."""


def returns_to_go(rewards_N: Array, *, gamma: float) -> Array:
    """Return the discounted return from each turn on, ``G_n = r_n + gamma * G_{n+1}``.

    Sutton & Barto 2018, eq. 3.9.

    >>> returns_to_go(np.array([0.0, 0.0, 1.0]), gamma=0.5)
    array([0.25, 0.5 , 1.  ])
    """
    returns_N = np.zeros(len(rewards_N))
    following = 0.0
    for n in reversed(range(len(rewards_N))):
        following = float(rewards_N[n]) + gamma * following
        returns_N[n] = following
    return returns_N


def spread(per_turn_N: Array, num_tokens_N: IntArray) -> FloatArray:
    """Repeat each turn's number for each of its action tokens; turns without tokens are dropped.

    >>> spread(np.array([0.5, 9.0, -1.0]), np.array([2, 0, 1], dtype=np.int32))
    array([ 0.5,  0.5, -1. ], dtype=float32)
    """
    return floats(np.repeat(per_turn_N, num_tokens_N))


def centred(values: Array) -> Array:
    """Subtract the mean from the values; if all are equal, the result is exactly 0, not a rounding error.

    >>> centred(np.array([0.1, 0.1, 0.1]))
    array([0., 0., 0.])
    """
    offsets = values - values[:1]
    return np.asarray(offsets - offsets.mean()) if len(values) else values


def standardised(values: Array, *, ddof: int, eps: float | None) -> Array:
    """Subtract the mean from the values and divide by ``std + eps``; if ``eps`` is None, do not divide.

    Fewer than two values, and values that are all equal, give exactly 0.

    >>> standardised(np.array([1.0, 3.0]), ddof=0, eps=0.0)
    array([-1.,  1.])
    """
    offsets = centred(values)
    if eps is None or len(values) < 2:
        return offsets
    return np.asarray(offsets / (float(values.std(ddof=ddof)) + eps)) if offsets.any() else offsets


def checked(groups: Sequence[ScoredGroup], needs: frozenset[Need] = frozenset()) -> Sequence[ScoredGroup]:
    """Return ``groups`` after asserting what the training loop guarantees to credit rules.

    It guarantees that no episode failed, and that each measurement in ``needs`` has one value per action
    token.
    """
    for scored in (one for group in groups for one in group):
        name = f"{scored.trajectory.task.id}#{scored.trajectory.sample}"
        assert scored.trajectory.end is not End.FAILED, f"a failed episode reached credit: {name}"
        for need in needs:
            measured = scored.measured.get(need)
            assert measured is not None, f"{need} were not measured for {name}"
            assert len(measured) == scored.trajectory.num_tokens, (
                f"{need} of {name} are not one per action token"
            )
    return groups


def with_advantages(
    groups: Sequence[ScoredGroup],
    credited: Sequence[tuple[Credited, ...]],
    rule: Callable[[Scored, Array], npt.NDArray[np.floating]],
) -> list[tuple[Credited, ...]]:
    """Replace the advantages of each trajectory with ``rule(scored, advantages_T)``.

    ``rule`` is called once for each trajectory, in order, with the advantages in float64. The critic's
    targets are unchanged.
    """
    return [
        tuple(
            replace(one, advantages_T=floats(rule(scored, one.advantages_T.astype(np.float64))))
            for scored, one in zip(group, credit, strict=True)
        )
        for group, credit in zip(groups, credited, strict=True)
    ]


def per_episode(group: ScoredGroup, advantages_G: Array) -> tuple[Credited, ...]:
    """Credit every token of an episode with the episode's advantage."""
    return tuple(
        per_turn(scored, np.full(len(scored.trajectory.turns), a))
        for scored, a in zip(group, advantages_G, strict=True)
    )


def per_turn(scored: Scored, advantages_N: Array) -> Credited:
    """Credit every token of a turn with the turn's advantage."""
    return Credited(spread(advantages_N, scored.num_tokens_N))
