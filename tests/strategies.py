"""Trajectories for tests: small ones written down, and random ones for hypothesis."""

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from agentrl.types import (
    Action,
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


def trajectory(
    lengths: Sequence[int],
    *,
    signals: Sequence[dict[str, float]] | None = None,
    rewards: Sequence[float] | None = None,
    observations: Sequence[str] | None = None,
    logprobs: Sequence[Sequence[float]] | None = None,
    prompt: int = 1,
    end: End = End.TERMINATED,
    task: Task | None = None,
    sample: int = 0,
) -> Trajectory:
    turns = []
    for n, length in enumerate(lengths):
        sampled = logprobs[n] if logprobs else [-1.0] * length
        action = Action("a", ints([7] * prompt), ints(list(range(length))), floats(sampled), version=0)
        seen = Observation.text(observations[n] if observations else f"turn {n}")
        turns.append(Turn(seen, action, rewards[n] if rewards else 0.0, signals[n] if signals else {}))
    return Trajectory(task or Task("task"), tuple(turns), end, sample)


def scored(
    rewards: Sequence[float],
    lengths: Sequence[int] | None = None,
    *,
    values: Sequence[float] | None = None,
    **more,
) -> Scored:
    """Return a trajectory that is paid ``rewards``, one per turn.

    Every turn has one token unless ``lengths`` are given.
    """
    lengths = [1] * len(rewards) if lengths is None else lengths
    return Scored(
        trajectory(lengths, **more),
        {"outcome": floats(rewards)},
        measured=Measured(values=None if values is None else floats(values)),
    )


def group(returns: Sequence[float]) -> ScoredGroup:
    """Return a group with one episode for each return; each has one turn of one token."""
    return tuple(scored([value]) for value in returns)


amounts = st.integers(-16, 16).map(lambda n: n / 8.0)
"""Rewards that float32 and float64 hold exactly, so that laws can be checked tightly."""


@st.composite
def scored_trajectories(
    draw: st.DrawFn, *, values: bool = True, min_turns: int = 0, min_tokens: int = 0
) -> Scored:
    lengths = draw(st.lists(st.integers(min_tokens, 4), min_size=min_turns, max_size=5))
    rewards = draw(st.lists(amounts, min_size=len(lengths), max_size=len(lengths)))
    places = draw(st.lists(st.sampled_from("abc"), min_size=len(lengths), max_size=len(lengths)))
    end = draw(st.sampled_from([End.TERMINATED, End.TRUNCATED]))
    critic = draw(st.lists(amounts, min_size=sum(lengths), max_size=sum(lengths))) if values else None
    return scored(
        rewards, lengths, values=critic, observations=places, end=end, prompt=draw(st.integers(0, 3))
    )


@st.composite
def scored_groups(draw: st.DrawFn, *, min_size: int = 2, max_size: int = 5, **more) -> ScoredGroup:
    return tuple(draw(st.lists(scored_trajectories(**more), min_size=min_size, max_size=max_size)))


turn_lengths = st.lists(st.lists(st.integers(0, 4), max_size=4), max_size=5)


def tokens_of(group_of_credit) -> np.ndarray:
    """Return all advantages of a group, one after the other."""
    return np.concatenate([np.zeros(0), *(credited.advantages_T for credited in group_of_credit)])
