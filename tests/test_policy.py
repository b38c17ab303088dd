import asyncio
from collections import Counter

import pytest

from agentrl.errors import EngineError
from agentrl.policy import ErringPolicy, ExpertPolicy, RandomPolicy, ScriptedPolicy
from agentrl.types import Action, Observation, Turn

SEEN = Observation.text("here", actions=("go north", "go south", "look", "quit"), plan=("go north", "look"))
LATER = Observation.text("there", actions=("look",))


def act(policy, turns=(), observation=SEEN, seed=0) -> str:
    return asyncio.run(policy.act(turns, observation, seed=seed)).text


def turn(observation, text) -> Turn:
    return Turn(observation, Action(text))


def test_random_play_is_uniform_over_what_is_admissible_and_not_avoided():
    counts = Counter(act(RandomPolicy(avoid=("quit",)), seed=seed) for seed in range(600))
    assert set(counts) == {"go north", "go south", "look"}
    assert min(counts.values()) > 150


def test_random_play_is_a_function_of_its_seed():
    assert act(RandomPolicy(), seed=5) == act(RandomPolicy(), seed=5)


def test_what_is_avoided_is_played_where_there_is_nothing_else():
    assert act(RandomPolicy(avoid=("look",)), observation=LATER) == "look"


def test_random_play_needs_a_list():
    with pytest.raises(EngineError, match="lists none; switch them on"):
        act(RandomPolicy(), observation=Observation.text("x"))


def test_the_expert_follows_the_newest_plan():
    assert act(ExpertPolicy()) == "go north"
    assert act(ExpertPolicy(), [turn(SEEN, "go north")], LATER) == "look"
    assert act(ExpertPolicy(), [turn(SEEN, "go north")], Observation.text("x", plan=("wait",))) == "wait"


def test_the_expert_stops_where_its_plan_does():
    with pytest.raises(EngineError, match="plan has 2 actions"):
        act(ExpertPolicy(), [turn(SEEN, "go north"), turn(LATER, "look")], LATER)
    with pytest.raises(EngineError, match="no observation of this episode has one"):
        act(ExpertPolicy(), observation=LATER)


def test_a_script_repeats_its_last_line():
    script = ScriptedPolicy(("one", "two"))
    turns = [turn(SEEN, "x")] * 3
    assert [act(script, turns[:count]) for count in range(4)] == ["one", "two", "two", "two"]


def test_an_erring_policy_errs_on_its_share_of_turns_and_the_same_way_each_time():
    erring = ErringPolicy(ScriptedPolicy(("right",)), ScriptedPolicy(("wrong",)), 0.25)
    played = [act(erring, seed=seed) for seed in range(400)]
    assert 70 <= played.count("wrong") <= 130
    assert played == [act(erring, seed=seed) for seed in range(400)]
    assert {
        act(ErringPolicy(ScriptedPolicy(("right",)), ScriptedPolicy(("wrong",)), 0.0), seed=seed)
        for seed in range(50)
    } == {"right"}
