import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import trajectory

from agentrl.errors import ConfigError
from agentrl.rewards.compose import Scaled, Sum
from agentrl.rewards.dense import Dense
from agentrl.rewards.outcome import EnvReward, Format, Outcome, Process
from agentrl.types import End, Task, Trajectory

EVERY_REWARD = [
    Outcome(),
    Outcome(signal="score", name="score"),
    Process("progress"),
    EnvReward(),
    Format(penalty=0.1),
    Scaled(Outcome(), 2.0),
    Sum((Outcome(), Format(), EnvReward())),
    Dense("progress", most="steps"),
]
LIMITED = Task("task", {"steps": 3})


def signalled(**signals: list[float]) -> Trajectory:
    turns = [dict(zip(signals, values, strict=True)) for values in zip(*signals.values(), strict=True)]
    return trajectory([1] * len(turns), signals=turns, task=LIMITED)


def ledger(reward, record: Trajectory) -> dict[str, list[float]]:
    return {name: [round(float(value), 6) for value in paid] for name, paid in reward(record).items()}


def test_the_outcome_is_paid_on_the_last_turn():
    assert ledger(Outcome(), signalled(success=[0, 0, 1])) == {"outcome": [0, 0, 1]}
    assert ledger(Outcome(), signalled(success=[0, 0, 0])) == {"outcome": [0, 0, 0]}


def test_the_outcome_may_be_any_signal_and_have_any_name():
    assert ledger(Outcome(signal="score", name="exam"), signalled(score=[0.25, 0.5], success=[0, 1])) == {
        "exam": [0, 0.5]
    }


def test_what_happened_before_the_last_turn_is_no_outcome():
    assert ledger(Outcome(), signalled(success=[1, 0])) == {"outcome": [0, 0]}


def test_a_process_reward_is_paid_where_it_was_measured():
    assert ledger(Process("progress"), signalled(progress=[0, 1, -1])) == {"progress": [0, 1, -1]}


def test_the_environments_own_reward_is_paid_as_it_came():
    assert ledger(EnvReward(), trajectory([1, 1], rewards=[0.5, -1.0])) == {"env": [0.5, -1.0]}


def test_a_refused_action_is_charged():
    assert ledger(Format(penalty=0.05), signalled(valid=[1, 0, 1])) == {"format": [0, -0.05, 0]}


def test_a_sum_keeps_its_components_apart():
    record = signalled(success=[0, 1], valid=[0, 1])
    assert ledger(Sum((Outcome(), Scaled(Format(1.0), 0.25))), record) == {
        "outcome": [0, 1],
        "format": [-0.25, 0],
    }


def test_components_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="more than one part pays outcome"):
        Sum((Outcome(), Sum((Outcome(signal="score"), Format()))))


def test_dense_progress_of_a_success_is_shared_among_the_steps_it_took():
    # two positive steps and a win: one half each
    assert ledger(
        Dense("progress", most="steps"), signalled(progress=[0, 1, 0, 1], success=[0, 0, 0, 1])
    ) == {"dense": [0, 0.5, 0, 0.5]}


def test_dense_progress_of_a_failure_is_a_share_of_what_there_was():
    # one step of the three that the task has
    record = signalled(progress=[0, 1, 0, 0], success=[0, 0, 0, 0])
    assert ledger(Dense("progress", most="steps"), record) == {"dense": [0, 0.333333, 0, 0]}


def test_dense_progress_never_divides_by_less_than_one():
    record = trajectory([1], signals=[{"progress": 0.0, "success": 0.0}], task=Task("task", {"steps": 0}))
    assert ledger(Dense("progress", most="steps"), record) == {"dense": [0]}


def test_dense_progress_needs_to_know_how_much_there_is():
    with pytest.raises(ConfigError, match="divides by the task's 'moves'; task 'task' has None there"):
        Dense("progress", most="moves")(signalled(progress=[1], success=[0]))


def test_rewards_name_the_signals_that_they_read():
    assert Outcome(signal="score").signals == {"score"}
    assert Sum((Outcome(), Scaled(Format(), 0.5), EnvReward())).signals == {"success", "valid"}
    assert Dense("progress", most="steps").signals == {"progress", "success"}


@given(
    st.lists(
        st.fixed_dictionaries(
            {name: st.floats(-2, 2, width=32) for name in ("success", "valid", "progress", "score")}
        ),
        max_size=5,
    ),
    st.sampled_from([End.TERMINATED, End.TRUNCATED]),
)
def test_every_reward_pays_each_turn_once_under_the_names_it_declares(signals, end):
    record = trajectory(
        [1] * len(signals), signals=signals, rewards=[1.0] * len(signals), end=end, task=LIMITED
    )
    for reward in EVERY_REWARD:
        paid = reward(record)
        assert set(paid) == reward.components
        assert all(paid_N.shape == (len(signals),) and np.isfinite(paid_N).all() for paid_N in paid.values())


@given(st.lists(st.floats(-2, 2, width=32), max_size=5), st.floats(-4, 4, width=32))
def test_scaling_scales_every_turn(progress, factor):
    record = trajectory([1] * len(progress), signals=[{"progress": value} for value in progress])
    scaled, plain = (
        reward(record)["progress"] for reward in (Scaled(Process("progress"), factor), Process("progress"))
    )
    np.testing.assert_allclose(scaled, plain * factor, atol=1e-5)
