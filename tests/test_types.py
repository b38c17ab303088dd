import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.types import (
    Action,
    End,
    Message,
    Observation,
    Scored,
    Task,
    Trajectory,
    Turn,
    floats,
    ints,
    seed_of,
)

TEXT = st.text(max_size=20)
MESSAGES = st.builds(
    Message, st.sampled_from(["system", "user", "assistant", "tool"]), TEXT, st.tuples(st.binary(max_size=5))
)
OBSERVATIONS = st.builds(
    Observation,
    st.tuples(MESSAGES),
    st.lists(TEXT, max_size=3).map(tuple),
    st.lists(TEXT, max_size=3).map(tuple),
)
TOKENS = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-50, 0, width=32)), max_size=5)
ACTIONS = st.builds(
    lambda text, prompt, pairs, version: Action(
        text, ints(prompt), ints([p[0] for p in pairs]), floats([p[1] for p in pairs]), version
    ),
    TEXT,
    st.lists(st.integers(0, 1000), max_size=5),
    TOKENS,
    st.integers(-1, 9),
)
SIGNALS = st.dictionaries(st.sampled_from(["success", "valid", "score"]), st.floats(-9, 9))
TURNS = st.builds(Turn, OBSERVATIONS, ACTIONS, st.floats(-9, 9), SIGNALS)
TRAJECTORIES = st.builds(
    Trajectory, st.just(Task("t")), st.lists(TURNS, max_size=4).map(tuple), st.sampled_from(End)
)


@given(TRAJECTORIES)
def test_a_trajectory_survives_pickling(trajectory):
    assert pickle.loads(pickle.dumps(trajectory, protocol=5)) == trajectory


@given(TRAJECTORIES)
def test_a_signal_has_one_number_for_each_turn(trajectory):
    signal = trajectory.signal("score")
    assert signal.shape == (len(trajectory.turns),)
    assert signal.tolist() == [np.float32(turn.info.get("score", 0.0)) for turn in trajectory.turns]
    assert trajectory.num_tokens == sum(len(turn.action.tokens) for turn in trajectory.turns)


@given(TRAJECTORIES)
def test_success_is_what_the_last_turn_says(trajectory):
    assert trajectory.success == bool(trajectory.turns and trajectory.turns[-1].info.get("success", 0.0) > 0)


@given(ACTIONS, ACTIONS)
def test_equal_actions_hash_alike(one, two):
    assert one == pickle.loads(pickle.dumps(one))
    assert hash(one) == hash(pickle.loads(pickle.dumps(one)))
    if one == two:
        assert hash(one) == hash(two)


def test_an_action_needs_a_log_probability_for_each_token():
    with pytest.raises(ValueError, match="one log-probability per token"):
        Action("x", tokens=ints([1, 2]), logprobs=floats([-1.0]))


def test_records_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        ints([1])[0] = 2
    source = np.zeros(2, dtype=np.float32)
    kept = floats(source)
    source[0] = 1.0
    assert kept.tolist() == [0.0, 0.0]


def test_duration_does_not_tell_turns_apart():
    turn = Turn(Observation.text("x"), Action("y"), duration_s=1.0)
    assert turn == Turn(Observation.text("x"), Action("y"), duration_s=2.0)


@given(
    st.lists(st.one_of(st.integers(), TEXT), max_size=4), st.lists(st.one_of(st.integers(), TEXT), max_size=4)
)
def test_seeds_of_different_names_differ(one, two):
    assert 0 <= seed_of(*one) < 2**63
    if [str(part) for part in one] != [str(part) for part in two] and "\x1f" not in "".join(
        map(str, one + two)
    ):
        assert seed_of(*one) != seed_of(*two) or not (one or two) or {*map(str, one), *map(str, two)} == {""}


def test_a_seed_is_the_same_in_every_process_and_forever():
    code = "from agentrl.types import seed_of; print(seed_of(0, 'task', 1))"
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "9"}
    )
    assert int(there.stdout) == seed_of(0, "task", 1) == 7904526932975963967


def test_a_ledger_adds_up_over_its_components():
    turns = tuple(
        Turn(Observation.text("x"), Action("y", tokens=ints([1] * n), logprobs=floats([0.0] * n)))
        for n in (2, 0, 1)
    )
    scored = Scored(
        Trajectory(Task("t"), turns, End.TERMINATED), {"a": floats([1, 2, 3]), "b": floats([0, 0, -1])}
    )
    assert scored.rewards_N.tolist() == [1.0, 2.0, 2.0]
    assert scored.num_tokens_N.tolist() == [2, 0, 1]
