"""The games of the learning benchmark behave as described, and each of its trials can be run."""

import asyncio
from dataclasses import replace
from functools import cache
from itertools import product

import pytest

from agentrl.hosts.in_process import InProcess
from agentrl.learner.model import train_tokenizer
from agentrl.learner.spec import TrainedTokenizer
from agentrl.policy import ExpertPolicy, RandomPolicy, ScriptedPolicy
from agentrl.recipe.check import check
from agentrl.rewards.payment import Payment
from agentrl.rollout import Limits, play_all
from agentrl.samplers import Draw
from agentrl.sources import Rollouts
from agentrl.testing import check_env
from benchmarks import learning
from benchmarks.learning_tasks import imitate
from benchmarks.learning_tasks.games import Archive, Corridor, NoisyTV
from benchmarks.learning_tasks.trials import TRIALS

NAMES = list(TRIALS)


@cache
def played(spec, policy, tasks=128):
    async def run():
        async with InProcess(spec, 10.0) as host:
            draws = [Draw(task, 1, 0) for task in spec.tasks("test")[:tasks]]
            return await play_all(
                draws, policy=policy, host=host, seed=0, limits=Limits(max_turns=spec.max_turns)
            )

    result = asyncio.run(run())
    assert not result.failures
    return [trajectory for group in result.groups for trajectory in group]


def rate(trajectories) -> float:
    return sum(trajectory.success for trajectory in trajectories) / len(trajectories)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_games_keep_the_contract(name):
    check_env(TRIALS[name].env, num_tasks=1)


@pytest.mark.parametrize("name", NAMES)
def test_the_expert_always_succeeds_and_random_play_sometimes(name):
    assert rate(played(TRIALS[name].env, ExpertPolicy())) == 1.0
    assert 0.0 < rate(played(TRIALS[name].env, RandomPolicy())) < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_every_word_is_one_token(name):
    random_play = played(TRIALS[name].env, RandomPolicy())
    texts = [
        text
        for one in random_play
        for turn in one.turns
        for text in (turn.observation.messages[0].content, turn.action.text)
    ]
    tokenizer = train_tokenizer(texts, TrainedTokenizer(vocab_size=340))
    words = {word for one in random_play for turn in one.turns for word in turn.observation.actions}
    assert {word: len(tokenizer.encode(word)) for word in words} == dict.fromkeys(words, 1)


def paid(name, method, trajectory) -> float:
    trial = TRIALS[name]
    stage = trial.recipe(method, 0, "nowhere").stages[0]
    ((scored,),) = Payment(reward=stage.reward, transforms=stage.transforms).score([(trajectory,)])
    return float(scored.rewards_N.sum())


def test_the_best_paid_corridor_never_leaves_under_the_plain_sum_and_always_under_the_gate():
    """Play every way through a short corridor. Which is best does not depend on the time left after it."""
    spec = Corridor(length=4, max_turns=9)
    task = next(task for task in spec.tasks("test") if task.data["start"] == 1)

    async def everything():
        async with InProcess(spec, 10.0) as host:
            found = []
            for script in product(("left", "right", "rub"), repeat=4):
                # then what pays most: keep rubbing, or walk out
                for last in ("rub", "right"):
                    policy = ScriptedPolicy((*script, last))
                    result = await play_all(
                        [Draw(task, 1, 0)], policy=policy, host=host, seed=0, limits=Limits(max_turns=9)
                    )
                    found.append(result.groups[0][0])
            return found

    episodes = asyncio.run(everything())
    best = {
        method: max(episodes, key=lambda one: paid("corridor", method, one))
        for method in TRIALS["corridor"].methods
    }
    assert not best["plain sum"].success
    assert best["gated (G-RA)"].success
    assert best["outcome alone"].success


@pytest.mark.parametrize("start", [0, 1])
def test_no_way_through_the_whole_corridor_is_paid_as_much_as_staying_under_the_plain_sum(start):
    spec = Corridor()
    task = next(task for task in spec.tasks("test") if task.data["start"] == start)
    scripts = [("left",) * start + ("rub",) * rubs + ("right",) for rubs in range(spec.max_turns)]

    async def everything():
        async with InProcess(spec, 10.0) as host:
            limits = Limits(max_turns=spec.max_turns)
            plays = [
                await play_all(
                    [Draw(task, 1, 0)], policy=ScriptedPolicy(one), host=host, seed=0, limits=limits
                )
                for one in scripts
            ]
            return [play.groups[0][0] for play in plays]

    episodes = asyncio.run(everything())
    winning = [one for one in episodes if one.success]
    assert winning
    assert (
        max(paid("corridor", "plain sum", one) for one in winning)
        < max(paid("corridor", "plain sum", one) for one in episodes) - 0.1
    )
    assert max(paid("corridor", "gated (G-RA)", one) for one in episodes if not one.success) == 0.0


def test_a_lookup_that_errs_finds_nothing_and_one_that_does_not_finds_the_answer():
    for careless, expert in zip(
        played(Archive(), ScriptedPolicy(("search", "top", "yes"))),
        played(Archive(), ExpertPolicy()),
        strict=True,
    ):
        assert expert.turns[-1].observation.messages[0].content.endswith(expert.turns[-1].action.text)
        if careless.turns[1].observation.messages[0].content != "it is on the top shelf":
            assert not careless.success
            assert careless.turns[-1].observation.messages[0].content == "the note is empty"


def test_nothing_that_is_said_to_a_television_matters():
    for one in played(NoisyTV(), RandomPolicy()):
        for turn, following in zip(one.turns, [*one.turns[1:], None], strict=True):
            if turn.info["tv"] and following is not None:
                assert following.observation != turn.observation


@pytest.mark.parametrize("name", NAMES)
def test_every_method_can_run(name):
    for method in TRIALS[name].methods:
        check(TRIALS[name].recipe(method, 0, "nowhere"))


@pytest.mark.parametrize("name", NAMES)
def test_a_learning_rate_that_is_asked_for_is_that_of_every_method(name):
    trial = learning.at_rate(TRIALS[name], 0.125)
    stages = [trial.recipe(method, 0, "nowhere").stages[0] for method in trial.methods]
    assert {stage.optimisation.lr for stage in stages} == {0.125}
    assert [stage.credit for stage in stages] == [
        TRIALS[name].recipe(method, 0, "nowhere").stages[0].credit for method in trial.methods
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_makes_its_updates_and_is_then_read(name, tmp_path):
    trial = TRIALS[name]
    stage = replace(trial.stage, updates=2, source=Rollouts(num_groups=2, group_size=2))
    tiny = replace(trial, stage=stage, start=imitate(errors=0.5, updates=1, num_episodes=8))
    method = list(trial.methods)[-1]
    record = learning.learn(tiny, method, 0, tmp_path)
    assert len(record["curve"]) == 2
    assert 0.0 <= record["final"] <= 1.0
    assert learning.learn(tiny, method, 0, tmp_path) == record
    assert learning.row(method, [record])[0] == method


def test_the_threshold_is_reached_by_a_mean_of_three_and_a_fall_by_half_is_a_collapse():
    assert learning.reached([0.0, 1.0, 1.0, 1.0, 1.0], 0.9) == 4
    assert learning.reached([1.0, 1.0], 0.9) is None
    assert learning.collapsed([0.2, 0.6], 0.29)
    assert not learning.collapsed([0.2, 0.6], 0.31)
    assert not learning.collapsed([0.0, 0.09], 0.0)
