"""Similarity of states, and the distance between rewards: golden values and laws."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import amounts, trajectory

from agentrl.errors import ConfigError
from agentrl.rewards.distance import canonical, epic_distance, reward_distance
from agentrl.rewards.outcome import EnvReward, Process
from agentrl.rewards.similarity import (
    CosineSimilarity,
    ObservedStates,
    StateSimilarity,
    Thing,
    state_of,
    state_similarity,
    trigram_similarity,
)
from agentrl.types import Observation, Task, Trajectory

CLOSE = {"rtol": 0.0, "atol": 1e-5}
TABLE = {
    ("goal", "one"): 0.9,
    ("goal", "two"): 0.4,
    ("key", "key 1"): 0.8,
    ("key", "key 2"): 0.95,
    ("key", "key 3"): 0.99,
    ("value", "value 1"): 0.2,
    ("value", "value 2"): 0.7,
    ("value", "value 3"): 1.0,
    ("second", "one"): 0.5,
    ("second", "two"): 0.1,
}
WANTED = Thing("goal", (("key", "value"),))
ONE = Thing("one", (("key 1", "value 1"), ("key 2", "value 2")))
TWO = Thing("two", (("key 3", "value 3"),))


def by_table(one: str, other: str) -> float:
    return TABLE[one, other]


# Similarity.


def test_a_goal_is_as_near_as_the_thing_that_is_most_like_it():
    assert [state_similarity((thing,), (WANTED,), by_table) for thing in (ONE, TWO)] == [
        pytest.approx(0.63),
        pytest.approx(0.4),
    ]
    assert state_similarity((ONE, TWO), (WANTED,), by_table) == pytest.approx(0.63)
    assert state_similarity((ONE, TWO), (WANTED, Thing("second")), by_table) == pytest.approx(0.565)


def test_an_attribute_is_compared_with_the_one_whose_name_is_most_alike():
    """The value of ``key 1`` would be the better match for a goal that cheats."""
    cheat = Thing("one", (("key 1", "value 3"), ("key 2", "value 1")))
    assert state_similarity((cheat,), (WANTED,), by_table) == pytest.approx(0.9 * 0.2)


def test_what_is_not_there_is_like_nothing():
    assert state_similarity((), (WANTED,)) == state_similarity((ONE,), ()) == 0.0
    assert state_similarity((Thing("goal"),), (WANTED,)) == 0.0
    assert state_similarity((Thing("goal"),), (Thing("goal"),)) == 1.0


texts = st.text(st.characters(categories=["L", "N", "Z"]), max_size=12)


@given(texts, texts)
def test_spelling_is_compared_both_ways_and_lies_in_zero_to_one(one, other):
    assert trigram_similarity(one, other) == pytest.approx(trigram_similarity(other, one), abs=1e-12)
    assert 0.0 <= trigram_similarity(one, other) <= 1.0 + 1e-12
    assert trigram_similarity(one, one) == 1.0


states = st.dictionaries(texts, st.dictionaries(texts, texts, max_size=3), min_size=1, max_size=3).map(
    state_of
)


@given(states, states)
def test_likeness_is_full_where_the_goal_is_reached_and_more_things_never_hurt(state, goal):
    assert state_similarity(goal, goal) == pytest.approx(1.0)
    assert state_similarity((*state, *goal), goal) == pytest.approx(1.0)
    assert state_similarity((*state, Thing("more")), goal) >= state_similarity(state, goal)


def test_an_embedding_may_be_passed_in():
    vectors = {"warm": [2.0, 0.0], "hot": [1.0, 1.0], "cold": [-3.0, 0.0], "": [0.0, 0.0]}
    alike = CosineSimilarity(vectors.__getitem__)
    assert [alike("warm", other) for other in ("hot", "cold", "")] == [
        pytest.approx(math.sqrt(0.5)),
        -1.0,
        0.0,
    ]


# The reward.


def mug_at(observation: Observation):
    return state_of({"mug": {"place": observation.messages[0].content}})


def walk(places: str, *, final: str | None, data=None) -> Trajectory:
    played = trajectory(
        [1] * len(places),
        observations=list(places),
        task=Task("tidy", {"goal": {"mug": {"place": "c"}}} if data is None else data),
    )
    return Trajectory(
        played.task, played.turns, played.end, final=None if final is None else Observation.text(final)
    )


def same(one: str, other: str) -> float:
    return float(one == other)


def test_a_turn_is_paid_for_the_state_that_it_reached():
    pay = StateSimilarity(ObservedStates(mug_at), alike=same)
    assert pay(walk("abcb", final="c"))["similarity"].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert pay(walk("", final="a"))["similarity"].tolist() == []
    assert pay.components == {"similarity"}


def test_gains_add_up_to_the_last_likeness_less_the_first_whatever_the_way():
    pay = StateSimilarity(ObservedStates(mug_at), alike=same, gain=True)
    for places, final, total in (("abcb", "c", 1.0), ("cab", "c", 0.0), ("accccccb", "a", 0.0)):
        assert pay(walk(places, final=final))["similarity"].sum() == total
    assert pay(walk("abcb", final="c"))["similarity"].tolist() == [0.0, 1.0, -1.0, 1.0]


@pytest.mark.parametrize("data", [{}, {"goal": {}}, {"goal": "a mug"}, {"goal": {"mug": "table"}}])
def test_a_task_without_a_goal_is_named(data):
    with pytest.raises(ConfigError, match="task 'tidy' has"):
        StateSimilarity(ObservedStates(mug_at))(walk("ab", final="c", data=data))


def test_states_that_do_not_fit_the_turns_are_refused():
    with pytest.raises(ConfigError, match="3 of task 'tidy'; `states` returned 0"):
        StateSimilarity(lambda _: [])(walk("ab", final="c"))
    with pytest.raises(ConfigError, match="no final observation"):
        StateSimilarity(ObservedStates(mug_at))(walk("ab", final=None))


# The distance.

TRUTH, FOUND = [0.0, 0.25, 0.5, 1.0], [0.1, 0.2, 0.7, 0.8]


def test_the_distance_of_two_rewards():
    assert epic_distance(TRUTH, FOUND) == pytest.approx(0.20369, abs=1e-5)
    assert 1.0 - 2.0 * epic_distance(TRUTH, FOUND) ** 2 == pytest.approx(0.917021, abs=1e-5)
    assert epic_distance(TRUTH, [0.5] * 4) == pytest.approx(0.707107, abs=1e-5)
    assert epic_distance(TRUTH, [-value for value in TRUTH]) == pytest.approx(1.0)
    assert epic_distance([0.1] * 3, [0.1] * 3) == 0.0


@given(st.lists(amounts, min_size=2, max_size=8), st.floats(0.01, 100.0), st.floats(-100.0, 100.0))
def test_a_scale_and_a_constant_are_no_distance(rewards, scale, constant):
    moved = [scale * value + constant for value in rewards]
    expected = 0.0 if len(set(rewards)) > 1 or moved == rewards else math.sqrt(0.5)
    assert epic_distance(rewards, moved) == pytest.approx(expected, abs=1e-5)


@given(st.data())
def test_the_distance_is_one_between_rewards(data):
    """Symmetric, in [0, 1], and never shorter by a detour."""
    one, other, third = data.draw(
        st.integers(2, 6).flatmap(lambda n: st.tuples(*[st.lists(amounts, min_size=n, max_size=n)] * 3))
    )
    straight = epic_distance(one, third)
    assert straight == pytest.approx(epic_distance(third, one), abs=1e-9)
    assert 0.0 <= straight <= epic_distance(one, other) + epic_distance(other, third) + 1e-7


@pytest.mark.parametrize(("one", "other"), [([1.0], [1.0, 2.0]), ([], []), ([math.nan, 1.0], [0.0, 1.0])])
def test_what_cannot_be_compared_is_refused(one, other):
    with pytest.raises(ValueError, match="a distance needs"):
        epic_distance(one, other)


def test_rewards_are_compared_over_successes_and_failures_together():
    episodes = [
        trajectory([1, 1], rewards=rewards, signals=[{"score": score} for score in scores])
        for rewards, scores in (((0.0, 0.25), (0.1, 0.2)), ((0.5, 1.0), (0.7, 0.8)))
    ]
    assert reward_distance(EnvReward(), Process("score"), episodes) == pytest.approx(0.20369, abs=1e-5)


@given(st.integers(0, 10_000), st.floats(0.0, 1.0))
def test_shaping_with_a_potential_leaves_the_canonical_reward_as_it_was(seed, gamma):
    random = np.random.default_rng(seed)
    rewards, potential = random.normal(size=(3, 2, 3)), random.normal(size=3)
    weights = {"weights_S": random.dirichlet(np.ones(3)), "weights_A": random.dirichlet(np.ones(2))}
    shaped = rewards + gamma * potential[None, None, :] - potential[:, None, None]
    np.testing.assert_allclose(
        canonical(shaped, gamma=gamma, **weights), canonical(rewards, gamma=gamma, **weights), atol=1e-9
    )
    assert not np.allclose(shaped, rewards)


def test_the_canonical_reward_is_the_definition():
    random = np.random.default_rng(0)
    rewards, (p, q) = random.normal(size=(2, 2, 2)), ([0.3, 0.7], [0.6, 0.4])
    found = canonical(rewards, gamma=0.9, weights_S=p, weights_A=q)

    def mean(state):
        return sum(q[a] * p[t] * rewards[state, a, t] for a in (0, 1) for t in (0, 1))

    for s, a, t in np.ndindex(2, 2, 2):
        assert found[s, a, t] == pytest.approx(
            rewards[s, a, t] + 0.9 * mean(t) - mean(s) - 0.9 * (p[0] * mean(0) + p[1] * mean(1))
        )
