from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from collecting import PICKY, collect
from corridor import LETTERS, Corridor

from agentrl.errors import ConfigError, EnvError
from agentrl.policy import ExpertPolicy, RandomPolicy, ScriptedPolicy
from agentrl.records.store import read_trajectories
from agentrl.rewards import Transform
from agentrl.rewards.compose import Scaled
from agentrl.rewards.outcome import EnvReward
from agentrl.rewards.payment import Payment
from agentrl.samplers.uniform import Uniform
from agentrl.sources import Demonstrations, Rollouts
from agentrl.types import End


def ids(collected) -> list[str]:
    return [group[0].trajectory.task.id for group in collected.groups]


def test_an_epoch_of_demonstrations_brings_each_of_them_once_in_an_order_of_its_own(tmp_path):
    found = collect(
        Demonstrations(policy=ExpertPolicy(), num_episodes=12, batch=4), tmp_path, updates=range(6)
    )
    epochs = [[name for one in found[start : start + 3] for name in ids(one)] for start in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]
    assert len(set(epochs[0])) == 12
    assert all(len(group) == 1 for one in found for group in one.groups)


def test_demonstrations_are_played_once_and_are_the_same_when_the_folder_is_opened_again(tmp_path):
    source = Demonstrations(policy=RandomPolicy(), num_episodes=10, batch=4)
    first = collect(source, tmp_path, updates=range(4))
    written = (tmp_path / "demonstrations" / "stage.parquet").stat().st_mtime_ns
    again = [collect(source, tmp_path, updates=[update])[0] for update in range(4)]
    assert (tmp_path / "demonstrations" / "stage.parquet").stat().st_mtime_ns == written
    for one, two in zip(first, again, strict=True):
        assert [group[0].trajectory for group in one.groups] == [group[0].trajectory for group in two.groups]


def test_demonstrations_hold_tokens_that_read_what_was_done(tmp_path):
    (found,) = collect(Demonstrations(policy=ExpertPolicy(), num_episodes=3), tmp_path)
    for group in found.groups:
        for turn in group[0].trajectory.turns:
            assert turn.action.text in LETTERS
            assert len(turn.action.tokens) == 2
            assert turn.action.version == -1


def test_more_demonstrations_than_tasks_are_other_samples_of_them(tmp_path):
    (found,) = collect(Demonstrations(policy=RandomPolicy(), num_episodes=100), tmp_path)
    played = Counter((group[0].trajectory.task.id, group[0].trajectory.sample) for group in found.groups)
    assert len(played) == 100
    assert {sample for _, sample in played} == {0, 1, 2}


def test_only_successful_demonstrations_are_kept_and_the_others_counted(tmp_path):
    scripted = Demonstrations(policy=ScriptedPolicy(("a", "b", "c")), num_episodes=48, only_successful=True)
    env = replace(Corridor(), max_turns=1)
    first, second = collect(scripted, tmp_path, updates=(0, 1), env=env)
    assert all(group[0].trajectory.success for group in first.groups)
    assert 0 < len(first.groups) < 48
    assert (first.num_dropped, second.num_dropped) == (48 - len(first.groups), 0)
    with pytest.raises(ConfigError, match="none of 48 demonstrations solved its task"):
        collect(replace(scripted, policy=ScriptedPolicy(("e",))), tmp_path / "none", env=env)


def test_demonstrations_are_cut_where_asked(tmp_path):
    (found,) = collect(Demonstrations(policy=ExpertPolicy(), num_episodes=4, max_turns=2), tmp_path)
    assert [(len(group[0].trajectory.turns), group[0].trajectory.end) for group in found.groups] == [
        (2, End.TRUNCATED)
    ] * 4


def test_what_demonstrations_lost_is_stored_and_counted_once(tmp_path):
    (tmp_path / "marks").mkdir()
    env = Corridor(accident="raise", marks=str(tmp_path / "marks"))
    source = Demonstrations(policy=ExpertPolicy(), num_episodes=16, batch=8)
    first, second = collect(source, tmp_path, updates=(0, 1), env=env)
    assert len(first.failures) > 0
    assert second.failures == []
    assert all(failure.end is End.FAILED for failure in first.failures)
    kept = read_trajectories(tmp_path / "demonstrations" / "stage.parquet")
    assert [one.group for one in kept] == [*range(16), *[-1] * len(first.failures)]
    (again,) = collect(source, tmp_path, updates=(0,), env=env)
    assert again.failures == first.failures


@pytest.mark.parametrize(
    "source", [Demonstrations(policy=ExpertPolicy(), num_episodes=4), Rollouts(num_groups=2, group_size=2)]
)
def test_a_source_whose_every_episode_breaks_stops(source, tmp_path):
    with pytest.raises(
        EnvError,
        match=r"every episode of .*stage 'stage' failed; 12 attempts, the last: .*the roof of corridor",
    ):
        collect(source, tmp_path, env=Corridor(accident="always"))


