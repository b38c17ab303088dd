import asyncio
import random
import time

import broken
import pytest
from misbehaving import Gentle

from agentrl.errors import ContextFull, EngineError, TokenDrift
from agentrl.hosts.in_process import InProcess
from agentrl.policy import ExpertPolicy, RandomPolicy, ScriptedPolicy
from agentrl.rollout import Limits, Played, play, play_all
from agentrl.samplers import Draw
from agentrl.types import Action, End, Trajectory

SOUND = broken.Sound()
LIMITS = Limits(max_turns=4)


def playing(policy, *, spec=SOUND, limits=LIMITS, seed=0, episodes=2, on_end=lambda _: None) -> Played:
    async def run():
        async with InProcess(spec, 5.0) as host:
            draws = [Draw(task, episodes, 10) for task in spec.tasks("train")]
            return await play_all(draws, policy=policy, host=host, seed=seed, limits=limits, on_end=on_end)

    return asyncio.run(run())


def one(policy, *, spec=SOUND, limits=LIMITS) -> Trajectory:
    async def run():
        async with InProcess(spec, 5.0) as host:
            return await play(spec.tasks("train")[0], 3, policy=policy, host=host, seed=0, limits=limits)

    return asyncio.run(run())


def test_an_episode_records_what_was_seen_done_and_measured():
    trajectory = one(ScriptedPolicy(("wait", "train0")))
    assert [turn.action.text for turn in trajectory.turns] == ["wait", "train0"]
    assert [turn.observation.messages[0].content for turn in trajectory.turns] == ["a door ", "tried 1"]
    assert [turn.reward for turn in trajectory.turns] == [0.0, 1.0]
    assert trajectory.signal("tries").tolist() == [1.0, 2.0]
    assert (trajectory.end, trajectory.sample, trajectory.success) == (End.TERMINATED, 3, True)
    assert trajectory.final is not None
    assert trajectory.final.messages[0].content == "tried 2"


def test_the_turn_limit_truncates_and_is_no_failure():
    trajectory = one(ScriptedPolicy(("wait",)), limits=Limits(max_turns=2))
    assert (trajectory.end, len(trajectory.turns), trajectory.error) == (End.TRUNCATED, 2, "")


def test_the_order_of_finishing_changes_no_trajectory():
    class Sleepy(RandomPolicy):
        async def act(self, turns, observation, *, seed):
            await asyncio.sleep(chance.random() * 0.01)
            return await super().act(turns, observation, seed=seed)

    chance = random.Random(time.time_ns())
    alone = playing(RandomPolicy(), limits=Limits(max_turns=4, concurrency=1))
    together = playing(Sleepy(), limits=Limits(max_turns=4, concurrency=64))
    assert alone.groups == together.groups
    assert [[trajectory.sample for trajectory in group] for group in together.groups] == [[10, 11]] * 4


def test_another_seed_or_sample_plays_otherwise():
    first, second = (playing(RandomPolicy(), seed=seed, episodes=8) for seed in (0, 1))
    assert first.groups != second.groups
    texts = {tuple(turn.action.text for turn in trajectory.turns) for trajectory in first.groups[0]}
    assert len(texts) > 1


def test_no_more_episodes_are_open_than_allowed():
    class Counting(ScriptedPolicy):
        async def act(self, turns, observation, *, seed):
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.001)
            now -= 1
            return await super().act(turns, observation, seed=seed)

    now = most = 0
    playing(Counting(("wait",)), limits=Limits(max_turns=4, concurrency=3), episodes=4)
    assert most == 3


def test_a_failed_episode_is_never_a_reward_of_zero_and_is_played_again():
    ended: list[Trajectory] = []
    result = playing(ScriptedPolicy(("count", "raise")), spec=Gentle(), episodes=1, on_end=ended.append)
    assert result.groups == []
    assert len(result.failures) == len(ended) == 16 * LIMITS.max_attempts
    assert {failure.end for failure in result.failures} == {End.FAILED}


def test_a_group_that_lost_an_episode_is_returned_without_it():
    class Refusing(ScriptedPolicy):
        async def act(self, turns, observation, *, seed):
            if observation.messages[0].content == "a door " and observation.actions[0] == "train1":
                raise EngineError("no answer")
            return await super().act(turns, observation, seed=seed)

    result = playing(Refusing(("wait",)))
    assert [group[0].task.id for group in result.groups] == ["train-0", "train-2", "train-3"]
    assert {failure.error for failure in result.failures} == {"EngineError: no answer"}


def test_a_full_context_truncates():
    class Full(ScriptedPolicy):
        async def act(self, turns, observation, *, seed):
            if turns:
                raise ContextFull("512 of 512 tokens")
            return await super().act(turns, observation, seed=seed)

    trajectory = one(Full(("wait",)))
    assert (trajectory.end, trajectory.error, len(trajectory.turns)) == (
        End.TRUNCATED,
        "512 of 512 tokens",
        1,
    )


def test_token_drift_is_never_swallowed():
    class Drifting(ScriptedPolicy):
        async def act(self, turns, observation, *, seed):
            raise TokenDrift("stored tokens and context part at 7")

    with pytest.raises(TokenDrift, match="part at 7"):
        one(Drifting(()))


@pytest.mark.parametrize(
    ("slow", "culprit"), [("policy", "the policy, on turn 0 of"), ("env", "step of task-0 did not answer")]
)
def test_every_wait_has_a_deadline_that_names_the_culprit(slow, culprit):
    class Slow(ScriptedPolicy):
        async def act(self, turns, observation, *, seed):
            if slow == "policy":
                await asyncio.sleep(100)
            return Action("wait")

    limits = Limits(max_turns=3, env_deadline_s=0.1, act_deadline_s=0.1)
    started = time.monotonic()
    trajectory = one(Slow(()), spec=Gentle(), limits=limits)
    assert trajectory.end is End.FAILED
    assert culprit in trajectory.error
    assert time.monotonic() - started < 2


class Pondering(ScriptedPolicy):
    async def act(self, turns, observation, *, seed):
        await asyncio.sleep(0.2)
        return await super().act(turns, observation, seed=seed)


def test_a_deadline_bounds_each_wait_and_not_their_sum():
    trajectory = one(Pondering(("wait",)), limits=Limits(max_turns=4, env_deadline_s=0.1, act_deadline_s=0.6))
    assert (trajectory.end, len(trajectory.turns), trajectory.error) == (End.TRUNCATED, 4, "")


def test_a_short_deadline_holds_after_a_long_one():
    started = time.monotonic()
    trajectory = one(
        Pondering(("wait",)),
        spec=Gentle(),
        limits=Limits(max_turns=3, env_deadline_s=0.1, act_deadline_s=50.0),
    )
    assert trajectory.error == "EnvError: step of task-0 did not answer within 0.1 s"
    assert time.monotonic() - started < 5


def test_cancelling_an_episode_is_no_deadline():
    async def run():
        async with InProcess(SOUND, 5.0) as host:
            limits = Limits(max_turns=4, act_deadline_s=50.0)
            playing = asyncio.create_task(
                play(
                    SOUND.tasks("train")[0], 0, policy=Pondering(("wait",)), host=host, seed=0, limits=limits
                )
            )
            await asyncio.sleep(0.05)
            playing.cancel()
            await playing

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())


def test_the_expert_wins_and_a_plan_that_is_over_is_the_policys_failure():
    assert one(ExpertPolicy()).success
    lost = one(ExpertPolicy(), spec=broken.Early())
    assert (
        lost.error == "EngineError: the expert's plan has 1 actions, and the episode has not ended after them"
    )
