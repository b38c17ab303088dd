"""Statistics of evaluations: estimators, 95% intervals clustered by task, and paired tests.

Episodes of one task are not independent, so the unit of every interval and test is the *task*: an evaluation
of ``n`` tasks has ``n`` observations, each the mean of the task's episodes (equal weight per task). Axis
``K``: tasks.

Uses only numpy and the standard library. Every random number comes from a fixed seed, so a report can be
reproduced to the last digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Z95 = 1.959963984540054
"""97.5% quantile of the normal distribution."""
_EXACT_TASKS = 14
_NUM_FLIPS = 100_000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the ends of its 95% confidence interval, from ``num_tasks`` tasks."""

    mean: float
    low: float
    high: float
    num_tasks: int


def pass_at_k(num_episodes: int, num_successes: int, k: int) -> float:
    """Estimate the probability that at least one of ``k`` episodes succeeds, ``1 - C(n-c, k) / C(n, k)``.

    The estimate is unbiased (Chen et al. 2021, eq. 1).

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    _check_k(num_episodes, num_successes, k)
    return 1.0 - math.comb(num_episodes - num_successes, k) / math.comb(num_episodes, k)


def pass_hat_k(num_episodes: int, num_successes: int, k: int) -> float:
    """Estimate the probability that all of ``k`` episodes succeed, ``C(c, k) / C(n, k)``.

    The estimate is unbiased (Yao et al. 2024, tau-bench, section 4).

    >>> pass_hat_k(4, 3, 2)
    0.5
    """
    _check_k(num_episodes, num_successes, k)
    return math.comb(num_successes, k) / math.comb(num_episodes, k)


def share_interval(shares_K: Sequence[float] | Array, *, num_episodes: int) -> Interval:
    """Return the mean of per-task shares in [0, 1], with a Wilson interval at the effective sample size.

    ``p = mean(shares)``, ``v = sum((shares - p)^2) / n^2`` (its cluster-robust variance: Liang & Zeger 1986),
    ``m = p (1 - p) / v`` (Kish's effective sample size, as in Korn & Graubard 1998), and then (Wilson 1927)
    ``(p + z^2/2m -+ z sqrt(p (1-p) / m + z^2/4m^2)) / (1 + z^2/m)``.

    ``m`` is at least the number of tasks, because no variable in [0, 1] varies more than a coin flip of the
    same mean, and is clipped at the number of episodes. With one episode per task it is the number of tasks,
    and the result is Wilson's interval. If all tasks have share 0, or all have share 1, it is the number of
    tasks as well: unlike a bootstrap or a t interval, the interval then does not shrink to a point, and it
    never leaves [0, 1].

    >>> all_won = share_interval([1.0] * 100, num_episodes=800)
    >>> round(all_won.low, 3), all_won.high
    (0.963, 1.0)
    """
    shares = np.asarray(shares_K, dtype=np.float64)
    if shares.size == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    assert shares.min() >= 0.0, "a share lies in [0, 1]"
    assert shares.max() <= 1.0, "a share lies in [0, 1]"
    p = float(shares.mean())
    variance = float(np.sum((shares - p) ** 2)) / shares.size**2
    coin = p * (1.0 - p)
    m = float(shares.size)
    if coin > 0.0:
        m = float(np.clip(coin / variance if variance > 0.0 else np.inf, m, max(m, num_episodes)))
    middle = p + Z95**2 / (2 * m)
    half = Z95 * math.sqrt(coin / m + Z95**2 / (4 * m * m))
    scale = 1.0 + Z95**2 / m
    low, high = (middle - half) / scale, (middle + half) / scale
    # at 0 and 1, rounding could put the ends on the wrong side of p
    return Interval(p, min(p, max(0.0, low)), max(p, min(1.0, high)), shares.size)


def mean_interval(values_K: Sequence[float] | Array) -> Interval:
    """Return the mean of per-task values with a t interval, ``mean -+ t_{n-1} s / sqrt(n)``.

    It is cluster-robust, with one cluster per task. With one task the interval is unbounded.
    """
    values = np.asarray(values_K, dtype=np.float64)
    if values.size == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(values.mean())
    if values.size == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    half = t_quantile(values.size - 1) * float(values.std(ddof=1)) / math.sqrt(values.size)
    return Interval(mean, mean - half, mean + half, values.size)


@cache
def t_quantile(degrees: int, probability: float = 0.975) -> float:
    """Return a quantile above the median of Student's t distribution, by bisection.

    >>> round(t_quantile(1), 4), round(t_quantile(10), 4)
    (12.7062, 2.2281)
    """
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_distribution(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def t_distribution(t: float, degrees: int) -> float:
    """Return ``P(T <= t)`` of Student's t distribution for integer degrees of freedom.

    Uses the finite series of Abramowitz & Stegun (1964), 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2 == 1
    term = cosine if odd else 1.0
    total = 0.0 if degrees == 1 else term
    for j in range(3 if odd else 2, degrees - 1, 2):  # the next term has (j - 1) / j cos^2 of the last
        term *= (j - 1) / j * cosine**2
        total += term
    inside = 2.0 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + inside / 2.0


def sign_flip_p_value(differences_K: Sequence[float], *, seed: int = 0) -> float:
    """Return the two-sided p-value of the hypothesis that A and B are equal, by a sign-flip permutation test.

    If A and B are equal, the sign of each task's difference is random. The p-value is the share of
    assignments of signs for which the sum of the differences is at least as far from 0 as the observed sum.
    For up to 14 tasks that differ, all ``2^n`` assignments are tried (Fisher 1935), else 100,000 random ones,
    with the p-value ``(1 + hits) / (1 + flips)`` (Phipson & Smyth 2010 for the added one). Tasks without a
    difference do not change the sum and are left out.
    """
    differences = np.asarray([d for d in differences_K if d != 0.0], dtype=np.float64)
    if differences.size == 0:
        return 1.0
    # a margin, so that sums that differ only by the order of addition count as equal
    reached = abs(differences.sum()) * (1.0 - 1e-12) - 1e-15
    if differences.size <= _EXACT_TASKS:
        codes = np.arange(2**differences.size)[:, None] >> np.arange(differences.size)
        return float(np.mean(np.abs((1 - 2 * (codes & 1)) @ differences) >= reached))
    random = np.random.default_rng(seed)
    hits, block = 0, 2_000
    for _ in range(_NUM_FLIPS // block):
        signs = 1.0 - 2.0 * random.integers(2, size=(block, differences.size), dtype=np.int8)
        hits += int(np.count_nonzero(np.abs(signs @ differences) >= reached))
    return (1 + hits) / (1 + _NUM_FLIPS)


def mcnemar_p_value(only_a: int, only_b: int) -> float:
    """Return the exact two-sided p-value of McNemar's test (1947) that A and B solve equally many tasks.

    ``only_a`` is the number of tasks that only A solved, ``only_b`` that of tasks that only B solved. If A
    and B are equally good, each of these tasks is the flip of a fair coin.

    >>> mcnemar_p_value(1, 9)
    0.021484375
    """
    discordant = only_a + only_b
    tail: int = sum(math.comb(discordant, k) for k in range(min(only_a, only_b) + 1))
    return float(min(1.0, 2 * tail / 2**discordant))


def _check_k(num_episodes: int, num_successes: int, k: int) -> None:
    if not 1 <= k <= num_episodes or not 0 <= num_successes <= num_episodes:
        raise ValueError(
            f"pass@k needs 1 <= k <= episodes and 0 <= successes <= episodes; found k={k}, {num_successes} "
            f"of {num_episodes}"
        )
