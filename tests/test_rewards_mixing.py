"""Mixing weights that are learned: golden values, laws, and that their state survives a resume."""

import itertools
import json
import math
import shutil
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import ConfigError
from agentrl.losses.clip import Clip
from agentrl.losses.objective import Objective
from agentrl.losses.tis import TokenTIS
from agentrl.recipe.check import check
from agentrl.rescore import Chain, ledger_differences, rescore
from agentrl.rewards.compose import Sum
from agentrl.rewards.mixing import Hypervolume, Lagrangian, hypervolume
from agentrl.rewards.outcome import EnvReward, Outcome
from agentrl.rewards.payment import Payment
from agentrl.types import Action, End, Observation, Task, Trajectory, Turn, floats

CLOSE = {"rtol": 0.0, "atol": 1e-6}
PLAYED = Trajectory(Task("t"), (Turn(Observation.text("o"), Action("a")),) * 2, End.TERMINATED)


def returned(**totals: float) -> dict[str, float]:
    return {f"lagrangian/{name}_return": total for name, total in totals.items()}


def golden() -> Lagrangian:
    found = Lagrangian("kl", {"a": 0.0, "b": 0.0})
    found.load_state_dict({"multipliers": {"a": 0.0, "b": -1.0}, "velocities": {"a": 0.0, "b": 0.0}})
    return found


def test_a_lagrangian_weighs_components_with_sigmoids_of_its_multipliers():
    mixed = golden()(
        PLAYED,
        {
            "kl": floats([0.5, 0.0]),
            "a": floats([0.0, 0.8]),
            "b": floats([-0.4, 0.0]),
            "other": floats([1.0, 1.0]),
        },
    )
    assert mixed["other"].tolist() == [1.0, 1.0]
    assert sum(float(mixed[name].sum()) for name in ("kl", "a", "b")) == pytest.approx(0.907953, abs=1e-6)
    np.testing.assert_allclose(mixed["b"], [-0.4 * 0.268941, 0.0], **CLOSE)


def test_a_lagrangian_steps_against_the_violation():
    found = golden()
    found.observe(returned(a=0.1, b=-0.2))
    assert found.multipliers == pytest.approx({"a": -0.00025, "b": -0.999607}, abs=1e-6)
    assert found.velocities == pytest.approx({"a": 0.025, "b": -0.039322}, abs=1e-6)


def test_momentum_keeps_a_tenth_of_the_last_step():
    found = Lagrangian("kl", {"a": 1.0}, lr=0.5, momentum=0.1)
    found.observe(returned(a=2.0))  # slope 0.25
    assert found.multipliers["a"] == pytest.approx(-0.125)
    found.observe(returned(a=1.0))  # at the threshold: momentum alone
    assert found.velocities["a"] == pytest.approx(0.025)
    assert found.multipliers["a"] == pytest.approx(-0.1375)


@given(st.floats(-3, 3), st.floats(-2, 2), st.floats(-2, 2), st.booleans())
def test_a_component_that_falls_short_counts_more_and_one_that_exceeds_less(
    multiplier, threshold, mean, equality
):
    found = Lagrangian("main", {"a": threshold}, ("a",) if equality else (), lr=0.1)
    found.load_state_dict({"multipliers": {"a": multiplier}, "velocities": {"a": 0.0}})
    before = found.weights
    found.observe(returned(a=mean))
    after = found.weights
    assert (after["a"] - before["a"]) * (threshold - mean) >= 0
    assert sum(after.values()) == pytest.approx(1.0)
    assert (-1 <= after["a"] <= 1) if equality else (0 <= after["a"] <= 1)


def test_an_equality_turns_against_what_exceeds_it():
    found = Lagrangian("main", {"a": 0.0}, equalities=("a",), lr=0.1)
    for _ in range(5):
        found.observe(returned(a=1.0))
    assert found.weights["a"] < 0 < found.weights["main"]


