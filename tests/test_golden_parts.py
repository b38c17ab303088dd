"""Published examples step by step, with the numbers between input and result, so that no errors cancel."""

import numpy as np
import pytest
from credit_cases import GIGPO, HGPO_WALKS, MT, OUTCOMES, componentwise
from strategies import group, tokens_of, trajectory

from agentrl.credit.anchors import HGPO, GiGPO
from agentrl.credit.components import GDPO, MTGRPO, EpisodeAndSteps
from agentrl.credit.group import BNPO
from agentrl.rewards.refine import RewardEnsemble
from agentrl.samplers.adaptive import VarianceAware, _gain, softmax
from agentrl.types import floats

CLOSE = {"rtol": 0.0, "atol": 1e-5}


def turns_of(rule, members) -> list[list[float]]:
    return [one.advantages_T.astype(np.float64).tolist() for one in rule([members])[0]]


def parts(make, members) -> tuple[list[list[float]], list[list[float]]]:
    """Return what a rule credits without its second part, and what that part adds."""
    alone, both = (turns_of(make(weight), members) for weight in (0.0, 1.0))
    return alone, [
        [b - a for a, b in zip(one, other, strict=True)] for one, other in zip(alone, both, strict=True)
    ]


def assert_rows(found, expected) -> None:
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, numbers in zip(found, expected, strict=True):
        np.testing.assert_allclose(row, numbers, **CLOSE)


def test_istars_two_scores():
    members = componentwise(
        {"implicit": [0.3, -0.05], "outcome": [0, 1]}, {"implicit": [-0.1, -0.1], "outcome": [0, 0]}
    )
    episodes, steps = parts(lambda alpha: EpisodeAndSteps(alpha=alpha), members)
    assert_rows(episodes, [[0.707107] * 2, [-0.707107] * 2])
    assert_rows(steps, [[1.488785, -0.323649], [-0.582568, -0.582568]])


def test_gigpos_episodes_and_places():
    episodes, places = parts(lambda weight: GiGPO(weight=weight), GIGPO)
    assert_rows(episodes, [[0.666667] * 3, [-0.333333] * 2, [-0.333333] * 3])
    assert_rows(places, [[0.601667, 0.475, 0.0], [-0.300833, 0.0], [-0.300833, -0.475, 0.0]])
    episodes, places = parts(lambda weight: GiGPO(weight=weight, deviation=True), GIGPO)
    assert_rows(episodes, [[1.154699] * 3, [-0.577349] * 2, [-0.577349] * 3])
    assert_rows(places, [[1.154698, 0.707106, 0.0], [-0.577349, 0.0], [-0.577349, -0.707106, 0.0]])


def test_hgpos_windows():
    shallow = turns_of(HGPO(depth=0, deviation=False), HGPO_WALKS)
    np.testing.assert_allclose(
        [shallow[0][1], shallow[1][2], shallow[2][1]], [0.466667, 0.016667, -0.483333], **CLOSE
    )
    # with this alpha the second window has nearly all the weight
    deep = turns_of(HGPO(depth=1, alpha=60.0, deviation=False), HGPO_WALKS)
    np.testing.assert_allclose([deep[0][1], deep[2][1]], [0.475, -0.475], **CLOSE)


def test_mt_grpos_two_scores():
    called = [[{"called": 1.0}, {"called": 0.0}]] * 4
    members = componentwise(*MT, signals=called)
    outcomes, tools = parts(lambda alpha: MTGRPO(process="tool", present="called", alpha=alpha), members)
    np.testing.assert_allclose(
        [row[0] for row in outcomes], [0.865875, -0.865875, -0.865875, 0.865875], **CLOSE
    )
    np.testing.assert_allclose([row[0] for row in tools], [0.782532, -1.30422, 0.782532, -0.260844], **CLOSE)


def test_gdpo_of_all_four_pairs():
    members = componentwise(
        {"a": [0], "b": [0]}, {"a": [1], "b": [0]}, {"a": [0], "b": [1]}, {"a": [1], "b": [1]}
    )
    rule = GDPO({"a": 1.0, "b": 1.0})
    np.testing.assert_allclose(rule._sum(members), [-1.731751, 0.0, 0.0, 1.731751], **CLOSE)
    np.testing.assert_allclose(
        [row[0] for row in turns_of(rule, members)], [-1.224658, 0.0, 0.0, 1.224658], **CLOSE
    )


def test_bnpos_fit_and_densities():
    means = np.array([0.25, 0.5, 0.75, 0.25])
    assert (means.mean(), means.var(ddof=1)) == (0.4375, pytest.approx(0.057292, abs=1e-6))
    alpha, beta = BNPO.fit(means)
    np.testing.assert_allclose([3 * (alpha - 1), 3 * (beta - 1)], [1.441761, 1.853693], **CLOSE)
    paid = [group(returns) for returns in ([1, 0, 0, 0], OUTCOMES, [1, 1, 1, 0], [1, 0, 0, 0])]
    best = np.array([tokens_of(credit).max() for credit in BNPO()(paid)])
    np.testing.assert_allclose((1 - means) / best, [1.189387, 1.291778, 1.022844, 1.189387], **CLOSE)


def test_ensembles_of_two_answers():
    ledger = {"a": floats([1.0, 0.9]), "b": floats([2.0, 1.1]), "c": floats([1.5, 1.0])}
    for penalty, expected in (
        (None, [1.0, 0.9]),
        (0.0, [1.5, 1.0]),
        (0.5, [1.416667, 0.996667]),
        (0.1, [1.483333, 0.999333]),
    ):
        found = RewardEnsemble(("a", "b", "c"), "judge", penalty)(trajectory([1, 1]), ledger)
        np.testing.assert_allclose(found["judge"], expected, **CLOSE)


def test_dumps_shares_follow_from_its_bounds():
    np.testing.assert_allclose(softmax([1.182901, 1.407657, 2.564928], 0.1), [1e-6, 9e-6, 0.99999], atol=1e-6)


def test_variance_alone_decides_where_nothing_is_uniform():
    np.testing.assert_allclose(
        VarianceAware(mix=1.0).shares([0.0, 0.25, 0.5, 1.0]), [0.0, 0.428571, 0.571429, 0.0], **CLOSE
    )


def test_the_knapsacks_gains_add_up_to_the_value_of_mixed_outcomes():
    rates = [0.05, 0.3, 0.5, 0.9]
    values = [p * (1 - p) ** 2 for p in rates]
    np.testing.assert_allclose(values, [0.045125, 0.147, 0.125, 0.009], **CLOSE)
    mixed = [sum(_gain(p, n) for n in range(1, 8)) / value for p, value in zip(rates, values, strict=True)]
    np.testing.assert_allclose(mixed, [0.33658, 0.942286, 0.992188, 0.569533], **CLOSE)
