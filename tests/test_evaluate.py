import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest

from agentrl.errors import CheckpointError, ConfigError, EnvError
from agentrl.evaluation import evaluate
from agentrl.evaluation.report import MEASURES, Report, TaskResult, compare, task_results
from agentrl.evaluation.statistics import mean_interval
from agentrl.policy import RandomPolicy, ScriptedPolicy
from agentrl.records.metric_names import check_names
from agentrl.records.store import read_trajectories
from agentrl.rollout import Limits
from agentrl.types import End, Observation, Step, Task

LIMITS = Limits(max_turns=4, max_attempts=2)
SHOWN = Observation.text("left or right?", actions=("left", "right"))


class Door:
    """Solved by going twice where the task says. Only left and right are understood; some tasks break it."""

    def __init__(self, task, attempt):
        self.task, self.attempt, self.won = task, attempt, 0

    async def reset(self):
        if self.attempt < self.task.data.get("breaks", 0):
            raise EnvError("the door fell off")
        return SHOWN

    async def step(self, action):
        self.won += action == self.task.data["door"]
        done = self.won == 2
        info = {"success": float(done), "valid": float(action in SHOWN.actions)}
        return Step(SHOWN, reward=float(done), terminated=done, info=info)


class House:
    def __init__(self):
        self.attempts = Counter()

    @asynccontextmanager
    async def open(self, task, *, alone=False):
        self.attempts[task.id] += 1
        yield Door(task, self.attempts[task.id] - 1)


def panel(doors, **breaks):
    return [Task(f"t{n}", {"door": door, "breaks": breaks.get(f"t{n}", 0)}) for n, door in enumerate(doors)]


def score(tasks, policy, **options):
    return asyncio.run(
        evaluate(policy, House(), tasks, **({"seed": 0, "limits": LIMITS, "name": "x"} | options))
    )


def test_a_report_says_what_the_episodes_brought():
    report = score(
        panel(["left", "left", "right"]), ScriptedPolicy(("left", "jump", "left")), episodes_per_task=2
    )
    measures = report.measures()
    assert measures["success"].mean == pytest.approx(2 / 3)
    assert measures["return"].mean == pytest.approx(2 / 3)
    assert measures["turns"].mean == pytest.approx((3 + 3 + 4) / 3)
    assert measures["invalid"].mean == pytest.approx((1 / 3 + 1 / 3 + 1 / 4) / 3)
    assert measures["truncated"].mean == pytest.approx(1 / 3)
    assert measures["pass@2"].mean == measures["pass^2"].mean == pytest.approx(2 / 3)
    assert (report.num_episodes, report.lost, [r.task for r in report.results]) == (6, 0, ["t0", "t1", "t2"])
    assert measures["success"].low < 2 / 3 < measures["success"].high
    check_names(list(report.metrics()))
    assert report.metrics()["eval/success"] == measures["success"].mean


def test_the_same_seed_gives_the_same_report_and_another_seed_another():
    tasks = panel(["left"] * 8)
    same = [
        score(tasks, RandomPolicy(), episodes_per_task=3, limits=replace(LIMITS, concurrency=c))
        for c in (1, 64)
    ]
    assert same[0] == same[1]
    assert score(tasks, RandomPolicy(), episodes_per_task=3, seed=1).results != same[0].results


def test_an_episode_that_breaks_once_is_played_again_and_counts_in_full():
    report = score(panel(["left"] * 3, t1=1), ScriptedPolicy(("left",)))
    assert report.measures()["success"].mean == 1.0
    assert (report.lost, report.num_episodes) == (0, 3)
    assert report.reasons == {"EnvError: the door fell off": 1}


def test_a_lost_episode_is_left_out_and_counted_never_scored_zero():
    report = score(panel(["left"] * 30, t4=9), ScriptedPolicy(("left",)))
    assert report.measures()["success"].mean == 1.0
    assert (report.lost, report.num_episodes, len(report.results)) == (1, 29, 29)
    assert report.metrics()["eval/lost"] == 1.0