def test_huge_multipliers_overflow_nothing():
    found = Lagrangian("main", {"a": 0.0})
    for multiplier, weight in ((-1e6, 0.0), (1e6, 1.0)):
        found.multipliers["a"] = multiplier
        assert found.weights == {"main": 1.0 - weight, "a": weight}


def test_updates_without_episodes_teach_nothing():
    for found in (golden(), Hypervolume(("a",))):
        before = found.state_dict()
        found.observe({"gate/x": 1.0})
        assert found.state_dict() == before


def test_progress_is_paid_by_the_volume_it_adds():
    found = Hypervolume(("a", "b"))
    assert found.weight == 0.5
    for point in ((0.2, 0.2), (0.6, 0.4), (0.4, 0.7)):
        found.observe({"hypervolume/a_return": point[0], "hypervolume/b_return": point[1]})
    assert hypervolume(found.front, found.reference) == pytest.approx(0.14)
    found.observe({"hypervolume/a_return": 0.65, "hypervolume/b_return": 0.6})
    assert hypervolume(found.front, found.reference) == pytest.approx(0.20)
    assert found.front == [[0.4, 0.7], [0.65, 0.6]]
    assert found.weight == pytest.approx(0.589892, abs=1e-6)
    paid = found(PLAYED, {"a": floats([1.0, 0.0]), "c": floats([0.0, -2.0])})
    np.testing.assert_allclose(paid["c"], [0.0, -2 * 0.589892], **CLOSE)
    found.observe({"hypervolume/a_return": 0.65, "hypervolume/b_return": 0.6})
    assert found.weight == 0.5


