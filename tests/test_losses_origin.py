"""Losses by origin: each token gets the loss of its own origin and no other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from strategies import scored

from agentrl.credit.given import Given
from agentrl.credit.group import GRPO
from agentrl.credit.modifiers import Modified, Whiten
from agentrl.credit.penalty import KLPenalty
from agentrl.credit.teachers import TowardStudent
from agentrl.losses import LossInputs, NegativeLogLikelihood
from agentrl.losses.clip import Clip
from agentrl.losses.kl import KL
from agentrl.losses.origin import ByOrigin, FromTeacher
from agentrl.losses.ratios import GSPO, CritiqueShaped
from agentrl.types import Credited, floats

TEACHER, STUDENT = (-1.0, -0.5, -2.0), (-1.2, -0.5, -3.0)


def inputs(logprobs, behaviour, *, advantages=None, given=None, sequence=None, **more):
    sequence = sequence or [0] * len(logprobs)
    return LossInputs(
        logprobs_A=torch.tensor(logprobs, dtype=torch.float64, requires_grad=True),
        old_logprobs_A=torch.tensor(behaviour, dtype=torch.float64),
        behaviour_logprobs_A=torch.tensor(behaviour, dtype=torch.float64),
        advantages_A=torch.tensor(advantages or [1.0] * len(logprobs), dtype=torch.float64),
        sequence_A=torch.tensor(sequence),
        turn_A=torch.tensor(sequence),
        given_A=None if given is None else torch.tensor(given),
        **more,
    )


def test_a_student_imitates_its_informed_self_and_is_paid_what_that_was_paid():
    x = inputs(STUDENT, TEACHER)
    loss_A, measured = FromTeacher(beta=0.25)(x)
    np.testing.assert_allclose(measured["teacher_ratio"], [0.818731, 1.0, 0.367879], atol=1e-5)
    np.testing.assert_allclose(measured["teacher_kl"], [0.2, 0.0, 1.0], atol=1e-5)
    paid = -FromTeacher(beta=0.0)(x)[0]
    # the worked number takes the ratio's mean and the divergence's sum
    j_student = paid.mean() + (-loss_A - paid).sum()
    assert j_student.item() == pytest.approx(0.42887, abs=1e-5)
    loss_A.sum().backward()
    np.testing.assert_allclose(
        x.logprobs_A.grad, [-0.818731 - 0.25, -1.0 - 0.25, -0.367879 - 0.25], atol=1e-5
    )


def test_a_teacher_is_paid_less_where_its_student_would_not_follow():
    teacher = scored([1.0, 1.0, 1.0]).with_measured(old_logprobs=floats(TEACHER))
    turns = tuple(replace(turn, action=replace(turn.action, version=-1)) for turn in teacher.trajectory.turns)
    student = replace(
        teacher, trajectory=replace(teacher.trajectory, turns=turns, sample=-1 - teacher.trajectory.sample)
    ).with_measured(old_logprobs=floats(STUDENT))
    before = Credited(floats([1.0, 1.0, 1.0]))
    (of_teacher,), (of_student,) = TowardStudent(0.25)([(teacher,), (student,)], [(before,), (before,)])
    np.testing.assert_allclose(of_teacher.advantages_T, [0.95, 1.0, 0.75], atol=1e-6)
    j_teacher = 1.0 + (of_teacher.advantages_T - 1.0).sum()
    assert j_teacher == pytest.approx(0.7, abs=1e-5)
    assert (j_teacher + 0.42887) / 2 == pytest.approx(0.564435, abs=1e-5)
    np.testing.assert_array_equal(of_student.advantages_T, before.advantages_T)
    ((alone,),) = TowardStudent(0.25)([(teacher,)], [(before,)])
    np.testing.assert_array_equal(alone.advantages_T, before.advantages_T)


def test_each_token_has_the_loss_of_its_origin_times_its_weight():
    given = [False, True, False, True]
    x = inputs(
        [-1.0, -2.0, -0.5, -0.1],
        [-1.3, np.nan, -0.4, np.nan],
        advantages=[1.0, 1.0, -1.0, 2.0],
        given=given,
        sequence=[0, 1, 0, 1],
    )
    both = ByOrigin(own=Clip(), given=NegativeLogLikelihood(), own_weight=2.0, given_weight=0.3)
    loss_A, measured = both(x)
    loss_A.sum().backward()
    alone = inputs([-1.0, -0.5], [-1.3, -0.4], advantages=[1.0, -1.0])
    expected_A, expected = Clip()(alone)
    expected_A.sum().backward()
    np.testing.assert_allclose(
        loss_A.detach(), [2 * expected_A[0].item(), 0.3 * 2.0, 2 * expected_A[1].item(), 0.3 * 0.2], rtol=1e-9
    )
    np.testing.assert_allclose(
        x.logprobs_A.grad,
        [2 * float(alone.logprobs_A.grad[0]), -0.3, 2 * float(alone.logprobs_A.grad[1]), -0.6],
        rtol=1e-9,
    )
    np.testing.assert_allclose(measured["ratio"], expected["ratio"])
    np.testing.assert_allclose(measured["nll"], [2.0, 0.1])
    assert measured["given"].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_where_there_is_one_origin_the_other_loss_is_not_asked():
    x = inputs([-1.0, -2.0], [-1.0, -2.1])
    for given, loss in ((None, GSPO()), ([False, False], GSPO()), ([True, True], CritiqueShaped())):
        found_A, _ = ByOrigin(own=GSPO(), given=CritiqueShaped())(
            replace(x, given_A=None if given is None else torch.tensor(given))
        )
        torch.testing.assert_close(found_A, loss(x)[0])


def test_a_measurement_that_both_make_is_of_all_tokens():
    x = inputs([-1.0, -2.0, -3.0], [-1.0] * 3, given=[False, True, False])
    _, measured = ByOrigin(own=NegativeLogLikelihood(), given=NegativeLogLikelihood())(x)
    assert sorted(measured["nll"].tolist()) == [1.0, 2.0, 3.0]
    assert ByOrigin(own=Clip(), given=KL()).needs == {"ref_logprobs"}


def given(one):
    turns = tuple(replace(turn, action=replace(turn.action, version=-1)) for turn in one.trajectory.turns)
    return replace(one, trajectory=replace(one.trajectory, turns=turns))


def test_groups_that_were_given_are_credited_alike_and_never_compared():
    played = [(scored([1.0]), scored([0.0])), (scored([0.0]), given(scored([1.0])))]
    shown = (given(scored([1.0, 0.0], [2, 1])),)
    found = Given(GRPO(), given=0.3)([played[0], shown, played[1]])
    plain = GRPO()(played)
    for mine, theirs in zip((found[0], found[2]), plain, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(one.advantages_T, other.advantages_T)
    np.testing.assert_allclose(found[1][0].advantages_T, [0.3] * 3)
    assert Given(GRPO()).min_group == 2
    assert Given(GRPO()).handles_given
    assert not GRPO().handles_given
    assert Modified(KLPenalty(Given(GRPO())), (Whiten(),)).handles_given
    assert len(Given(GRPO())([shown])) == 1


def test_demonstrations_without_tokens_are_not_given():
    one = scored([1.0])
    empty = replace(
        one.trajectory.turns[0].action,
        tokens=one.trajectory.turns[0].action.tokens[:0],
        logprobs=floats(),
        version=-1,
    )
    assert not one.trajectory.given
    assert not replace(one.trajectory, turns=(replace(one.trajectory.turns[0], action=empty),)).given
    assert given(one).trajectory.given
