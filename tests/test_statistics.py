import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.evaluation.statistics import (
    mcnemar_p_value,
    mean_interval,
    pass_at_k,
    pass_hat_k,
    share_interval,
    sign_flip_p_value,
    t_distribution,
    t_quantile,
)


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets(numbers):
    n, c, k = numbers
    episodes = [True] * c + [False] * (n - c)
    subsets = list(itertools.combinations(episodes, k))
    assert pass_at_k(n, c, k) == pytest.approx(np.mean([any(subset) for subset in subsets]))
    assert pass_hat_k(n, c, k) == pytest.approx(np.mean([all(subset) for subset in subsets]))


@pytest.mark.parametrize(("p", "k"), [(0.3, 3), (0.8, 2)])
def test_pass_at_k_is_unbiased(p, k):
    n = 6
    chance = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    assert sum(w * pass_at_k(n, c, k) for c, w in enumerate(chance)) == pytest.approx(1 - (1 - p) ** k)
    assert sum(w * pass_hat_k(n, c, k) for c, w in enumerate(chance)) == pytest.approx(p**k)


@pytest.mark.parametrize("numbers", [(4, 2, 5), (4, 2, 0), (4, 5, 2)])
def test_pass_at_k_refuses_what_it_cannot_estimate(numbers):
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(*numbers)


@pytest.mark.parametrize(
    ("degrees", "quantile"),  # the printed tables of Student's t, 97.5%
    [
        (1, 12.7062),
        (2, 4.3027),
        (3, 3.1824),
        (4, 2.7764),
        (5, 2.5706),
        (10, 2.2281),
        (30, 2.0423),
        (100, 1.9840),
        (10_000, 1.9602),
    ],
)
def test_t_quantiles_are_those_of_the_tables(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=5e-5)


@pytest.mark.parametrize("degrees", [1, 2, 3, 6, 9])
def test_the_t_distribution_is_the_integral_of_its_density(degrees):
    x = np.linspace(0, 1.7, 20_001)
    norm = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    assert t_distribution(1.7, degrees) == pytest.approx(
        0.5 + np.trapezoid(norm * (1 + x**2 / degrees) ** (-(degrees + 1) / 2), x), abs=1e-9
    )


def wilson(successes, n, z=1.959963984540054):
    p = successes / n
    middle, half = (p + z * z / (2 * n)), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_with_one_episode_per_task_the_interval_is_wilsons(numbers):
    successes, n = numbers
    found = share_interval([1.0] * successes + [0.0] * (n - successes), num_episodes=n)
    low, high = wilson(successes, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


def test_wilsons_interval_has_its_published_value():
    found = share_interval([1.0] * 81 + [0.0] * (263 - 81), num_episodes=263)  # Newcombe 1998, table I
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_repeating_episodes_never_counts_for_more_than_they_are(successes):
    shares = [count / 4 for count in successes]
    found = share_interval(shares, num_episodes=4 * len(shares))
    assert 0 <= found.low <= found.mean <= found.high <= 1
    independent = wilson(sum(successes), 4 * len(shares))
    assert found.high - found.low >= independent[1] - independent[0] - 1e-9


def test_tasks_that_agree_with_themselves_count_once():
    once = share_interval([1.0, 0.0, 1.0, 1.0], num_episodes=4)
    assert share_interval([1.0, 0.0, 1.0, 1.0], num_episodes=64) == once


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 2.0), (0.3, 0.1), (9.0, 1.0)])
def test_the_share_interval_covers_the_truth(alpha, beta):
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(1_000):
        shares = random.binomial(4, random.beta(alpha, beta, size=50)) / 4
        interval = share_interval(shares, num_episodes=200)
        hits += interval.low <= alpha / (alpha + beta) <= interval.high
    assert 0.93 <= hits / 1_000 <= 0.985


def test_a_mean_interval_by_hand():
    found = mean_interval([1.0, 2.0, 3.0, 6.0])  # mean 3, deviations -2 -1 0 3, s^2 = 14/3, t_3 = 3.1824
    half = 3.182446 * math.sqrt(14 / 3 / 4)
    assert (found.mean, found.low, found.high) == (
        3.0,
        pytest.approx(3 - half, abs=1e-5),
        pytest.approx(3 + half, abs=1e-5),
    )


def test_one_task_bounds_nothing_and_no_task_says_nothing():
    assert mean_interval([2.0]).high == math.inf
    assert math.isnan(mean_interval([]).mean)
    assert math.isnan(share_interval([], num_episodes=0).low)


def flips_by_hand(differences):
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return np.mean([total >= abs(sum(differences)) - 1e-12 for total in sums])


@given(st.lists(st.integers(-8, 8).map(lambda n: n / 8), max_size=8))
def test_the_permutation_test_is_exact_where_it_can_be(differences):
    assert sign_flip_p_value(differences) == pytest.approx(flips_by_hand(differences))
    assert sign_flip_p_value([-d for d in differences]) == sign_flip_p_value(differences)


@given(st.integers(0, 7), st.integers(0, 7), st.integers(0, 5))
def test_on_binary_tasks_the_permutation_test_is_mcnemars(only_a, only_b, same):
    differences = [1.0] * only_a + [-1.0] * only_b + [0.0] * same
    assert sign_flip_p_value(differences) == pytest.approx(mcnemar_p_value(only_a, only_b))


def test_the_random_permutation_test_agrees_with_the_exact_one_and_repeats():
    differences = [1.0] * 18 + [-1.0] * 7
    assert sign_flip_p_value(differences) == pytest.approx(mcnemar_p_value(18, 7), abs=0.003)
    assert sign_flip_p_value(differences) == sign_flip_p_value(differences)
    assert sign_flip_p_value([1.0] * 60) == pytest.approx(1e-5, rel=0.01)


def test_mcnemar_by_hand():
    assert mcnemar_p_value(1, 9) == 2 * (1 + 10) / 1024
    assert mcnemar_p_value(0, 0) == mcnemar_p_value(3, 3) == 1.0
