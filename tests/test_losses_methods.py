"""Losses and regularisers of published methods: golden values, and one gradient for all ratios on-policy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_inputs import gradient, inputs, tensor

from agentrl.errors import ConfigError
from agentrl.losses import PolicyGradient
from agentrl.losses.clip import Clip
from agentrl.losses.divergences import (
    AlphaDivergence,
    EntropyTarget,
    Rehearsal,
    TeacherKL,
    chi_squared,
    forward_kl,
    jensen_shannon,
)
from agentrl.losses.kl import KL, k2
from agentrl.losses.ratios import CISPO, GMPO, GSPO, SAPO, TOPR, CritiqueShaped, MirrorDescent
from agentrl.losses.tis import TokenTIS

CLOSE = {"rtol": 0.0, "atol": 1e-5}
RATIO_LOSSES = [Clip(), GSPO(), CISPO(), SAPO(negative=1.0), SAPO(), GMPO(), TOPR(), MirrorDescent()]


def test_gspo_clips_the_mean_ratio_of_the_sequence():
    ratios = [0.003, -0.001, 0.002]
    for advantage, expected in ((1.0, -1.0004), (-1.0, 1.001334)):
        loss_A, measured = GSPO()(inputs(ratios, old=[0, 0, 0], advantages=[advantage] * 3))
        np.testing.assert_allclose(loss_A, [expected] * 3, **CLOSE)
    np.testing.assert_allclose(measured["ratio"], [1.001334] * 3, **CLOSE)


def test_gspo_of_a_sequence_moves_each_of_its_tokens_by_its_ratio():
    x = inputs([0.003, -0.001, 0.002], old=[0, 0, 0], advantages=[-1.0] * 3)
    np.testing.assert_allclose(gradient(GSPO(), x), [1.001334] * 3, **CLOSE)


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-2, 2)), min_size=1, max_size=6))
def test_gspo_of_one_token_sequences_is_the_clipped_surrogate(tokens):
    ratios, advantages = zip(*tokens, strict=True)
    x = inputs(
        list(ratios), old=[0.0] * len(ratios), advantages=list(advantages), sequence=list(range(len(ratios)))
    )
    np.testing.assert_allclose(GSPO(0.2, 0.28)(x)[0], Clip(0.2, 0.28)(x)[0], atol=1e-12)


def test_cispo_clips_the_weight_and_keeps_every_gradient():
    logprobs = np.log([0.5, 0.2, 0.4])
    x = inputs(logprobs, old=logprobs - [0.3, -0.4, 0.1], advantages=[1, 1, -1])
    loss_A, measured = CISPO(low=0.2, high=0.28)(x)
    np.testing.assert_allclose(loss_A, [0.887228, 1.28755, -1.012658], **CLOSE)
    assert float(loss_A.mean()) == pytest.approx(0.387374, abs=1e-5)
    assert measured["clip_fraction"].tolist() == [1, 1, 0]
    np.testing.assert_allclose(gradient(CISPO(low=0.2, high=0.28), x), [-1.28, -0.8, 1.105171], **CLOSE)


def test_sapo_is_a_soft_gate():
    x = inputs([0.3, -0.4, 0.1], old=[0, 0, 0], advantages=[1, 1, -1])
    np.testing.assert_allclose(SAPO(negative=1.0)(x)[0], [-2.346333, -1.673274, 2.105074], **CLOSE)
    assert float(SAPO()(x)[0][2]) != pytest.approx(2.105074, abs=1e-3)
    np.testing.assert_allclose(SAPO()(inputs([0.0], old=[0], advantages=[1]))[0], [-2.0], **CLOSE)


def test_gmpo_is_the_geometric_mean_of_clipped_ratios():
    x = inputs([0.3, -0.6, 0.4], old=[0, 0, 0], advantages=[1, 1, 1])
    np.testing.assert_allclose(GMPO()(x)[1]["ratio"], [1.105171] * 3, **CLOSE)
    np.testing.assert_allclose(GMPO(one_sided=True)(x)[1]["ratio"], [np.exp(0.1 / 3)] * 3, **CLOSE)


def test_topr_imitates_successes_and_lets_failures_fade():
    x = inputs([-3.0, -4.0, -6.0], old=[-3.7, -4.2, -4.5], advantages=[1, -1, -1], sequence=[0, 1, 2])
    loss_A, measured = TOPR()(x)
    np.testing.assert_allclose(measured["taper"], [1.0, 1.0, 0.22313], **CLOSE)
    np.testing.assert_allclose(loss_A, [3.0, -4.0, -1.338781], **CLOSE)


def test_mirror_descent_comes_to_the_exponentiated_policy():
    old, advantages = tensor([0.5, 0.3, 0.2]), tensor([1.0, 0.0, -1.0])
    logits = old.log().requires_grad_()
    loss = MirrorDescent(step=0.5)
    for _ in range(4000):
        logprobs = torch.log_softmax(logits, 0)
        terms, _ = loss(
            inputs(logprobs, old=old.log().tolist(), advantages=advantages.tolist(), sequence=[0, 1, 2])
        )
        (slope,) = torch.autograd.grad((old * terms).sum(), logits)  # the expectation under the old policy
        logits = (logits - 0.5 * slope).detach().requires_grad_()
    np.testing.assert_allclose(torch.softmax(logits, 0).detach(), [0.661783, 0.240835, 0.097382], **CLOSE)
    logits = logits.detach()
    objective = -float(
        (
            old
            * loss(
                inputs(torch.log_softmax(logits, 0), old=old.log().tolist(), advantages=advantages.tolist())
            )[0]
        ).sum()
    )
    assert objective == pytest.approx(0.439342, abs=1e-5)


def test_refinements_are_shaped_by_what_the_policy_finds_likely():
    x = inputs(np.log([0.9, 0.1, 0.01]))
    np.testing.assert_allclose(CritiqueShaped()(x)[0], [-0.9, -0.5, -0.090909], **CLOSE)
    np.testing.assert_allclose(gradient(CritiqueShaped(), x), [-0.09, -0.25, -0.082645], **CLOSE)


@pytest.mark.parametrize("loss", RATIO_LOSSES, ids=repr)
@given(
    st.lists(st.tuples(st.floats(-3, -0.01), st.sampled_from([-1.5, -1.0, 0.5, 2.0])), min_size=1, max_size=6)
)
def test_on_policy_every_ratio_means_the_policy_gradient(loss, tokens):
    logprobs, advantages = zip(*tokens, strict=True)
    x = inputs(
        list(logprobs), advantages=list(advantages), sequence=sorted(i % 2 for i in range(len(tokens)))
    )
    np.testing.assert_allclose(gradient(loss, x), gradient(PolicyGradient(), x), atol=1e-9)


def test_decoupled_ppo_clips_on_one_ratio_and_weighs_with_the_other():
    x = inputs([-1.0, -2.0], old=[-1.1, -1.8], behaviour=[-1.5, -1.7], advantages=[1, -1])
    weight = TokenTIS(cap=5.0)(x.old_logprobs_A, x.behaviour_logprobs_A, x.sequence_A)
    np.testing.assert_allclose(weight, [1.491825, 0.904837], **CLOSE)
    loss = weight * Clip()(x)[0]
    np.testing.assert_allclose(loss, [-1.648721, 0.740818], **CLOSE)
    assert float(loss.mean()) == pytest.approx(-0.453952, abs=1e-5)


def test_divergences_from_what_the_model_was():
    ratios = np.log([0.5, 1.0, 2.0])
    for generator, expected in (
        (forward_kl, [0.193147, 0.0, 0.306853]),
        (jensen_shannon, [0.08495, 0.0, 0.169899]),
        (AlphaDivergence(0.2), [0.160318, 0.0, 0.368118]),
        (chi_squared, [0.25, 0.0, 1.0]),
    ):
        loss_A, measured = Rehearsal(2.0, generator)(inputs(ratios, behaviour=[0.0] * 3))
        np.testing.assert_allclose(measured["kept_divergence"], expected, **CLOSE)
        np.testing.assert_allclose(loss_A, 2.0 * np.array(expected), **CLOSE)


def test_chi_squared_of_two_places():
    base, policy = np.array([0.5, 0.5]), np.array([0.7, 0.3])
    found = chi_squared(tensor(np.log(policy / base).tolist())).numpy()
    assert float(base @ found) == pytest.approx(0.16, abs=1e-6)


def test_a_teacher_is_followed_with_k2():
    x = inputs([0.2, -0.5, 0.0], reference=[0.0, 0.0, 0.0], advantages=[1, -1, -1])
    loss_A, measured = TeacherKL()(x)
    assert float(loss_A.mean()) == pytest.approx(0.000242, abs=1e-6)
    np.testing.assert_allclose(measured["teacher_kl"], [0.2, -0.5, 0.0], **CLOSE)
    np.testing.assert_allclose(loss_A, KL(5e-3, k2)(x)[0])
    np.testing.assert_allclose(gradient(TeacherKL(coef=1.0), x), [0.2, -0.5, 0.0], **CLOSE)
    assert TeacherKL(only_failures=True)(x)[0].tolist()[0] == 0.0


def test_entropy_is_pushed_to_its_target_from_both_sides():
    loss_A, _ = EntropyTarget(0.5, coef=1.0, slack=0.1)(inputs([-1.0] * 3, entropies=[0.2, 0.55, 1.0]))
    np.testing.assert_allclose(loss_A, [0.2, 0.0, 0.4], **CLOSE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GSPO(low=2.0), "clip range"),
        (lambda: SAPO(positive=0.0), "above 0"),
        (lambda: GMPO(log_clip=0.0), "positive"),
        (lambda: MirrorDescent(step=0.0), "above 0"),
        (lambda: AlphaDivergence(1.0), "not defined"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
