"""Guidance: what is played when a group went badly, in real episodes, and what of it is trained."""

import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import tiny
from agentrl_environments.bandit import Bandit
from collecting import PICKY, collect
from corridor import Corridor

from agentrl.credit.constant import ConstantCredit
from agentrl.credit.given import Given
from agentrl.credit.group import RLOO
from agentrl.credit.teachers import TowardStudent
from agentrl.errors import ConfigError
from agentrl.learner.model import load_tokenizer
from agentrl.losses import NegativeLogLikelihood
from agentrl.losses.clip import Clip
from agentrl.losses.objective import Objective
from agentrl.losses.origin import ByOrigin, FromTeacher
from agentrl.losses.ratios import CritiqueShaped
from agentrl.losses.tis import TokenTIS
from agentrl.policy import ErringPolicy, ExpertPolicy, ScriptedPolicy
from agentrl.recipe.check import check
from agentrl.records.metrics import read_metrics
from agentrl.rewards.outcome import Outcome
from agentrl.rewards.payment import Payment
from agentrl.sources import Demonstrations, Rollouts
from agentrl.sources.gate import DemonstrationGate
from agentrl.sources.hints import PlanShare, Scaffold
from agentrl.sources.privileged import Privileged
from agentrl.sources.refine import Refined, last_attempt
from agentrl.sources.thermostat import Thermostat
from agentrl.types import Action

PAY = Payment(reward=Outcome())
PLAY = Rollouts(num_groups=3, group_size=2)
LOST = ScriptedPolicy(("e",))


@dataclass(frozen=True)
class Obedient:
    """Follows the hint of the first observation, action by action; otherwise says ``else_``."""

    else_: str = "e"

    async def act(self, turns, observation, *, seed):
        said = (turns[0].observation if turns else observation).messages[-1].content
        hint = said.split("\n")[0].removeprefix("hint: ").split("; ") if said.startswith("hint: ") else []
        return Action(hint[len(turns)] if len(turns) < len(hint) else self.else_)


@dataclass(frozen=True, kw_only=True)
class NoPlan(Corridor):
    def shown(self, observation):
        return replace(observation, plan=())


def first_words(scored):
    return scored.trajectory.turns[0].observation.messages[-1].content


def numbers(group):
    return [scored.trajectory.sample for scored in group]


def test_a_group_that_failed_gets_the_smallest_hint_that_helps(tmp_path):
    (found,) = collect(Scaffold(source=PLAY), tmp_path, agent=Obedient(), payment=PAY)
    for group in found.groups:
        doors = group[0].trajectory.task.data["doors"]
        assert [scored.trajectory.success for scored in group] == [False, True]
        assert first_words(group[0]) == f"door {doors[0]}"
        assert (
            first_words(group[1]) == f"hint: {'; '.join(doors)}\ndoor {doors[0]}"
        )  # three of three doors: the third level
        assert numbers(group) == [0, -2]
        assert not group[1].trajectory.given
    counts = {name: found.counts[f"guidance/{name}"] for name in ("stuck", "hinted", "hint_plays")}
    assert counts == {"stuck": 3, "hinted": 3, "hint_plays": 9}


def test_a_bandit_with_a_hint_of_half_its_plan_ends_on_the_arm_of_the_hint(tmp_path):
    env = Bandit(arms=4, max_turns=2)
    (found,) = collect(
        Scaffold(source=PLAY, hints=(PlanShare(0.5), PlanShare(1.0))),
        tmp_path,
        env=env,
        agent=Obedient("none"),
        payment=PAY,
    )
    for group in found.groups:
        best = "abcd"[int(group[1].trajectory.task.data["best"])]
        assert first_words(group[1]).startswith(f"hint: {best}; {best}\n")
        assert group[1].trajectory.success
    assert found.counts["guidance/hint_plays"] == 6


def test_groups_that_no_hint_helps_or_that_need_none_stay_as_they_are(tmp_path):
    for agent in (LOST, ExpertPolicy()):
        (plain,) = collect(PLAY, tmp_path, agent=agent, payment=PAY)
        (found,) = collect(Scaffold(source=PLAY), tmp_path, agent=agent, payment=PAY)
        assert [[scored.trajectory for scored in group] for group in found.groups] == [
            [scored.trajectory for scored in group] for group in plain.groups
        ]
        assert found.counts["guidance/hinted"] == 0


def test_hints_begin_when_they_are_due_and_are_seen_before_the_filters(tmp_path):
    before, after = collect(
        Scaffold(source=PLAY, since=1), tmp_path, updates=(0, 1), agent=Obedient(), payment=PICKY
    )
    assert (before.groups, before.num_dropped) == ([], 3)
    assert (len(after.groups), after.num_dropped) == (3, 0)


