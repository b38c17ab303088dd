"""Starts inside an episode: what is replayed is context, and nothing is learned from it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
from corridor import Corridor
from strategies import trajectory

from agentrl.errors import ConfigError
from agentrl.rewards.outcome import EnvReward
from agentrl.samplers.starts import Prefixes, read_solutions
from agentrl.sources import Rollouts
from agentrl.types import Action, Scored, Task, floats

TASK = Task("hard")


def success(*texts, won=True):
    record = trajectory(
        [1] * len(texts), signals=[{"success": 0.0}] * (len(texts) - 1) + [{"success": float(won)}], task=TASK
    )
    turns = tuple(replace(turn, action=Action(text)) for turn, text in zip(record.turns, texts, strict=True))
    return (Scored(replace(record, turns=turns), {"outcome": floats([0.0] * len(texts))}),)


def starts(sampler, updates=40):
    return [
        draw.prefix
        for update in range(updates)
        for draw in sampler.draw([TASK], draw_index=update, num_groups=1, group_size=2, seed=0)
    ]


def test_a_share_of_the_groups_starts_inside_a_known_success():
    found = starts(Prefixes({"hard": tuple("abcdefghij")}, share=0.5))
    assert {len(prefix) for prefix in found} == {0, 4, 6, 8}
    assert 8 < sum(not prefix for prefix in found) < 32
    assert all(prefix == tuple("abcdefghij")[: len(prefix)] for prefix in found)


def test_any_turn_may_be_the_start_and_at_least_one_is_left():
    found = starts(Prefixes({"hard": ("a", "b", "c")}, share=1.0, cuts=()))
    assert {len(prefix) for prefix in found} == {1, 2}
    assert set(starts(Prefixes({"hard": ("a", "b")}, share=1.0, cuts=(0.9,)))) == {("a",)}
    assert set(starts(Prefixes({"hard": ("a",)}, share=1.0))) == {()}
    assert set(starts(Prefixes(share=1.0))) == {()}


def test_the_shortest_success_is_remembered_and_survives():
    sampler = Prefixes(share=1.0)
    for group in (success("a", "b", "c"), success("x", "y"), success("p", "q", "r"), success("z", won=False)):
        sampler.observe([group])
    assert sampler.solutions == {"hard": ("x", "y")}
    resumed = Prefixes(share=1.0)
    resumed.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    assert starts(resumed) == starts(sampler)
    forgetful = Prefixes(remember=False)
    forgetful.observe([success("a", "b")])
    assert forgetful.solutions == {}


def test_settings_that_make_no_sense_are_refused():
    for make in (lambda: Prefixes(share=2.0), lambda: Prefixes(cuts=(1.0,))):
        with pytest.raises(ConfigError):
            make()


def test_replayed_turns_are_context_and_are_not_learned_from(tmp_path):
    env = Corridor()
    solutions = {task.id: tuple(str(task.data["doors"])) for task in env.tasks("train")}
    stage = replace(
        tiny.LEARN,
        evaluate=False,
        updates=2,
        reward=EnvReward(),
        source=Rollouts(num_groups=4, group_size=2, sampler=Prefixes(solutions, share=1.0, cuts=(0.67,))),
    )
    tiny.run(tiny.only(stage), tmp_path)
    kept = tiny.stored(tmp_path)
    assert kept
    for one in kept:
        lengths = [len(turn.action.tokens) for turn in one.trajectory.turns]
        assert lengths == [0, 0, 1]
        assert [turn.action.text for turn in one.trajectory.turns[:2]] == list(
            str(one.trajectory.task.data["doors"])
        )[:2]
        assert [turn.reward for turn in one.trajectory.turns[:2]] == [1.0, 1.0]
        assert len(one.credited.advantages_T) == 1
        shown = one.trajectory.turns[2].action.prompt
        # the replayed turns come before the observation
        assert len(shown) > len(one.trajectory.turns[2].observation.messages[0].content)
    assert (
        np.max(tiny.numbers(tmp_path, "learner/logprob_gap")) < 1e-4
    )  # sampler and learner saw the same context


def test_demonstrations_give_solutions(tmp_path):
    tiny.run(tiny.only(replace(tiny.WARM, updates=1)), tmp_path)
    solutions = read_solutions(tmp_path / "demonstrations" / "warm.parquet")
    doors = {task.id: tuple(str(task.data["doors"])) for task in Corridor().tasks("train")}
    assert solutions
    assert all(doors[name] == actions for name, actions in solutions.items())
