import asyncio
from itertools import product

import pytest
from agentrl_environments.frozen_lake import ACTIONS, MOVES, FrozenLake

from agentrl.env import panel_hash
from agentrl.errors import ConfigError
from agentrl.hosts.in_process import InProcess
from agentrl.policy import ExpertPolicy, RandomPolicy, ScriptedPolicy
from agentrl.rollout import Limits, play_all
from agentrl.samplers import Draw
from agentrl.testing import check_env
from agentrl.types import End

LAKE = FrozenLake()


def played(policy, *, spec=LAKE, split="test", tasks=64, episodes=1):
    async def run():
        async with InProcess(spec, 10.0) as host:
            draws = [Draw(task, episodes, 0) for task in spec.tasks(split)[:tasks]]
            return await play_all(
                draws, policy=policy, host=host, seed=0, limits=Limits(max_turns=spec.max_turns)
            )

    result = asyncio.run(run())
    assert not result.failures
    return [trajectory for group in result.groups for trajectory in group]


@pytest.mark.parametrize("size", [4, 6])
def test_the_plan_reaches_the_goal_and_every_move_of_it_is_progress(size):
    for trajectory in played(ExpertPolicy(), spec=FrozenLake(size=size)):
        assert trajectory.success
        assert set(trajectory.signal("progress")) == {1.0}


def test_random_play_seldom_succeeds():
    trajectories = played(RandomPolicy(), tasks=256, episodes=2)
    assert 0.0 < sum(trajectory.success for trajectory in trajectories) / len(trajectories) < 0.15


def test_progress_adds_up_to_the_way_that_was_left():
    for trajectory in played(RandomPolicy(), tasks=64):
        if not trajectory.turns[-1].info["fell"]:
            start = len(trajectory.turns[0].observation.plan)
            assert start - trajectory.signal("progress").sum() == (
                0 if trajectory.success else len(trajectory.final.plan)
            )


def test_a_hole_ends_the_episode_without_success():
    fallen = [
        trajectory for trajectory in played(RandomPolicy(), tasks=64) if trajectory.turns[-1].info["fell"]
    ]
    assert fallen
    assert {trajectory.end for trajectory in fallen} == {End.TERMINATED}
    assert not any(trajectory.success for trajectory in fallen)
    assert {trajectory.final.messages[0].content for trajectory in fallen} == {"you are in a hole"}


def test_the_local_view_is_true_of_the_map():
    for trajectory in played(ExpertPolicy(), tasks=64):
        rows, place = trajectory.task.data["map"], (0, 0)
        for turn in trajectory.turns:
            words = turn.observation.messages[0].content.split(" . ")
            assert words[0] == f"goal down {3 - place[0]} right {3 - place[1]}"
            for action, (down, right), said in zip(ACTIONS, MOVES, words[1:], strict=True):
                row, column = place[0] + down, place[1] + right
                inside = 0 <= row < 4 and 0 <= column < 4
                tile = (
                    {"S": "ice", "F": "ice", "H": "hole", "G": "goal"}[rows[row][column]]
                    if inside
                    else "wall"
                )
                assert said == f"{action} {tile}"
            down, right = MOVES[ACTIONS.index(turn.action.text)]
            place = (place[0] + down, place[1] + right)


def test_the_grid_view_shows_the_map_and_the_walker():
    (trajectory,) = played(ScriptedPolicy(("up",)), spec=FrozenLake(view="grid"), tasks=1)
    shown = trajectory.turns[0].observation.messages[0].content
    assert shown.replace("@", "S", 1).replace(" ", "").split("\n") == list(trajectory.task.data["map"])


def test_maps_are_all_different_and_splits_disjoint():
    maps = [tuple(task.data["map"]) for split in LAKE.splits for task in LAKE.tasks(split)]
    assert len(set(maps)) == len(maps) == 832


def test_the_panel_is_the_same_on_every_machine():
    assert panel_hash(LAKE.tasks("test")) == "6f13f61f51355736"


def test_slippery_ice_slips_the_same_way_every_time():
    spec = FrozenLake(slippery=True)
    one, two = (played(ScriptedPolicy(("right", "down")), spec=spec, tasks=32) for _ in range(2))
    assert one == two
    assert {trajectory.turns[0].observation.plan for trajectory in one} == {()}
    dry = played(ScriptedPolicy(("right", "down")), tasks=32)
    assert [trajectory.end for trajectory in dry] != [trajectory.end for trajectory in one]


@pytest.mark.parametrize(("view", "slippery"), list(product(["local", "grid"], [True])))
def test_its_variants_keep_the_contract(view, slippery):
    check_env(FrozenLake(size=5, view=view, slippery=slippery), num_tasks=1)


@pytest.mark.parametrize("options", [{"size": 3}, {"holes": 0.9}, {"view": "map"}, {"max_turns": 5}])
def test_bad_options_are_refused(options):
    with pytest.raises(ConfigError, match="found"):
        FrozenLake(**options)