def test_where_nobody_knows_a_plan_there_is_nothing_to_hint_at(tmp_path):
    with pytest.raises(
        ConfigError, match=r"was never solved and there is no hint for it: its observations carry no plan"
    ):
        collect(Scaffold(source=PLAY), tmp_path, env=NoPlan(), agent=LOST, payment=PAY)


def test_a_demonstration_takes_the_place_of_a_group_at_or_under_the_gate(tmp_path):
    agent = ErringPolicy(ExpertPolicy(), LOST, 0.5)
    source = Rollouts(num_groups=12, group_size=4)
    env = replace(Corridor(), max_turns=1)
    (plain,) = collect(source, tmp_path, env=env, agent=agent, payment=PAY)
    successes = {
        group[0].trajectory.task.id: sum(scored.trajectory.success for scored in group)
        for group in plain.groups
    }
    assert {0, 1, 2} < set(successes.values())
    for gate, most in ((0.0, 0), (0.25, 1)):
        (found,) = collect(
            DemonstrationGate(source=source, gate=gate), tmp_path, env=env, agent=agent, payment=PAY
        )
        given = {group[0].trajectory.task.id for group in found.groups if group[0].trajectory.given}
        assert len(found.groups) == 12
        assert given == {task for task, number in successes.items() if number <= most}
        assert found.counts["guidance/demonstrated"] == found.counts["guidance/gated"] == len(given)
        for group in found.groups:
            assert len(group) == (1 if group[0].trajectory.given else 4)
            assert group[0].trajectory.success or not group[0].trajectory.given


def test_demonstrations_pass_the_filters_and_groups_without_one_are_filtered(tmp_path):
    (found,) = collect(DemonstrationGate(source=PLAY), tmp_path, agent=LOST, payment=PICKY)
    assert [len(group) for group in found.groups] == [1, 1, 1]
    assert all(numbers(group) == [-1] for group in found.groups)
    (without,) = collect(
        DemonstrationGate(source=PLAY, policy=ScriptedPolicy(("a",))), tmp_path, agent=LOST, payment=PICKY
    )
    assert (without.groups, without.num_dropped, without.counts["guidance/demonstrated"]) == ([], 3, 0)


def test_where_the_expert_knows_nothing_nothing_is_demonstrated(tmp_path):
    with pytest.raises(
        ConfigError, match=r"none of 3 demonstrations could be played.*expert play needs a plan"
    ):
        collect(DemonstrationGate(source=PLAY), tmp_path, env=NoPlan(), agent=LOST, payment=PAY)


def test_a_critique_lists_what_was_done_and_refused_and_comes_with_the_next_attempt(tmp_path):
    seen = []

    class Listening:
        async def act(self, turns, observation, *, seed):
            seen.append(observation.messages[-1].content.split("\n"))
            return Action("e" if len(turns) else "a")

    (found,) = collect(Refined(source=PLAY), tmp_path, agent=Listening(), payment=PAY)
    assert [numbers(group) for group in found.groups] == [[0, 1, -1]] * 3
    criticised = [lines for lines in seen if lines[0].startswith("failed before")]
    assert len(criticised) == 3
    assert {lines[0] for lines in criticised} == {"failed before: a; e (refused); e (refused)"}
    assert all(first_words(scored).startswith("door") for group in found.groups for scored in group)
    assert last_attempt(replace(found.groups[0][0].trajectory, turns=())) == ""


LEARN = replace(
    tiny.LEARN,
    evaluate=False,
    updates=2,
    reward=Outcome(),
    credit=RLOO(),
    modifiers=(),
    minibatches=1,
    epochs=1,
)
SPLIT = ByOrigin(own=Clip(), given=NegativeLogLikelihood())


def guided(source, **changes):
    return tiny.only(replace(LEARN, source=source, **changes))


def rendered_anew(one, folder):
    """Return the prompts that the trajectory's own text renders to."""
    renderer = tiny.Letters(load_tokenizer(folder / "tokenizer"))
    turns = one.trajectory.turns
    return [renderer.prompt(turns[:n], turn.observation).tokens.tolist() for n, turn in enumerate(turns)]


