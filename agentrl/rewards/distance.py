"""The distance between two rewards: EPIC (Gleave et al. 2021, "Quantifying differences in reward functions").

The distance is 0 if one reward is the other times a positive number plus a constant, and 1 if they are
opposed. Rewards that differ by shaping with a potential have the same optimal policies; ``canonical`` turns
them into the same table, so that their distance is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from agentrl.rewards import Reward
from agentrl.types import Ledger, Trajectory

Array = npt.NDArray[np.float64]
Numbers = Sequence[float] | npt.NDArray[Any]


def epic_distance(one: Numbers, other: Numbers) -> float:
    """Return ``sqrt((1 - rho) / 2)``, in [0, 1]; ``rho`` is Pearson's correlation of two rewards.

    ``one`` and ``other`` are the payments of two rewards for the same steps. Equal rewards have the distance
    0. A constant reward contains no information about the other: ``rho`` is 0 and the distance
    ``sqrt(1 / 2)``.

    >>> round(epic_distance([0.0, 0.25, 0.5, 1.0], [0.1, 0.2, 0.7, 0.8]), 5)
    0.20369

    Raises:
        ValueError: the numbers of steps differ or are 0, or a number is not finite.
    """
    a, b = (np.asarray(values, dtype=np.float64).ravel() for values in (one, other))
    if a.shape != b.shape or not len(a):
        raise ValueError(
            f"a distance needs what both rewards pay for the same steps; found {len(a)} and {len(b)} numbers"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a distance needs finite rewards; found NaN or infinity")
    if np.array_equal(a, b):
        return 0.0
    a, b = (_unit(values) for values in (a, b))
    return math.sqrt(min(max((1.0 - float(a @ b)) / 2.0, 0.0), 1.0))


def reward_distance(one: Reward, other: Reward, trajectories: Sequence[Trajectory]) -> float:
    """Return the EPIC distance between what two rewards pay for all turns of ``trajectories``.

    Components are added, and ``canonical`` is not applied, so rewards that differ by a potential have a
    distance above 0. The StateFactory paper measures the distance this way, over the successes and failures
    of a task together.
    """
    return epic_distance(
        *(
            np.concatenate([np.zeros(0), *(_paid(pay(trajectory)) for trajectory in trajectories)])
            for pay in (one, other)
        )
    )


def canonical(
    rewards_SAS: npt.NDArray[Any],
    *,
    gamma: float,
    weights_S: Numbers | None = None,
    weights_A: Numbers | None = None,
) -> Array:
    """Return the canonical form of a reward table, equal for rewards that differ by a potential.

    The form is ``R(s,a,s') + E[gamma R(s',A,S') - R(s,A,S') - gamma R(S,A,S')]``, with the axes state,
    action, next state. ``S`` and ``S'`` are drawn from ``weights_S`` and ``A`` from ``weights_A``,
    independently (by default uniformly); the weights add up to 1.
    """
    table = np.asarray(rewards_SAS, dtype=np.float64)
    states, actions = table.shape[:2]
    states_S = np.full(states, 1.0 / states) if weights_S is None else np.asarray(weights_S, dtype=np.float64)
    actions_A = (
        np.full(actions, 1.0 / actions) if weights_A is None else np.asarray(weights_A, dtype=np.float64)
    )
    mean_S = np.einsum("sat,a,t->s", table, actions_A, states_S)
    return np.asarray(
        table + gamma * mean_S[None, None, :] - mean_S[:, None, None] - gamma * float(states_S @ mean_S)
    )


def _unit(values: Array) -> Array:
    """Return ``values`` centred and of length 1; zeros if they are all equal."""
    offsets = values - values[0]  # equal values then are exactly 0
    largest = float(np.abs(offsets).max())
    if largest == 0.0:
        return np.zeros(len(values))
    offsets = offsets / largest
    offsets = offsets - offsets.mean()
    return np.asarray(offsets / np.linalg.norm(offsets))


def _paid(ledger: Ledger) -> Array:
    return np.asarray(
        sum(np.asarray(paid_N, dtype=np.float64) for paid_N in ledger.values()), dtype=np.float64
    )