def test_losing_more_than_a_few_is_an_error_that_says_why():
    with pytest.raises(
        EnvError,
        match=r"2 of 4 episodes could not be played, each tried 2 times: 4 times EnvError: the door fell off",
    ):
        score(panel(["left"] * 4, t0=9, t3=9), ScriptedPolicy(("left",)))
    assert score(panel(["left"] * 4, t0=9, t3=9), ScriptedPolicy(("left",)), max_lost=0.5).lost == 2


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ([], {}, "found 0 tasks"),
        (panel(["left"]), {"episodes_per_task": 0}, "1 tasks of 0 episodes"),
        (panel(["left"]) * 2, {}, "'t0' is the id of 2"),
    ],
)
def test_a_panel_that_cannot_be_played_is_refused(tasks, options, message):
    with pytest.raises(ConfigError, match=message):
        score(tasks, RandomPolicy(), **options)


def test_a_report_survives_its_file(tmp_path):
    report = score(
        panel(["left", "right"] * 4, t3=1), RandomPolicy(), episodes_per_task=2, settings={"temperature": 0.3}
    )
    report.write(tmp_path / "evaluations" / "random.json")
    assert Report.read(tmp_path / "evaluations" / "random.json") == report
    data = json.loads((tmp_path / "evaluations" / "random.json").read_text())
    assert data["measures"]["success"]["mean"] == report.measures()["success"].mean
    alone = score(panel(["left"]), RandomPolicy())
    alone.write(tmp_path / "one.json")
    assert json.loads((tmp_path / "one.json").read_text())["measures"]["turns"]["high"] is None
    assert Report.read(tmp_path / "one.json") == alone


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"format": 9}', b'{"format": 1, "results": [{}]}'])
def test_a_file_that_is_no_report_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.json is not an evaluation report"):
        Report.read(tmp_path / "a.json")


def test_a_report_can_be_made_again_from_its_stored_trajectories(tmp_path):
    tasks = panel(["left"] * 30, t1=1, t2=9)
    report = score(tasks, RandomPolicy(), episodes_per_task=2, store=tmp_path / "x.parquet")
    stored = read_trajectories(tmp_path / "x.parquet")
    assert task_results(tasks, [one.trajectory for one in stored]) == report.results
    assert Counter(one.trajectory.end for one in stored)[End.FAILED] == 5


def made(name, successes, *, content="c", **values):
    zero = {measure: (0.0,) * len(next(iter(successes))) for measure in MEASURES}
    results = [
        TaskResult(f"t{n}", content, zero | {"success": tuple(map(float, s))})
        for n, s in enumerate(successes)
    ]
    return Report(
        name=name, panel="p", seed=0, episodes_per_task=len(successes[0]), results=tuple(results), **values
    )


def test_one_episode_per_task_is_compared_by_mcnemar():
    before = made("before", [[0]] * 9 + [[1]] * 4)
    after = made("after", [[1]] * 9 + [[0]] + [[1]] * 3)
    comparison = compare(before, after)
    success = comparison.differences[0]
    assert (success.measure, success.test) == ("success", "McNemar, exact")
    assert success.p_value == 2 * 11 / 1024
    assert (success.a, success.b) == (pytest.approx(4 / 13), pytest.approx(12 / 13))
    assert success.difference == mean_interval([1.0] * 9 + [-1.0] + [0.0] * 3)
    assert comparison.differences[1].p_value == 1.0


def test_several_episodes_are_compared_by_task_not_by_episode():
    before, after = made("a", [[0, 0, 0, 0]] * 3), made("b", [[1, 1, 1, 1]] * 3)
    success = compare(before, after).differences[0]
    assert success.test == "sign flips"
    assert success.p_value == 2 / 2**3


def test_comparing_the_other_way_round_changes_the_sign_alone():
    random = np.random.default_rng(0)
    a, b = (made(name, random.integers(2, size=(20, 3)).tolist()) for name in "ab")
    forth, back = compare(a, b).differences[0], compare(b, a).differences[0]
    assert forth.difference.mean == -back.difference.mean
    assert forth.difference.low == pytest.approx(-back.difference.high)
    assert forth.p_value == pytest.approx(back.p_value)


def test_tasks_without_a_partner_are_counted_and_other_tasks_refused():
    whole, part = made("a", [[1]] * 5), made("b", [[1]] * 3)
    comparison = compare(whole, part)
    assert (comparison.num_tasks, comparison.only_a, comparison.only_b) == (3, 2, 0)
    with pytest.raises(ConfigError, match="'t0' is not the same"):
        compare(whole, made("b", [[1]] * 3, content="d"))
    with pytest.raises(ConfigError, match="no task in common"):
        compare(whole, replace(part, results=()))