@st.composite
def fronts(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    axes = draw(st.integers(1, 4))
    point = st.tuples(*[st.integers(-1, 4)] * axes)
    return draw(st.lists(point, max_size=6)), tuple([0] * axes)


@given(fronts())
def test_the_hypervolume_counts_the_cells_that_are_dominated(case):
    points, reference = case
    dominated = [
        cell
        for cell in itertools.product(range(4), repeat=len(reference))
        if any(all(low < high for low, high in zip(cell, point, strict=True)) for point in points)
    ]
    assert hypervolume(points, reference) == len(dominated)


@given(fronts())
def test_a_front_that_forgets_what_is_dominated_has_the_same_volume(case):
    points, reference = case
    found = Hypervolume(tuple("abcd"[: len(reference)]))
    for place, point in enumerate([reference, *points]):
        before = hypervolume(points[: max(place - 1, 0)], reference)
        found.observe(
            {
                f"hypervolume/{name}_return": Fraction(value)
                for name, value in zip(found.components, point, strict=True)
            }
        )
        after = hypervolume(points[:place], reference)
        assert hypervolume(found.front, reference) == after
        assert found.gain == after - before >= 0


def test_a_payment_shows_its_transforms_what_was_paid_before_them():
    first, second = Lagrangian("env", {"outcome": 0.5}, lr=1.0), Hypervolume(("outcome",))
    payment = Payment(reward=Sum((EnvReward(), Outcome())), transforms=(first, second))
    won = replace(PLAYED, turns=(PLAYED.turns[0], replace(PLAYED.turns[1], info={"success": 1.0})))
    gauges: dict[str, list[float]] = {}
    payment.score([(won, won), (won, PLAYED)], gauges)
    assert gauges["lagrangian/outcome_return"] == [1.0, 1.0, 1.0, 0.0]
    assert gauges["lagrangian/outcome"] == [0.5] * 4
    assert gauges["hypervolume/outcome_return"] == [0.5, 0.5, 0.5, 0.0]
    memory = payment.observe(gauges)
    assert first.multipliers["outcome"] == pytest.approx(-0.25 * 0.25)
    assert second.reference == [0.375]
    fresh = replace(
        payment, transforms=(Lagrangian("env", {"outcome": 0.5}, lr=1.0), Hypervolume(("outcome",)))
    )
    fresh.recall(memory)
    assert fresh.memory() == payment.memory() == memory


def mixing(staleness: int):
    mixed = (Hypervolume(("env", "outcome")), Lagrangian("env", {"outcome": 0.6}, lr=5.0))
    source = replace(tiny.LEARN.source, max_staleness=staleness)
    objective = Objective(loss=Clip(), off_policy=TokenTIS())
    stage = replace(
        tiny.LEARN,
        source=source,
        reward=Sum((EnvReward(), Outcome())),
        transforms=mixed,
        objective=objective,
        evaluate=False,
    )
    return tiny.only(stage, checkpoints=replace(tiny.recipe.checkpoints, keep=9))


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_checkpoint_holds_the_mixture_that_the_next_update_is_paid_with(staleness, tmp_path):
    recipe = mixing(staleness)
    tiny.run(recipe, tmp_path)
    weights = tiny.numbers(tmp_path, "lagrangian/outcome")
    for update in range(1, recipe.updates):
        kept = json.loads((tmp_path / "checkpoints" / f"{update:06d}" / "learner.json").read_text())["extra"][
            "transforms"
        ]["learn"]
        assert weights[update] == pytest.approx(
            1.0 / (1.0 + math.exp(-kept[1]["multipliers"]["outcome"])), abs=1e-12
        )


def test_a_run_that_lost_its_last_updates_mixes_as_if_it_had_not(tmp_path):
    recipe, whole, killed = mixing(0), tmp_path / "whole", tmp_path / "killed"
    tiny.run(recipe, whole)
    weights = tiny.numbers(whole, "lagrangian/outcome")
    assert weights[0] == 0.5
    assert len(set(weights)) == recipe.updates
    shutil.copytree(whole, killed)
    for name in ("000003", "000004"):
        shutil.rmtree(killed / "checkpoints" / name)
    tiny.run(recipe, killed)
    found, expected = tiny.remains(killed), tiny.remains(whole)
    assert [name for name in expected if found.get(name) != expected[name]] == []


def test_rescoring_a_run_that_mixed_gives_its_own_numbers(tmp_path):
    recipe = mixing(0)
    tiny.run(recipe, tmp_path)
    (stage,) = recipe.stages
    chain = Chain(
        reward=stage.reward, transforms=stage.transforms, credit=stage.credit, modifiers=stage.modifiers
    )
    for _ in range(2):  # rescoring does not change the chain
        assert all(
            one.changed == 0.0 for one in ledger_differences(list(rescore(tiny.stored(tmp_path), chain)))
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lagrangian("a", {}), "constraints on nothing"),
        (lambda: Lagrangian("a", {"a": 1.0}), "on other components than its objective"),
        (lambda: Lagrangian("a", {"b": 1.0}, equalities=("c",)), r"equalities \('c',\)"),
        (lambda: Lagrangian("a", {"b": 1.0}, momentum=1.0), "0 <= momentum < 1; found 0.01 and 1.0"),
        (lambda: Hypervolume(()), "found none"),
        (lambda: Hypervolume(("a", "a")), "different components; found a, a"),
        (lambda: Hypervolume(("a",), low=0.0), "low > 0 and span >= 0"),
        (
            lambda: Lagrangian("a", {"b": 1.0})(PLAYED, {"a": floats([0, 0])}),
            "rewrites 'b', which nothing pays",
        ),
        (
            lambda: Hypervolume(("b",)).gauge(PLAYED, {"a": floats([0, 0])}),
            "rewrites 'b', which nothing pays",
        ),
    ],
)
def test_mixtures_that_mean_nothing_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_demonstrations_teach_no_mixture():
    stage = replace(
        tiny.WARM, reward=Sum((EnvReward(), Outcome())), transforms=(Lagrangian("env", {"outcome": 0.5}),)
    )
    with pytest.raises(
        ConfigError,
        match="Lagrangian learns from what the agent does, and the episodes of Demonstrations stay",
    ):
        check(tiny.only(stage))
