"""A reward from a plain function: its name, its signals, and what it pays on which turn."""

import dataclasses

import numpy as np
import pytest
from sound import LEARN, SOUND
from strategies import trajectory

import agentrl as rl
from agentrl.options import describe
from agentrl.recipe.check import check
from agentrl.rewards import check_ledger


@rl.reward()
def length(episode):
    return -0.1 * len(episode.turns)


@rl.reward(name="tokens", signals=("valid",))
def per_turn(episode):
    return [len(turn.action.tokens) * turn.info["valid"] for turn in episode.turns]


def test_one_number_is_paid_on_the_last_turn() -> None:
    (paid_N,) = length(trajectory([1, 2, 3])).values()
    np.testing.assert_allclose(paid_N, [0.0, 0.0, -0.3], atol=1e-7)
    assert length.components == {"length"}
    assert length.signals == frozenset()


def test_numbers_are_paid_turn_by_turn() -> None:
    played = trajectory([1, 2])
    turns = tuple(dataclasses.replace(turn, info={"valid": 1.0}) for turn in played.turns)
    assert per_turn(dataclasses.replace(played, turns=turns))["tokens"].tolist() == [1.0, 2.0]


def test_another_number_of_turns_is_refused_by_name() -> None:
    odd = rl.reward(name="odd")(lambda episode: [1.0])
    with pytest.raises(rl.ConfigError, match=r"the reward component 'odd'.*pay one number for each turn"):
        check_ledger(odd(trajectory([1, 2])), trajectory([1, 2]))


def test_an_episode_without_turns_is_paid_nothing() -> None:
    assert length(dataclasses.replace(trajectory([1]), turns=()))["length"].tolist() == []


def test_a_signal_that_nobody_reports_is_refused_before_any_work() -> None:
    unknown = rl.reward(name="unknown", signals=("glory",))(lambda episode: 0.0)
    stages = (dataclasses.replace(LEARN, reward=unknown),)
    with pytest.raises(rl.ConfigError, match="glory"):
        check(dataclasses.replace(SOUND, stages=stages))
    check(dataclasses.replace(SOUND, stages=(dataclasses.replace(LEARN, reward=rl.Sum((length, per_turn))),)))


def test_a_run_folder_names_the_function() -> None:
    described = describe(per_turn)
    assert described["class"] == "agentrl:FunctionReward"
    assert described["function"].endswith("test_rewards_function:per_turn")
    assert (described["name"], described["reads"]) == ("tokens", ["valid"])


def test_a_lambda_needs_a_name() -> None:
    with pytest.raises(rl.ConfigError, match="a reward of a lambda has no name"):
        rl.reward()(lambda episode: 1.0)


@pytest.mark.parametrize("number", [np.float32(0.5), np.int64(1), np.bool_(True), np.array(0.5)])
def test_a_number_may_be_one_of_numpys(number) -> None:
    paid = rl.reward(name="paid")(lambda trajectory: number)
    assert paid(trajectory([1, 2]))["paid"].tolist() == [0.0, float(number)]
