"""Samplers that learn: golden values, exactness against exhaustive search, and state as plain numbers."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import group, trajectory

from agentrl.errors import ConfigError
from agentrl.samplers.adaptive import DUMP, SEC, Knapsack, Phases, VarianceAware, divide_budget, learnability
from agentrl.samplers.filters import Contrast, MostVaried
from agentrl.types import Scored, Task, floats

TASKS = [Task(f"{kind}-{i}", {"kind": kind, "size": i}) for kind in "abc" for i in range(4)]


def kind_of(task: Task) -> str:
    return str(task.data["kind"])


def size_of(task: Task) -> float:
    return float(task.data["size"])


def played(task: Task, successes: int, failures: int):
    outcomes = [1.0] * successes + [0.0] * failures
    return tuple(
        Scored(trajectory([1], signals=[{"success": one}], task=task), {"outcome": floats([one])})
        for one in outcomes
    )


def test_learnability_is_grpos_expected_advantage():
    for successes, expected in ((1, 0.6), (5, 1.0), (9, 0.6), (0, 0.0), (10, 0.0)):
        assert learnability(played(TASKS[0], successes, 10 - successes)) == pytest.approx(expected)


def test_sec_moves_the_value_of_what_was_played():
    sampler = SEC(kind_of, floor=0.0)
    sampler.observe([played(TASKS[4], 8, 2)])  # learnability 0.8
    assert sampler.values == {"b": pytest.approx(0.4)}
    np.testing.assert_allclose(sampler.shares(["a", "b", "c"]), [0.211942, 0.576117, 0.211942], atol=1e-5)


def test_no_kind_is_forgotten():
    assert min(SEC(kind_of, floor=0.1, values={"b": 100.0}).shares(["a", "b", "c"])) == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="lower the floor"):
        SEC(kind_of, floor=0.5).shares(["a", "b", "c"])


def test_dump_tries_what_it_knows_least():
    sampler = DUMP(kind_of, recent={"a": [0.5], "b": [0.1], "c": [0.3]}, counts={"a": 10, "b": 2, "c": 0})
    np.testing.assert_allclose(sampler.bounds(["a", "b", "c"]), [1.182901, 1.407657, 2.564928], atol=1e-5)


def test_dump_forgets_what_is_long_ago():
    sampler = DUMP(kind_of, window=2)
    for successes in (5, 0, 0):
        sampler.observe([played(TASKS[0], successes, 10 - successes)])
    assert sampler.recent == {"a": [0.0, 0.0]}
    assert sampler.counts == {"a": 3}


@pytest.mark.parametrize(
    "make", [lambda: SEC(kind_of), lambda: DUMP(kind_of), lambda: Knapsack(warm_up=1), VarianceAware]
)
def test_a_sampler_goes_on_from_its_state_as_if_it_never_stopped(make):
    def step(sampler, update):
        draws = sampler.draw(TASKS, draw_index=update, num_groups=4, group_size=4, seed=7)
        sampler.observe([played(draw.task, update % 3, draw.num_episodes - update % 3) for draw in draws])
        return draws

    straight, stopped = make(), make()
    expected = [step(straight, update) for update in range(6)]
    assert [step(stopped, update) for update in range(3)] == expected[:3]
    resumed = make()
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert [step(resumed, update) for update in range(3, 6)] == expected[3:]


@pytest.mark.parametrize(
    "make", [lambda: SEC(kind_of), lambda: DUMP(kind_of), lambda: Knapsack(warm_up=1), VarianceAware]
)
def test_no_two_episodes_of_a_task_share_a_number(make):
    sampler = make()
    seen = set()
    for update in range(5):
        draws = sampler.draw(TASKS[:6], draw_index=update, num_groups=6, group_size=4, seed=0)
        assert len(draws) == 6
        for draw in draws:
            numbers = {(draw.task.id, draw.first_sample + i) for i in range(draw.num_episodes)}
            assert not numbers & seen
            seen |= numbers
        sampler.observe([played(draw.task, 1, 1) for draw in draws])


def test_the_knapsack_spends_its_budget_where_outcomes_would_be_mixed():
    rates, sizes = [0.05, 0.3, 0.5, 0.9], [12, 11, 7, 2]
    assert divide_budget(rates, 32) == sizes
    mixed = [1 - p**n - (1 - p) ** n for p, n in zip(rates, sizes, strict=True)]
    np.testing.assert_allclose(mixed, [0.45964, 0.980225, 0.984375, 0.18], atol=1e-5)


@given(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3), st.integers(6, 14))
def test_greedy_is_as_good_as_trying_everything(rates, budget):
    def value(sizes):
        return sum(p * (1 - p) ** 2 * (1 - p**n - (1 - p) ** n) for p, n in zip(rates, sizes, strict=True))

    found = divide_budget(rates, budget, least=2, most=8)
    assert sum(found) == budget
    assert all(2 <= n <= 8 for n in found)
    every = [sizes for sizes in itertools.product(range(2, 9), repeat=3) if sum(sizes) == budget]
    assert value(found) == pytest.approx(max(map(value, every)), abs=1e-9)


def test_a_budget_that_cannot_be_divided_is_refused():
    with pytest.raises(ConfigError, match="does not fit"):
        divide_budget([0.5, 0.5], 3)


def test_phases_let_harder_tasks_in_later():
    sampler = Phases(size_of, ((0, 0.0), (2, 3.0)))
    first, later = (
        sampler.draw(TASKS, draw_index=update, num_groups=3, group_size=2, seed=0) for update in (0, 2)
    )
    assert {draw.task.data["size"] for draw in first} == {0}
    assert {draw.task.data["size"] for draw in later} > {0} or len({draw.task.id for draw in later}) == 3
    with pytest.raises(ConfigError, match="smallest is 0"):
        Phases(size_of, ((0, -1.0),)).draw(TASKS, draw_index=0, num_groups=1, group_size=1, seed=0)
    with pytest.raises(ConfigError, match="first since 0"):
        Phases(size_of, ((1, 1.0),))


def test_the_groups_that_vary_most_are_kept():
    groups = [group(returns) for returns in ([0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1])]
    assert MostVaried(0.25)(groups) == [groups[1]]
    assert MostVaried(0.5)(groups) == [groups[1], groups[2]]
    assert MostVaried(1.0)(groups) == [groups[1], groups[2]]
    assert MostVaried(0.5)([groups[0], groups[3]]) == []


def test_a_contrast_is_best_and_short_against_worst_and_long():
    rewards, lengths = [1, 1, 1, 0, 0, 0, 1, 0], [300, 120, 500, 90, 700, 400, 110, 650]
    members = tuple(
        Scored(trajectory([n]), {"outcome": floats([float(r)])})
        for r, n in zip(rewards, lengths, strict=True)
    )
    assert Contrast(4).choose(members) == [6, 1, 4, 7]
    assert [len(one) for one in Contrast(4)([members, members[:3]])] == [4, 3]
    with pytest.raises(ConfigError, match="even"):
        Contrast(3)
