"""Gates and refinements of published methods: golden values and laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import amounts, trajectory

from agentrl.errors import ConfigError
from agentrl.rewards.gates import Gates, Level, hierarchy
from agentrl.rewards.refine import (
    PAR,
    ClipReward,
    DeltaReward,
    Milestones,
    OverlongPenalty,
    RewardEnsemble,
    threshold_for,
)
from agentrl.types import End, Task, floats

CLOSE = {"rtol": 0.0, "atol": 1e-5}
LEVELS = (Level(("outcome",), 0.0), Level(("tool",), 0.3), Level(("format",)))


def episode(outcome: float, tool=(0.2, 0.0, 0.2), **more):
    ledger = {"format": floats([0.1] * 3), "tool": floats(tool), "outcome": floats([0.0, 0.0, outcome])}
    return trajectory([1, 1, 1], **more), ledger


def paid(ledger) -> list[float]:
    return [
        round(float(value), 6)
        for value in sum(np.asarray(component, np.float64) for component in ledger.values())
    ]


@pytest.mark.parametrize(
    ("outcome", "inclusive", "total"),
    [
        (-1.0, True, -1.0),
        (-1.0, False, -1.0),
        (0.0, True, 0.7),
        (0.0, False, 0.0),
        (1.0, True, 1.7),
        (1.0, False, 1.7),
    ],
)
def test_small_rewards_count_where_the_large_ones_allow_it(outcome, inclusive, total):
    record, ledger = episode(outcome)
    assert sum(paid(Gates(LEVELS, inclusive)(record, ledger))) == pytest.approx(total, abs=1e-6)


def test_gates_keep_the_turns_apart():
    record, ledger = episode(1.0)
    assert paid(Gates(LEVELS)(record, ledger)) == [0.3, 0.1, 1.3]
    assert paid(Gates(LEVELS)(*episode(-1.0))) == [0.0, 0.0, -1.0]


def test_a_level_below_its_own_threshold_counts_and_shuts_what_is_below():
    assert sum(paid(Gates(LEVELS)(*episode(1.0, tool=(0.2, 0.0, 0.0))))) == pytest.approx(1.2, abs=1e-6)


def test_an_episode_that_was_cut_off_has_no_outcome():
    cut = episode(0.0, end=End.TRUNCATED)
    assert sum(paid(Gates(LEVELS)(*cut))) == 0.0
    assert sum(paid(Gates(LEVELS, truncated_passes=True)(*cut))) == pytest.approx(0.7, abs=1e-6)


def test_hierarchical_rewards_are_gates():
    gates = hierarchy(("correct", 1.0), ("depth", 0.5), ("short", 0.0))
    for totals, expected in (((0.5, 0.9, 0.2), 0.5), ((1.0, 0.3, 0.2), 1.3), ((1.0, 0.8, 0.2), 2.0)):
        ledger = {
            name: floats([value]) for name, value in zip(("correct", "depth", "short"), totals, strict=True)
        }
        assert sum(paid(gates(trajectory([1]), ledger))) == pytest.approx(expected, abs=1e-6)


def test_gauges_say_how_far_an_episode_came():
    assert Gates(LEVELS).gauge(*episode(1.0)) == {"gate/outcome": 1.0, "gate/tool": 1.0}
    assert Gates(LEVELS).gauge(*episode(1.0, tool=(0.2, 0.0, 0.0))) == {"gate/outcome": 1.0, "gate/tool": 0.0}
    assert Gates(LEVELS).gauge(*episode(-1.0)) == {"gate/outcome": 0.0, "gate/tool": 0.0}


def test_gates_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="once"):
        Gates((Level(("a",)), Level(("a", "b"))))
    with pytest.raises(ConfigError, match="once"):
        Gates(())
    with pytest.raises(ConfigError, match="tests, which nothing pays; the ledger has format, outcome, tool"):
        Gates((Level(("tests",), 0.0), Level(("tool",))))(*episode(1.0))


@given(
    st.lists(amounts, min_size=1, max_size=4),
    st.lists(amounts.map(abs), min_size=4, max_size=4),
    amounts,
    amounts,
)
def test_lowering_a_gate_never_lowers_what_is_paid_while_small_rewards_are_not_negative(
    outcomes, small, one, other
):
    num = len(outcomes)
    ledger = {"outcome": floats(outcomes), "small": floats(small[:num])}
    low, high = (
        sum(paid(Gates((Level(("outcome",), gate), Level(("small",))))(trajectory([1] * num), ledger)))
        for gate in sorted((one, other))
    )
    assert low >= high - 1e-6


# Refinements.

SCORES = [0.9, 0.6, 0.8, 0.3]


def refined(scores, *transforms) -> list[float]:
    record, ledger = trajectory([1] * len(scores)), {"prm": floats(scores)}
    for transform in transforms:
        ledger = transform(record, ledger)
    return paid(ledger)


def test_clip_and_delta_and_both():
    np.testing.assert_allclose(refined(SCORES, ClipReward("prm", 0.7)), [0.0, -0.1, 0.0, -0.4], **CLOSE)
    np.testing.assert_allclose(refined(SCORES, DeltaReward("prm")), [0.3, -0.2, 0.8, 0.0], **CLOSE)
    np.testing.assert_allclose(
        refined(SCORES, ClipReward("prm", 0.7), DeltaReward("prm")), [0.1, -0.1, 0.0, 0.0], **CLOSE
    )


def test_an_episode_of_one_turn_has_no_process():
    assert refined([0.1], ClipReward("prm", 0.7)) == refined([0.1], DeltaReward("prm")) == [0.0]
    assert refined([], ClipReward("prm", 0.7), DeltaReward("prm")) == []


@given(st.lists(amounts, min_size=1, max_size=6), st.integers(0, 5))
def test_the_return_of_differences_is_the_score_and_repetition_earns_nothing(scores, at):
    found = refined(scores, DeltaReward("prm"))
    returns = np.cumsum(found[::-1])[::-1]
    np.testing.assert_allclose(returns, [*scores[:-1], 0.0], atol=1e-5)
    at = min(at, len(scores) - 1)
    again = refined([*scores[:at], scores[at], *scores[at:]], DeltaReward("prm"))
    if at < len(scores) - 1:
        assert sum(again) == pytest.approx(sum(found), abs=1e-5)


def test_par_centres_on_the_references():
    def shaped(reward, references):
        record = trajectory([1, 1], task=Task("t", {"references": references}))
        return paid(PAR("r", "references")(record, {"r": floats([5.0, reward])}))

    np.testing.assert_allclose(shaped(1.2, [0.2]), [0.0, 0.731059], **CLOSE)
    np.testing.assert_allclose(shaped(1.2, [0.3, 0.6, -0.1]), [0.0, 0.714147], **CLOSE)
    np.testing.assert_allclose(shaped(-1.0, [0.3, 0.6, -0.1]), [0.0, 0.223732], **CLOSE)
    with pytest.raises(ConfigError, match="reference rewards"):
        shaped(1.0, [])


def test_ensembles_are_no_better_than_their_doubt():
    ledger = {"a": floats([1.0]), "b": floats([2.0]), "c": floats([1.5]), "rest": floats([7.0])}
    for penalty, expected in ((None, 1.0), (0.5, 1.416667), (0.1, 1.483333)):
        found = RewardEnsemble(("a", "b", "c"), "judge", penalty)(trajectory([1]), ledger)
        assert set(found) == {"judge", "rest"}
        np.testing.assert_allclose(found["judge"], [expected], **CLOSE)


def test_length_is_charged_softly_before_the_limit():
    def charge(length, **options):
        found = OverlongPenalty(100, 20, **options)(
            trajectory([length - 30, 30]), {"outcome": floats([0.0, 1.0])}
        )
        return found["overlong"].tolist()

    assert [charge(length, capped=False) for length in (80, 90, 100, 110)] == [
        [0.0, -0.0],
        [0.0, -0.5],
        [0.0, -1.0],
        [0.0, -1.5],
    ]
    assert charge(110) == [0.0, -1.0]
    with pytest.raises(ConfigError, match="buffer"):
        OverlongPenalty(100, 0)


def test_programs_that_do_not_run_are_paid_for_how_far_they_came():
    def run(scored, score, milestones, **options):
        rule = Milestones("score", "scored", "prints", **options)
        signals = [{"prints": milestones - 1}, {"score": score, "scored": scored, "prints": 1.0}]
        return rule(trajectory([1, 1], signals=signals))["outcome"].tolist()

    np.testing.assert_allclose(run(0.0, 0.0, 3.0), [0.0, -9.7], **CLOSE)
    np.testing.assert_allclose(run(1.0, 0.42, 3.0), [0.0, 0.42], **CLOSE)
    np.testing.assert_allclose(run(1.0, 0.42, 3.0, lower_is_better=True), [0.0, -0.42], **CLOSE)


def test_a_threshold_gives_nothing_to_most_scores():
    scores = [round(0.01 * place, 2) for place in range(1, 101)]
    assert np.mean([min(score - threshold_for(scores), 0.0) == 0.0 for score in scores]) == pytest.approx(0.7)


@pytest.mark.parametrize(
    "transform", [ClipReward("judge", 0.5), DeltaReward("judge"), RewardEnsemble(("judge",), "x")], ids=repr
)
def test_a_component_that_nothing_pays_is_named(transform):
    with pytest.raises(ConfigError, match="'judge', which nothing pays; the ledger has outcome"):
        transform(trajectory([1]), {"outcome": floats([1.0])})
