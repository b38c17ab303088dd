from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import group, scored

from agentrl.errors import ConfigError
from agentrl.samplers.filters import DynamicSampling, KeepAll
from agentrl.samplers.uniform import Sequential, Uniform
from agentrl.types import Scored, ScoredGroup, Task, floats

TASKS = [Task(f"task {index}") for index in range(7)]


def draws(sampler, updates: int, *, tasks=TASKS, num_groups: int = 3, group_size: int = 4, seed: int = 0):
    return [
        draw
        for update in range(updates)
        for draw in sampler.draw(
            tasks, draw_index=update, num_groups=num_groups, group_size=group_size, seed=seed
        )
    ]


@pytest.mark.parametrize("sampler", [Uniform(), Sequential()])
@given(num_groups=st.integers(1, 20), updates=st.integers(1, 9))
def test_every_task_comes_once_per_epoch(sampler, num_groups, updates):
    row = [draw.task.id for draw in draws(sampler, updates, num_groups=num_groups)]
    assert len(row) == num_groups * updates
    for start in range(0, len(row), len(TASKS)):
        epoch = row[start : start + len(TASKS)]
        assert len(set(epoch)) == len(epoch)


@pytest.mark.parametrize("sampler", [Uniform(), Sequential()])
@given(num_groups=st.integers(1, 20), group_size=st.integers(1, 5))
def test_no_sample_of_a_task_is_numbered_twice(sampler, num_groups, group_size):
    row = draws(sampler, 5, num_groups=num_groups, group_size=group_size)
    samples = Counter((draw.task.id, draw.first_sample + k) for draw in row for k in range(draw.num_episodes))
    assert max(samples.values()) == 1
    assert sum(samples.values()) == 5 * num_groups * group_size


def test_the_order_is_another_in_each_epoch_and_for_each_seed():
    orders = {
        tuple(draw.task.id for draw in draws(Uniform(), 1, num_groups=7, seed=seed)) for seed in range(20)
    }
    assert len(orders) == 20
    first, second = (
        Uniform().draw(TASKS, draw_index=update, num_groups=7, group_size=1, seed=0) for update in (0, 1)
    )
    assert [draw.task for draw in first] != [draw.task for draw in second]


def test_every_task_is_as_likely_to_come_first():
    firsts = Counter(
        Uniform().draw(TASKS, draw_index=0, num_groups=1, group_size=1, seed=seed)[0].task.id
        for seed in range(2100)
    )
    assert all(240 < count < 360 for count in firsts.values())  # 300 expected, deviation 16


def test_an_update_does_not_depend_on_the_order_of_the_tasks_or_on_the_updates_before():
    straight = Uniform().draw(TASKS, draw_index=5, num_groups=3, group_size=4, seed=0)
    assert Uniform().draw(TASKS[::-1], draw_index=5, num_groups=3, group_size=4, seed=0) == straight
    assert draws(Uniform(), 6)[-3:] == straight


def test_sequential_keeps_the_order_of_the_split():
    assert [draw.task for draw in draws(Sequential(), 3)] == [*TASKS, *TASKS[:2]]


@pytest.mark.parametrize("sampler", [Uniform(), Sequential()])
def test_no_tasks_is_an_error(sampler):
    with pytest.raises(ConfigError, match="no tasks"):
        draws(sampler, 1, tasks=[])


def test_groups_that_all_won_or_all_lost_are_dropped():
    groups = [group([0, 0]), group([0, 1]), group([1, 1])]
    assert DynamicSampling()(groups) == [groups[1]]
    assert KeepAll()(groups) == groups


def test_what_counts_is_the_outcome_and_not_the_shaped_reward():
    def fined(fines: list[float]) -> ScoredGroup:
        return tuple(
            replace(one, ledger={**one.ledger, "format": floats([fine])})
            for one, fine in zip(group([0, 0]), fines, strict=True)
        )

    assert DynamicSampling()([fined([-0.05, 0.0])]) == []
    assert len(DynamicSampling(component="format")([fined([-0.05, 0.0])])) == 1


def test_an_outcome_is_that_of_the_whole_episode():
    assert len(DynamicSampling()([(scored([0, 1]), scored([1]), scored([]))])) == 1
    assert DynamicSampling()([(scored([0, 1]), scored([1]))]) == []


def test_a_component_that_nobody_pays_is_an_error():
    stranger = (Scored(scored([1.0]).trajectory, {"env": floats([1.0])}),)
    with pytest.raises(ConfigError, match="'outcome'; the ledger has env"):
        DynamicSampling()([stranger])