def test_the_agent_as_it_is_demonstrates_where_no_policy_is_given(tmp_path):
    (found,) = collect(Demonstrations(policy=None, num_episodes=2), tmp_path, agent=ScriptedPolicy(("d",)))
    assert {turn.action.text for group in found.groups for turn in group[0].trajectory.turns} == {"d"}


def test_rollouts_are_groups_of_one_task_and_new_for_each_update(tmp_path):
    one, two = collect(Rollouts(num_groups=4, group_size=3), tmp_path, updates=(0, 1))
    assert [len(group) for group in one.groups] == [3] * 4
    assert all(len({scored.trajectory.task.id for scored in group}) == 1 for group in one.groups)
    assert [scored.trajectory.sample for scored in one.groups[0]] == [0, 1, 2]
    assert not set(ids(one)) & set(ids(two))


@dataclass(frozen=True)
class OftenRight:
    """Opens every door of a sample in two, by the seed of the turn."""

    async def act(self, turns, observation, *, seed):
        return await (ExpertPolicy() if seed % 2 else ScriptedPolicy(("e",))).act(
            turns, observation, seed=seed
        )


DOOR = replace(Corridor(), max_turns=1)


def test_dynamic_sampling_draws_more_until_there_are_enough_groups_and_counts_what_it_dropped(tmp_path):
    source = Rollouts(num_groups=6, group_size=2, refills=5)
    (found,) = collect(source, tmp_path, env=DOOR, agent=OftenRight(), payment=PICKY)
    assert len(found.groups) == 6
    for group in found.groups:
        assert {scored.trajectory.success for scored in group} == {True, False}
    assert len(set(ids(found))) == 6
    assert found.num_dropped % 6 == 0
    assert found.num_dropped >= 6
    (without,) = collect(replace(source, refills=0), tmp_path, env=DOOR, agent=OftenRight(), payment=PICKY)
    assert len(without.groups) + without.num_dropped == 6
    assert len(without.groups) < 6
    assert ids(without) == ids(found)[: len(without.groups)]


def test_refills_end_where_no_group_can_pass(tmp_path):
    (found,) = collect(
        Rollouts(num_groups=3, group_size=2, refills=2),
        tmp_path,
        env=DOOR,
        agent=ExpertPolicy(),
        payment=PICKY,
    )
    assert (found.groups, found.num_dropped) == ([], 9)


def test_the_tasks_of_refills_are_not_those_of_the_next_update(tmp_path):
    drawn = []

    class Listening(Uniform):
        def draw(self, tasks, **what):
            draws = super().draw(tasks, **what)
            drawn.append({(draw.task.id, draw.first_sample) for draw in draws})
            return draws

    source = Rollouts(num_groups=4, group_size=2, refills=1, sampler=Listening())
    collect(source, tmp_path, env=DOOR, agent=ExpertPolicy(), payment=PICKY, updates=range(6))
    assert len(drawn) == 12
    assert len(set().union(*drawn)) == 12 * 4


def test_groups_that_lost_too_many_episodes_are_no_groups(tmp_path):
    class Shy:
        async def act(self, turns, observation, *, seed):
            if seed % 3 == 0:
                raise EnvError("not today")
            return await RandomPolicy().act(turns, observation, seed=seed)

    (found,) = collect(Rollouts(num_groups=8, group_size=2), tmp_path, agent=Shy(), min_group=2)
    assert all(len(group) == 2 for group in found.groups)
    assert found.num_dropped == 8 - len(found.groups) > 0


def test_payment_rewards_then_transforms_then_filters(tmp_path):
    class Double(Transform):
        def __call__(self, trajectory, ledger):
            return {name: 2 * paid_N for name, paid_N in ledger.items()}

    payment = Payment(
        reward=Scaled(EnvReward(), 10.0), transforms=(Double(),), filters=(lambda groups: groups[1:],)
    )
    (found,) = collect(Rollouts(num_groups=3, group_size=1), tmp_path, agent=ExpertPolicy(), payment=payment)
    assert len(found.groups) == 2
    assert found.groups[0][0].ledger["env"].tolist() == [20.0] * 3


@pytest.mark.parametrize(
    ("paid", "message"),
    [
        (
            lambda turns: np.full(turns, np.nan),
            r"'env' of task .* is nan on turn 0; every payment must be a finite number",
        ),
        (lambda turns: np.append(np.zeros(turns - 1), np.inf), r"is inf on turn"),
        (lambda turns: np.zeros(1), r"has shape \(1,\), the episode \d turns; pay one number for each turn"),
    ],
)
def test_payments_that_nobody_can_learn_from_stop_the_run(paid, message, tmp_path):
    class Broken(Transform):
        def __call__(self, trajectory, ledger):
            return {"env": paid(len(trajectory.turns))}

    payment = Payment(reward=EnvReward(), transforms=(Broken(),))
    with pytest.raises(ConfigError, match=message):
        collect(Rollouts(num_groups=2, group_size=1), tmp_path, agent=ExpertPolicy(), payment=payment)
