import asyncio
from collections import Counter, defaultdict

import numpy as np
import pytest
from agentrl_environments.bandit import Bandit

from agentrl.errors import ConfigError
from agentrl.hosts.in_process import InProcess
from agentrl.policy import ExpertPolicy, RandomPolicy, ScriptedPolicy
from agentrl.rollout import Limits, play_all
from agentrl.samplers import Draw
from agentrl.types import Action, Trajectory, seed_of

BANDIT = Bandit()


def played(policy, *, spec=BANDIT, split="test", episodes=1, seed=0, tasks=256) -> list[Trajectory]:
    async def run():
        async with InProcess(spec, 10.0) as host:
            draws = [Draw(task, episodes, 0) for task in spec.tasks(split)[:tasks]]
            return await play_all(
                draws, policy=policy, host=host, seed=seed, limits=Limits(max_turns=spec.max_turns)
            )

    return [trajectory for group in asyncio.run(run()).groups for trajectory in group]


def rate(trajectories) -> float:
    return sum(trajectory.success for trajectory in trajectories) / len(trajectories)


def test_the_expert_has_no_regret_and_always_succeeds():
    expert = played(ExpertPolicy())
    assert rate(expert) == 1.0
    assert all(not trajectory.signal("regret").any() for trajectory in expert)


def test_random_play_succeeds_as_often_as_there_are_arms():
    assert rate(played(RandomPolicy(), episodes=4)) == pytest.approx(1 / 3, abs=0.05)


def test_arms_pay_as_often_as_declared():
    spec = Bandit(max_turns=50)
    by_arm = {True: Counter(), False: Counter()}
    for trajectory in played(ScriptedPolicy(("a",)), spec=spec, tasks=90):
        by_arm[trajectory.task.data["best"] == 0].update(trajectory.signal("payout").tolist())
    good, bad = (by_arm[best][1.0] / by_arm[best].total() for best in (True, False))
    assert good == pytest.approx(0.9, abs=0.03)
    assert bad == pytest.approx(0.1, abs=0.03)


def test_a_pull_pays_the_same_whatever_was_pulled_before_it():
    one, two = (
        played(ScriptedPolicy(actions), tasks=64) for actions in (("a", "b", "a"), ("b", "c", "a", "a", "b"))
    )
    for left, right in zip(one, two, strict=True):
        second_a = [
            next(turns[index] for index in range(6) if texts[: index + 1].count("a") == 2)
            for turns, texts in pulls(left, right)
        ]
        assert second_a[0] == second_a[1]


def pulls(*trajectories):
    for trajectory in trajectories:
        yield (
            [turn.info["payout"] for turn in trajectory.turns],
            [turn.action.text for turn in trajectory.turns],
        )


def test_what_is_no_arm_costs_a_pull_and_pays_nothing():
    (trajectory,) = played(ScriptedPolicy(("d",)), tasks=1)
    assert [dict(turn.info) for turn in trajectory.turns] == [
        {"success": 0.0, "valid": 0.0, "payout": 0.0, "regret": 0.9}
    ] * 6
    assert trajectory.final is not None
    assert trajectory.final.messages[0].content == "0 pulls left . no such arm"


def test_the_observation_never_names_the_best_arm():
    best = defaultdict(set)
    for task in BANDIT.tasks("train"):
        best[played_reset(task)].add(task.data["best"])
    assert list(best.values()) == [{0, 1, 2}]


def played_reset(task) -> str:
    async def run():
        async with BANDIT.open(task, None, None) as env:
            return (await env.reset()).messages[0].content

    return asyncio.run(run())


class Table:
    """A softmax policy over the text of the last observation: a smallest policy that can learn."""

    def __init__(self):
        self.logits = defaultdict(lambda: np.zeros(3))

    def probabilities(self, observation):
        odds = np.exp(self.logits[observation.messages[0].content])
        return odds / odds.sum()

    async def act(self, turns, observation, *, seed):
        return Action(
            observation.actions[np.random.default_rng(seed).choice(3, p=self.probabilities(observation))]
        )

    def learn(self, group, sign):
        success = np.array([trajectory.success for trajectory in group], dtype=float)
        for trajectory, advantage in zip(group, sign * (success - success.mean()), strict=True):
            for turn in trajectory.turns:
                slope = -self.probabilities(turn.observation)
                slope[turn.observation.actions.index(turn.action.text)] += 1
                self.logits[turn.observation.messages[0].content] += advantage * slope


@pytest.mark.parametrize(
    ("sign", "lowest", "highest"), [(1.0, 0.7, 1.0), (0.0, 0.25, 0.42), (-1.0, 0.0, 0.2)]
)
def test_outcome_reward_alone_teaches_it_and_the_controls_do_not_learn(sign, lowest, highest):
    async def train(policy):
        async with InProcess(BANDIT, 10.0) as host:
            tasks = BANDIT.tasks("train")
            for update in range(40):
                chosen = [tasks[seed_of("draw", update, index) % len(tasks)] for index in range(4)]
                draws = [Draw(task, 8, 8 * update) for task in {task.id: task for task in chosen}.values()]
                result = await play_all(draws, policy=policy, host=host, seed=0, limits=Limits(max_turns=6))
                for group in result.groups:
                    policy.learn(group, sign)

    policy = Table()
    asyncio.run(train(policy))
    assert lowest <= rate(played(policy)) <= highest


@pytest.mark.parametrize(
    "options", [{"arms": 1}, {"arms": 9}, {"good": 0.1, "bad": 0.9}, {"good": 1.1}, {"max_turns": 0}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(ConfigError, match="found"):
        Bandit(**options)
