"""Teachers: their log-probabilities of the policy's own tokens, and the credit that uses them."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
from corridor import Corridor
from strategies import scored, trajectory

from agentrl.credit.group import RLOO
from agentrl.credit.teachers import OPSD, Distil
from agentrl.errors import ConfigError
from agentrl.learner.spec import Teacher, expert_plan, first_action
from agentrl.learner.teacher import with_information
from agentrl.losses.clip import Clip
from agentrl.losses.objective import Objective
from agentrl.recipe.check import check
from agentrl.types import Credited, Observation, floats, ints

CLOSE = {"rtol": 0.0, "atol": 1e-5}


def measured(own, teacher, base=None):
    one = scored([0.0] * len(own), [1] * len(own))
    return one.with_measured(
        old_logprobs=floats(own),
        teacher_logprobs=floats(teacher),
        ref_logprobs=None if base is None else floats(base),
    )


def advantages(rule, one, before=None):
    before = np.zeros(one.trajectory.num_tokens) if before is None else before
    ((found,),) = rule([(one,)], [(Credited(floats(before)),)])
    return found.advantages_T


def test_self_distillation_adds_what_the_teacher_prefers():
    one = measured([-0.7, -1.0], [-0.9, -0.4])
    np.testing.assert_allclose(advantages(OPSD(beta=1.0), one), [-0.2, 0.6], **CLOSE)
    np.testing.assert_allclose(advantages(OPSD(beta=0.25), one, [1.0, 1.0]), [0.95, 1.15], **CLOSE)


def test_distillation_follows_the_teacher_and_may_go_beyond_it():
    one = measured([-1.0, -2.0], [-0.5, -2.5], base=[-1.2, -1.8])
    np.testing.assert_allclose(advantages(Distil(), one, [9.0, 9.0]), [0.5, -0.5], **CLOSE)
    np.testing.assert_allclose(advantages(Distil(lam=1.25), one), [0.675, -0.675], **CLOSE)
    assert Distil().needs == {"old_logprobs", "teacher_logprobs"}
    assert "ref_logprobs" in Distil(lam=1.25).needs


def test_information_comes_before_every_context_and_changes_no_action():
    record = trajectory([2, 0, 1], prompt=3)
    turns = tuple(
        replace(turn, action=replace(turn.action, fresh=n == 2)) for n, turn in enumerate(record.turns)
    )
    one = replace(scored([0.0] * 3), trajectory=replace(record, turns=turns))
    informed = with_information(one, ints([91, 92])).trajectory.turns
    assert [turn.action.prompt.tolist() for turn in informed] == [
        [91, 92, 7, 7, 7],
        [7, 7, 7],
        [91, 92, 7, 7, 7],
    ]
    assert [turn.action.tokens.tolist() for turn in informed] == [
        turn.action.tokens.tolist() for turn in turns
    ]


def test_what_an_expert_would_do_is_information():
    record = trajectory([1])
    with_plan = replace(
        record, turns=(replace(record.turns[0], observation=Observation.text("door", plan=("a", "b"))),)
    )
    assert expert_plan(with_plan) == "plan: a; b\n"
    assert first_action(with_plan) == "hint: a\n"
    assert expert_plan(record) == first_action(replace(record, turns=())) == ""


def nothing(trajectory):
    return ""


STAGE = replace(
    tiny.LEARN,
    evaluate=False,
    updates=3,
    credit=RLOO(),
    modifiers=(OPSD(beta=0.5),),
    objective=Objective(loss=Clip()),
    teacher=Teacher(),
)


def test_a_teacher_that_is_told_nothing_agrees_with_itself(tmp_path):
    tiny.run(tiny.only(replace(STAGE, teacher=Teacher(information=nothing))), tmp_path)
    for one in tiny.stored(tmp_path):
        np.testing.assert_allclose(
            one.scored.measured.teacher_logprobs, one.scored.measured.old_logprobs, atol=1e-5
        )


def test_a_teacher_that_is_told_the_plan_thinks_otherwise_and_is_stored(tmp_path):
    tiny.run(tiny.only(STAGE, env=Corridor(max_turns=2)), tmp_path)
    gaps = [
        np.abs(one.scored.measured.teacher_logprobs - one.scored.measured.old_logprobs).max()
        for one in tiny.stored(tmp_path)
    ]
    assert min(gaps) > 1e-4


def test_another_model_may_teach(tmp_path):
    tiny.run(tiny.only(replace(STAGE, updates=1)), tmp_path / "first")
    (folder,) = (tmp_path / "first" / "checkpoints").glob("*/model")
    other = Teacher(information=nothing, model=replace(tiny.recipe.model, folder=str(folder), shape=None))
    recipe = tiny.only(
        replace(STAGE, updates=2, teacher=other),
        model=replace(tiny.recipe.model, folder=str(folder), shape=None, tokenizer=None),
    )
    tiny.run(recipe, tmp_path / "second")
    first, second = (
        [one for one in tiny.stored(tmp_path / "second") if one.update == update] for update in (0, 1)
    )
    for one in first:  # both are the model of the folder still
        np.testing.assert_allclose(
            one.scored.measured.teacher_logprobs, one.scored.measured.old_logprobs, atol=1e-5
        )
    assert any(
        np.abs(one.scored.measured.teacher_logprobs - one.scored.measured.old_logprobs).max() > 1e-4
        for one in second
    )


def test_a_piece_that_needs_a_teacher_needs_one():
    with pytest.raises(
        ConfigError, match=r"needs teacher_logprobs, and there is no teacher; set Stage\.teacher"
    ):
        check(tiny.only(replace(STAGE, teacher=None)))
