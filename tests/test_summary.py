import json

import numpy as np
import pytest

from agentrl.records.metric_names import check_names
from agentrl.records.summary import summarise
from agentrl.types import (
    Action,
    Credited,
    End,
    Measured,
    Observation,
    Scored,
    Task,
    Trajectory,
    Turn,
    floats,
    ints,
)


def turn(num_tokens=2, *, reward=0.0, version=3, clipped=False, **info):
    action = Action(
        "x", ints([1, 2, 3]), ints([5] * num_tokens), floats([-1.0] * num_tokens), version, clipped=clipped
    )
    return Turn(Observation.text("o"), action, reward, {"success": 0.0, "valid": 1.0} | info)


def test_a_summary_counts_what_happened():
    task = Task("a")
    won = Trajectory(task, (turn(version=3), turn(reward=1.0, success=1.0)), End.TERMINATED)
    lost = Trajectory(
        task, (turn(version=1, valid=0.0), turn(clipped=True), turn(4), turn()), End.TRUNCATED, 1
    )
    full = Trajectory(Task("b"), (), End.TRUNCATED, 0, "the context is full")
    broken = Trajectory(task, (turn(),), End.FAILED, 2, "EnvError: gone")
    groups = [
        (
            Scored(won, {"outcome": floats([0, 1]), "format": floats([0.5, 0])}),
            Scored(lost, {"outcome": floats([0] * 4)}),
        ),
        (Scored(full, {}), Scored(full, {})),
    ]
    assert summarise(groups, failures=[broken], version=4) == {
        "rollout/episodes": 4,
        "rollout/groups": 2,
        "rollout/attempts": 5,
        "rollout/failed": 1,
        "rollout/success": 0.25,
        "rollout/return": 0.25,
        "rollout/turns": 1.5,
        "rollout/tokens": 14 / 4,
        "rollout/prompt_tokens": 18 / 4,
        "rollout/invalid": pytest.approx(1 / 6),
        "rollout/clipped": pytest.approx(1 / 6),
        "rollout/entropy": 1.0,
        "rollout/repetition": 1.0,
        "rollout/truncated": 0.75,
        "rollout/context_full": 0.5,
        "rollout/staleness_mean": pytest.approx(8 / 6),
        "rollout/staleness_max": 3,
        "reward/return": 1.5 / 4,
        "reward/outcome": 0.25,
        "reward/format": 0.125,
        "credit/zero_variance": 0.5,
    }


def test_credit_and_the_critic_are_summarised_over_tokens():
    trajectory = Trajectory(Task("a"), (turn(2), turn(2)), End.TERMINATED)
    scored = Scored(
        trajectory,
        {},
        measured=Measured(values=floats([0, 1, 2, 9]), old_logprobs=floats([-1.0, -1.0, -1.5, -1.0])),
    )
    credit = Credited(floats([1, -1, 3, -3]), targets_T=floats([1, 2, 3, np.nan]))
    numbers = summarise([(scored,)], credited=[(credit,)])
    assert numbers["credit/advantage_mean"] == 0.0
    assert numbers["credit/advantage_std"] == pytest.approx(5**0.5)
    assert numbers["credit/explained_variance"] == pytest.approx(1.0)
    assert numbers["rollout/logprob_gap"] == 0.5
    assert "credit/zero_variance" not in numbers
    check_names(list(numbers))


def test_a_summary_of_nothing_has_no_made_up_numbers():
    assert set(summarise([])) == {"rollout/episodes", "rollout/groups", "rollout/attempts", "rollout/failed"}
    assert json.dumps(summarise([]))


def test_demonstrations_without_a_sampler_have_no_gap():
    shown = Turn(Observation.text("o"), Action("x", tokens=ints([5]), logprobs=floats([np.nan])))
    scored = Scored(
        Trajectory(Task("a"), (shown,), End.TERMINATED), {}, measured=Measured(old_logprobs=floats([-1.0]))
    )
    assert "rollout/logprob_gap" not in summarise([(scored,)])
