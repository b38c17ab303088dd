import asyncio
import threading

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from misbehaving import Misbehaving
from taxi import TAXI

import agentrl.gym
from agentrl.errors import ConfigError, EnvError
from agentrl.gym import AnyText, TextEnv, register_all
from agentrl.hosts import open_host
from agentrl.policy import ExpertPolicy, ScriptedPolicy
from agentrl.rollout import Limits, play
from agentrl.testing import check_env
from agentrl.types import End


@pytest.mark.parametrize("name", ["bandit", "frozen-lake"])
def test_gymnasium_makes_and_approves_ours(name):
    env = gymnasium.make(f"agentrl.gym:agentrl/{name}-v0", split="valid")
    gymnasium_check(env.unwrapped)
    env.close()


def test_registering_again_changes_nothing():
    assert "agentrl/bandit-v0" in register_all()
    assert register_all() == register_all()


def test_the_seed_chooses_the_task_and_options_name_it():
    env = TextEnv("bandit", split="test", arms=4)
    first = [env.reset(seed=7), *(env.reset() for _ in range(3))]
    again = [env.reset(seed=7), *(env.reset() for _ in range(3))]
    assert first == again
    assert len({info["task"] for _, info in first}) > 1
    text, info = env.reset(options={"task": "bandit-test-5"})
    assert info == {"task": "bandit-test-5", "actions": ("a", "b", "c", "d")}
    assert text == "arms a b c d . 6 pulls left . pull an arm"
    env.close()


def test_it_plays_what_rollout_plays():
    env = TextEnv("bandit")
    env.reset(options={"task": "bandit-train-1"})
    steps = [env.step(action) for action in "aabbbb"]
    spec = agentrl.gym.make_environment("bandit")

    async def run():
        async with open_host(spec, num_workers=1, deadline_s=10.0) as host:
            task = spec.tasks("train")[1]
            return await play(
                task, 0, policy=ScriptedPolicy(tuple("aabbbb")), host=host, seed=0, limits=Limits(max_turns=6)
            )

    trajectory = asyncio.run(run())
    assert [step[1] for step in steps] == [turn.reward for turn in trajectory.turns]
    assert [{name: step[4][name] for name in spec.signals} for step in steps] == [
        dict(turn.info) for turn in trajectory.turns
    ]
    assert [step[2] for step in steps] == [False] * 5 + [True]
    env.close()


def test_a_turn_limit_truncates():
    env = TextEnv(TAXI, split="train")
    env.reset(seed=0)
    ends = [env.step("nonsense")[2:4] for _ in range(TAXI.max_turns)]
    assert ends == [(False, False)] * (TAXI.max_turns - 1) + [(False, True)]
    with pytest.raises(EnvError, match="no episode is open; call reset first"):
        env.step("south")
    env.close()


def test_it_works_inside_an_event_loop_and_leaves_no_thread():
    async def run():
        env = TextEnv("bandit")
        env.reset(seed=0)
        env.step("a")
        env.close()
        env.close()

    before = threading.active_count()
    asyncio.run(run())
    assert threading.active_count() == before


def test_an_environment_that_blocks_plays_in_a_worker_and_can_break():
    env = TextEnv(Misbehaving())
    text, _ = env.reset(options={"task": "task-3"})
    assert text == "task-3: 0"
    with pytest.raises(EnvError, match="the floor is lava"):
        env.step("raise")
    with pytest.raises(EnvError, match="the episode is over"):
        env.step("count")
    env.reset(options={"task": "task-4"})
    assert env.step("count")[0] == "task-4: 1"
    env.close()


def test_mistakes_are_said():
    with pytest.raises(ConfigError, match="no split 'tests'"):
        TextEnv("bandit", split="tests")
    with pytest.raises(ConfigError, match="no task of this split is named 'bandit-train-x'; did you mean"):
        TextEnv("bandit").reset(options={"task": "bandit-train-x"})
    with pytest.raises(ConfigError, match="belong to a name"):
        TextEnv(TAXI, arms=3)
    broken = TextEnv(Misbehaving(start="raise"))
    with pytest.raises(EnvError, match="the library does not load"):
        broken.reset(seed=0)
    broken.close()


def test_render_returns_the_last_text():
    env = gymnasium.make("agentrl/bandit-v0", render_mode="ansi")
    text, _ = env.reset(seed=0)
    assert env.render() == text
    env.close()


def test_any_text_holds_every_language_and_samples_what_it_holds():
    space = AnyText(40, seed=0)
    assert "狐狸 🦊\n" in space
    assert "x" * 41 not in space
    assert 3 not in space
    assert all(space.sample() in space for _ in range(50))
    assert space == AnyText(40) != AnyText(41)


def test_ours_run_in_gymnasiums_vector_environments():
    envs = gymnasium.make_vec("agentrl/bandit-v0", num_envs=2, vectorization_mode="sync")
    texts, _ = envs.reset(seed=[1, 2])
    assert len(texts) == 2
    _, rewards, terminated, _, _ = envs.step(("a", "b"))
    assert rewards.dtype == np.float64
    assert not terminated.any()
    envs.close()


def test_a_gymnasium_environment_runs_as_ours():
    check_env(TAXI, num_tasks=1)


def test_an_unknown_action_does_not_move_it():
    async def run(actions):
        async with open_host(TAXI, num_workers=1, deadline_s=10.0) as host:
            task = TAXI.tasks("test")[0]
            return await play(
                task, 0, policy=ScriptedPolicy(actions), host=host, seed=0, limits=Limits(max_turns=3)
            )

    trajectory = asyncio.run(run(("South ", "fly", "north")))
    assert [turn.info["valid"] for turn in trajectory.turns] == [1.0, 0.0, 1.0]
    texts = [turn.observation.messages[0].content for turn in trajectory.turns]
    assert texts[2] == "unknown action . " + texts[1]
    assert trajectory.end is End.TRUNCATED


def test_words_and_actions_must_match():
    async def run():
        spec = agentrl.gym.GymText(env_id=TAXI.env_id, actions=("south",), render=TAXI.render)
        async with open_host(spec, num_workers=1, deadline_s=10.0) as host:
            return await play(
                spec.tasks("test")[0], 0, policy=ExpertPolicy(), host=host, seed=0, limits=Limits(max_turns=3)
            )

    with pytest.raises(ConfigError, match=r"Taxi-v\d has 6 discrete actions, and 1 words name them"):
        asyncio.run(run())