def test_refinements_are_trained_in_the_context_without_the_critique(tmp_path):
    recipe = guided(
        Refined(source=PLAY),
        objective=Objective(loss=ByOrigin(own=Clip(), given=CritiqueShaped()), off_policy=TokenTIS()),
    )
    tiny.run(recipe, tmp_path)
    refined = [one for one in tiny.stored(tmp_path) if one.trajectory.given]
    assert len(refined) >= 4
    for one in refined:
        assert one.trajectory.sample < 0
        assert one.trajectory.turns[0].observation.messages[0].content.startswith("door")
        assert [turn.action.prompt.tolist() for turn in one.trajectory.turns] == rendered_anew(one, tmp_path)
        assert gap(one) > 1e-4  # what was sampled is of the critique's context
    assert max(tiny.numbers(tmp_path, "learner/logprob_gap")) < 1e-4
    assert max(tiny.numbers(tmp_path, "rollout/logprob_gap")) < 1e-4
    assert min(tiny.numbers(tmp_path, "learner/given")) > 0.2
    np.testing.assert_allclose(tiny.numbers(tmp_path, "learner/off_policy_weight"), 1.0, atol=1e-4)


def test_students_have_their_teachers_tokens_and_credit_without_the_information(tmp_path):
    loss = ByOrigin(own=Clip(), given=FromTeacher(0.25), own_weight=0.5, given_weight=0.5)
    tiny.run(
        guided(Privileged(source=PLAY), objective=Objective(loss=loss), modifiers=(TowardStudent(0.25),)),
        tmp_path,
    )
    stored = tiny.stored(tmp_path)
    teachers = {
        (one.update, one.trajectory.task.id, one.trajectory.sample): one
        for one in stored
        if not one.trajectory.given
    }
    students = {
        (one.update, one.trajectory.task.id, -1 - one.trajectory.sample): one
        for one in stored
        if one.trajectory.given
    }
    assert len(teachers) == len(students) == 2 * 3 * 2
    for key, student in students.items():
        teacher = teachers[key]
        said = teacher.trajectory.turns[0].observation.messages[0].content
        assert said == "plan: " + "; ".join(
            teacher.trajectory.turns[0].observation.plan
        ) + "\n" + first_words(student)
        for one, other in zip(teacher.trajectory.turns, student.trajectory.turns, strict=True):
            np.testing.assert_array_equal(one.action.tokens, other.action.tokens)
            np.testing.assert_array_equal(one.action.logprobs, other.action.logprobs)
        assert [turn.action.prompt.tolist() for turn in student.trajectory.turns] == rendered_anew(
            student, tmp_path
        )
        assert [turn.action.prompt.tolist() for turn in teacher.trajectory.turns] == rendered_anew(
            teacher, tmp_path
        )
        pull_T = student.scored.measured.old_logprobs - teacher.scored.measured.old_logprobs
        assert np.abs(pull_T).max() > 1e-5
        expected = student.credited.advantages_T + 0.25 * pull_T
        np.testing.assert_allclose(teacher.credited.advantages_T, expected, atol=1e-6)


def test_privileged_play_needs_information(tmp_path):
    with pytest.raises(ConfigError, match="there is no information for any episode of update 0"):
        collect(Privileged(source=PLAY), tmp_path, env=NoPlan(), agent=LOST, payment=PAY)


def gap(one):
    """Return how far the learner's log-probabilities are from the sampler's."""
    sampled = np.concatenate([turn.action.logprobs for turn in one.trajectory.turns])
    return np.abs(sampled - one.scored.measured.old_logprobs).max()


WARM = Thermostat(source=Rollouts(num_groups=4, group_size=4), num_groups=3, target=10.0, hot=2.0)


def test_a_thermostat_samples_hotter_below_its_target_and_imitates_what_succeeds(tmp_path):
    env = replace(Corridor(), max_turns=1)
    stage = replace(
        LEARN,
        source=WARM,
        credit=Given(RLOO(), given=0.5),
        objective=Objective(loss=SPLIT, off_policy=TokenTIS()),
    )
    for target, temperature in ((10.0, 2.0), (0.01, 0.8)):
        folder = tmp_path / str(target)
        tiny.run(tiny.only(replace(stage, source=replace(WARM, target=target)), env=env), folder)
        records = read_metrics(folder / "metrics.jsonl")
        added = [record["guidance/tempered"] for record in records]
        assert [record["guidance/temperature"] for record in records] == [temperature] * 2
        assert all(0 < number < 12 for number in added)
        given = [one for one in tiny.stored(folder) if one.trajectory.given]
        assert len(given) == sum(added)
        for one in given:
            assert one.trajectory.success
            assert set(one.credited.advantages_T.tolist()) == {0.5}
        own = [one for one in tiny.stored(folder) if one.update == 0 and not one.trajectory.given]
        sampled = np.concatenate([turn.action.logprobs for one in own for turn in one.trajectory.turns])
        assert max(gap(one) for one in own) < 1e-5
        assert min(gap(one) for one in given) > 1e-4
        assert records[0]["guidance/entropy"] == pytest.approx(-sampled.mean(), abs=1e-5)


def test_a_thermostat_takes_half_as_many_above_its_target(tmp_path):
    def agent_at(temperature):
        return ExpertPolicy()

    class Sampled:  # one token, whose log-probability is -1
        async def act(self, turns, observation, *, seed):
            return replace(tokenised, text="e")

    tokenised = Action("e", np.array([1], np.int32), np.array([2], np.int32), np.array([-1.0], np.float32), 0)
    for target, number in ((1.0, 8), (0.5, 4)):
        source = replace(WARM, target=target, most=8, num_groups=4)
        (found,) = collect(source, tmp_path, agent=Sampled(), payment=PAY, agent_at=agent_at)
        assert found.counts["guidance/tempered"] == number
        assert found.counts["guidance/entropy"] == pytest.approx(1.0)


def test_a_guided_run_that_is_resumed_ends_as_if_it_had_not_stopped(tmp_path):
    source = replace(WARM, source=Scaffold(source=PLAY))
    stage = replace(LEARN, updates=3, source=source, credit=Given(RLOO()), objective=Objective(loss=SPLIT))
    expected = tiny.remains_of(tiny.only(stage), tmp_path / "whole")
    tiny.run(tiny.only(stage), tmp_path / "run")
    weights = tmp_path / "run" / "checkpoints" / "000003" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "at update 2 of 3" in tiny.run(tiny.only(stage), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "torn-000003")
    assert tiny.remains(tmp_path / "run") == expected


@pytest.mark.slow
def test_where_success_never_happens_by_itself_demonstrations_teach_what_reinforcement_does_not(tmp_path):
    play = Rollouts(num_groups=8, group_size=4)
    changes = {
        "credit": Given(RLOO()),
        "objective": Objective(loss=SPLIT),
        "optimisation": replace(LEARN.optimisation, lr=1e-2),
    }
    for name, source, low, high in (
        ("gated", DemonstrationGate(source=play), 0.9, 1.0),
        ("alone", play, 0.0, 0.6),
    ):
        recipe = guided(source, updates=30, minibatches=2, evaluate=True, **changes)
        success = tiny.reports_of(recipe, tmp_path / name)["learn-30"].metrics()["eval/success"]
        assert low <= success <= high, name
    assert (
        tiny.numbers(tmp_path / "gated", "guidance/demonstrated")[-1] < 4
    )  # it has learned, and is reinforced


PROBLEMS = {
    "a loss for all": (
        DemonstrationGate(source=PLAY),
        {"credit": Given(RLOO())},
        "Clip alone treats all tokens alike; use objective.loss=",
    ),
    "credit that compares": (
        Thermostat(source=PLAY),
        {"objective": Objective(loss=SPLIT)},
        "RLOO would compare them with each other; use credit=Given(RLOO(...))",
    ),
    "students like teachers": (
        Privileged(source=PLAY),
        {},
        "Privileged adds tokens that the agent did not sample",
    ),
    "refinements like all": (Refined(source=PLAY, refinements=0), {}, "source.refinements is 0"),
    "no hint": (Scaffold(source=PLAY, hints=()), {}, "source.hints is empty"),
    "hints too late": (Scaffold(source=PLAY, since=2), {}, "source.since is 2; the stage has 2 updates"),
    "a gate of counts": (DemonstrationGate(source=PLAY, gate=2.0), {}, "source.gate is 2; it is a share"),
    "cold above hot": (Thermostat(source=PLAY, hot=0.5), {}, "source.cold is 0.8 and source.hot 0.5"),
    "too few": (Thermostat(source=PLAY, most=1), {}, "source.most is 1"),
    "refills without filters": (
        Scaffold(source=replace(PLAY, refills=2)),
        {},
        "filters are applied after Scaffold; set it to 0",
    ),
    "students parted from teachers": (
        Scaffold(source=Privileged(source=PLAY)),
        {"objective": Objective(loss=SPLIT)},
        "Scaffold wraps Privileged",
    ),
    "demonstrations guided": (
        Scaffold(source=Demonstrations(policy=LOST, num_episodes=4)),
        {"credit": ConstantCredit()},
        "let it wrap Rollouts",
    ),
    "nothing within": (
        Scaffold(source=Scaffold(source=replace(PLAY, num_groups=0))),
        {},
        "source.source.source.num_groups is 0",
    ),
}


@pytest.mark.parametrize(("source", "changes", "message"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_what_cannot_work_is_refused(source, changes, message):
    with pytest.raises(ConfigError) as caught:
        check(guided(source, **changes))
    assert message in str(caught.value)


def test_what_can_work_is_not_refused():
    check(guided(Privileged(source=replace(PLAY, refills=1)), objective=Objective(loss=SPLIT)))
    check(
        guided(
            DemonstrationGate(source=Scaffold(source=PLAY)),
            credit=Given(RLOO()),
            objective=Objective(loss=SPLIT),
        )
    )
