import math
from collections.abc import Sequence

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_inputs import inputs, tensor
from strategies import turn_lengths

from agentrl.errors import ConfigError
from agentrl.losses import NegativeLogLikelihood, PolicyGradient
from agentrl.losses.aggregation import (
    SeqSumOver,
    seq_mean_then_mean,
    seq_sum_then_mean,
    token_mean,
    turn_mean,
)
from agentrl.losses.clip import Clip
from agentrl.losses.entropy import EntropyBonus
from agentrl.losses.kl import KL, k1, k2, k3
from agentrl.losses.tis import SequenceTIS, TokenRejection, TokenTIS
from agentrl.losses.value import ValueLoss, value_loss

CLOSE = {"rtol": 0.0, "atol": 1e-5}
AGGREGATIONS = [token_mean, seq_sum_then_mean, seq_mean_then_mean, turn_mean, SeqSumOver(3.0)]


# The clipped surrogate. Log-ratios .3, -.4, .1 are ratios 1.349859, .67032, 1.105171.


def test_the_surrogate_clips_only_where_that_makes_it_worse():
    x = inputs([0.3, -0.4, 0.1], old=[0, 0, 0], advantages=[1, 1, -1])
    loss_A, measured = Clip()(x)
    np.testing.assert_allclose(loss_A, [-1.2, -0.67032, 1.105171], **CLOSE)
    np.testing.assert_allclose(measured["ratio"], [1.349859, 0.67032, 1.105171], **CLOSE)
    assert measured["clip_fraction"].tolist() == [1, 0, 0]


def test_a_higher_upper_clip_lets_more_through():
    loss_A, _ = Clip(low=0.2, high=0.28)(inputs([0.3, -0.4, 0.1], old=[0, 0, 0], advantages=[1, 1, -1]))
    np.testing.assert_allclose(loss_A, [-1.28, -0.67032, 1.105171], **CLOSE)


def test_the_dual_clip_bounds_what_a_bad_token_costs():
    x = inputs([math.log(5.0)], old=[0], advantages=[-1])
    assert Clip()(x)[0].item() == pytest.approx(5.0)
    loss_A, measured = Clip(dual=3.0)(x)
    assert loss_A.item() == pytest.approx(3.0)
    assert measured["clip_fraction"].item() == 1


@given(
    st.floats(-3, 3), st.floats(-2, 2), st.floats(0, 1), st.floats(0, 1), st.sampled_from([None, 1.5, 3.0])
)
def test_the_surrogate_equals_the_reference(log_ratio, advantage, low, high, dual):
    loss_A, _ = Clip(low=low, high=high, dual=dual)(
        inputs([log_ratio - 1.0], old=[-1.0], advantages=[advantage])
    )
    assert loss_A.item() == pytest.approx(
        reference.clipped_surrogate(log_ratio, advantage, low, high, dual), abs=1e-9
    )


@given(st.floats(-3, 3), st.floats(-2, 2).filter(lambda advantage: abs(advantage) > 1e-3))
def test_a_token_counted_as_clipped_has_no_gradient_and_the_others_have(log_ratio, advantage):
    logprobs = tensor([log_ratio]).requires_grad_()
    loss_A, measured = Clip(dual=3.0)(inputs(logprobs, old=[0], advantages=[advantage]))
    loss_A.sum().backward()
    expected = 0.0 if measured["clip_fraction"].item() else -advantage * math.exp(log_ratio)
    assert logprobs.grad.item() == pytest.approx(expected, abs=1e-9)
    assert not any(values.requires_grad for values in measured.values())


@given(st.lists(st.tuples(st.floats(-5, 0), st.floats(-2, 2)), min_size=1, max_size=5))
def test_on_the_policy_that_sampled_every_loss_has_the_gradient_of_the_policy_gradient(tokens):
    gradients = []
    for loss in (Clip(), PolicyGradient(), NegativeLogLikelihood()):
        logprobs = tensor([logprob for logprob, _ in tokens]).requires_grad_()
        loss(inputs(logprobs, advantages=[advantage for _, advantage in tokens]))[0].sum().backward()
        gradients.append(logprobs.grad)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, [-advantage for _, advantage in tokens], atol=1e-9)


def test_an_absurd_ratio_stays_finite():
    for logprob in (-200.0, 0.0):
        loss_A, measured = Clip()(inputs([logprob], old=[-100.0], advantages=[-1]))
        assert torch.isfinite(loss_A).all()
        assert all(torch.isfinite(values).all() for values in measured.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": -0.1}, "0 <= low <= 1"),
        ({"low": 1.5}, "0 <= low <= 1"),
        ({"high": -0.1}, "high >= 0"),
        ({"dual": 1.0}, "above 1"),
    ],
)
def test_a_clip_range_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Clip(**options)


def test_imitation_is_the_weighted_likelihood():
    loss_A, measured = NegativeLogLikelihood()(inputs([-1.0, -2.0], advantages=[1.0, 0.5]))
    np.testing.assert_allclose(loss_A, [1.0, 1.0])
    np.testing.assert_allclose(measured["nll"], [1.0, 2.0])


# Divergence and entropy. d = .2, -.5, 0.


def test_the_three_divergence_estimators():
    d = tensor([0.2, -0.5, 0.0])
    np.testing.assert_allclose(k1(d), [0.2, -0.5, 0.0], **CLOSE)
    np.testing.assert_allclose(k2(d), [0.02, 0.125, 0.0], **CLOSE)
    np.testing.assert_allclose(k3(d), [0.018731, 0.148721, 0.0], **CLOSE)
    np.testing.assert_allclose(
        [k1(d).mean(), k2(d).mean(), k3(d).mean()], [-0.1, 0.048333, 0.055817], **CLOSE
    )


def test_divergences_are_cut():
    loss_A, measured = KL(coef=1.0, estimator=k3)(inputs([-100.0, 0.0], reference=[0.0, -100.0]))
    np.testing.assert_allclose(loss_A, [10.0, 10.0])  # exp(20) - 21 and exp(-20) + 19, both cut at 10
    np.testing.assert_allclose(measured["ref_kl"], [-20.0, 20.0])


def test_k1_as_a_loss_is_refused_because_it_does_nothing():
    with pytest.raises(ConfigError, match="expected gradient of zero"):
        KL(estimator=k1)


logits = st.lists(st.floats(-0.6, 0.6), min_size=3, max_size=3)
"""So close to each other that k3 is not cut."""


@given(logits, logits)
def test_expected_gradients_of_the_estimators_as_losses(mine, theirs):
    """Over the tokens of a softmax policy: k1 gives 0, k2 that of KL(pi || ref), k3 that of KL(ref || pi)."""
    ref = torch.log_softmax(tensor(theirs), 0)

    def gradient(objective) -> torch.Tensor:
        logits = tensor(mine).requires_grad_()
        objective(torch.log_softmax(logits, 0)).backward()
        return logits.grad

    def expected(estimator):
        return gradient(lambda logprobs: (logprobs.detach().exp() * estimator(logprobs - ref)).sum())

    np.testing.assert_allclose(expected(k1), [0, 0, 0], atol=1e-9)
    np.testing.assert_allclose(
        expected(k2), gradient(lambda logprobs: (logprobs.exp() * (logprobs - ref)).sum()), atol=1e-9
    )
    np.testing.assert_allclose(
        expected(k3), gradient(lambda logprobs: (ref.exp() * (ref - logprobs)).sum()), atol=1e-9
    )


def test_entropy_is_rewarded():
    loss_A, measured = EntropyBonus(coef=0.5)(inputs([-1.0, -1.0], entropies=[2.0, 0.0]))
    np.testing.assert_allclose(loss_A, [-1.0, 0.0])
    np.testing.assert_allclose(measured["entropy"], [2.0, 0.0])


def test_regularisers_name_what_they_need_and_miss_it():
    assert KL().needs == {"ref_logprobs"}
    assert EntropyBonus().needs == {"entropies"}
    for regulariser in (KL(), EntropyBonus()):
        with pytest.raises(AssertionError, match="were not measured"):
            regulariser(inputs([-1.0]))


# Off-policy weights. Ratios exp(.1), exp(1), exp(-.1).

PROX, BEHAVIOUR = tensor([-1.0, -2.0, -0.5]), tensor([-1.1, -3.0, -0.4])
ONE_SEQUENCE = torch.zeros(3, dtype=torch.int64)


def test_token_weights_are_capped():
    np.testing.assert_allclose(
        TokenTIS(cap=100.0)(PROX, BEHAVIOUR, ONE_SEQUENCE), [1.105171, 2.718282, 0.904837], **CLOSE
    )
    np.testing.assert_allclose(TokenTIS()(PROX, BEHAVIOUR, ONE_SEQUENCE), [1.105171, 2.0, 0.904837], **CLOSE)


def test_the_weight_of_a_sequence_is_its_product_capped():
    np.testing.assert_allclose(SequenceTIS()(PROX, BEHAVIOUR, ONE_SEQUENCE), [2.0, 2.0, 2.0], **CLOSE)
    # two sequences: exp(.1), and exp(1 - .1)
    weights_A = SequenceTIS(cap=100.0)(PROX, BEHAVIOUR, torch.tensor([0, 1, 1]))
    np.testing.assert_allclose(weights_A, [1.105171, 2.459603, 2.459603], **CLOSE)


def test_rejection_keeps_what_is_near_the_policy():
    assert TokenRejection()(PROX, BEHAVIOUR, ONE_SEQUENCE).tolist() == [1, 0, 1]
    assert TokenRejection()(BEHAVIOUR, PROX, ONE_SEQUENCE).tolist() == [1, 0, 1]


def test_decoupled_weights_multiply_a_clip_on_the_proximal_policy():
    # ratios exp(.1), exp(-.2); weights exp(.4), exp(-.1);
    # the second ratio is .8187: not below .8, so nothing is clipped
    x = inputs([-1.0, -2.0], old=[-1.1, -1.8], behaviour=[-1.5, -1.7], advantages=[1, -1])
    weights_A = TokenTIS(cap=5.0)(x.old_logprobs_A, x.behaviour_logprobs_A, x.sequence_A)
    loss_A = weights_A * Clip()(x)[0]
    np.testing.assert_allclose(Clip()(x)[1]["ratio"], [1.105171, 0.818731], **CLOSE)
    np.testing.assert_allclose(weights_A, [1.491825, 0.904837], **CLOSE)
    np.testing.assert_allclose(loss_A, [-1.648721, 0.740818], **CLOSE)
    assert loss_A.mean().item() == pytest.approx(-0.453952, abs=1e-5)


@pytest.mark.parametrize("weight", [TokenTIS(), SequenceTIS(), TokenRejection()])
def test_on_policy_data_weigh_one_and_weights_carry_no_gradient(weight):
    logprobs = PROX.clone().requires_grad_()
    weights_A = weight(logprobs, PROX, ONE_SEQUENCE)
    assert weights_A.tolist() == [1, 1, 1]
    assert not weights_A.requires_grad
    empty = torch.zeros(0, dtype=torch.float64)
    assert weight(empty, empty, torch.zeros(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("weight", [TokenTIS, SequenceTIS, TokenRejection])
def test_a_cap_below_one_is_refused(weight):
    with pytest.raises(ConfigError, match="at least 1"):
        weight(cap=0.5)


# The critic.


def test_the_value_loss_is_half_the_squared_error_where_there_is_a_target():
    values = tensor([1.0, 2.0, 3.0]).requires_grad_()
    loss_A = ValueLoss(coef=2.0)(values, values.detach(), tensor([0.0, math.nan, 1.0]))
    assert loss_A.tolist() == [1.0, 0.0, 4.0]
    loss_A.sum().backward()
    assert values.grad.tolist() == [2.0, 0.0, 4.0]


def test_the_clipped_value_loss_takes_the_larger_error():
    # moved from 0 to 1 towards 2, held at .2: (2 - .2)^2 / 2;
    # moved away from the target: the plain error is larger
    loss_A = value_loss(tensor([1.0, -1.0]), tensor([0.0, 0.0]), tensor([2.0, 2.0]), clip=0.2)
    np.testing.assert_allclose(loss_A, [1.62, 4.5])


# Aggregations. Losses [[1, 2, 3], [4]].


def weighted(aggregation, losses: Sequence[Sequence[Sequence[float]]]) -> float:
    flat = [loss for sequence in losses for turn in sequence for loss in turn]
    weights_A = aggregation([[len(turn) for turn in sequence] for sequence in losses])
    assert weights_A.shape == (len(flat),)
    return float(weights_A @ np.array(flat)) if flat else 0.0


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        (token_mean, 10 / 4),
        (seq_sum_then_mean, (6 + 4) / 2),
        (seq_mean_then_mean, (2 + 4) / 2),
        (SeqSumOver(3.0), (6 + 4) / 2 / 3),
        (turn_mean, (1.5 + 3 + 4) / 3),
    ],
)
def test_each_aggregation_of_a_long_and_a_short_sequence(aggregation, expected):
    losses = [[[1.0, 2.0], [3.0]], [[4.0]]]
    assert weighted(aggregation, losses) == pytest.approx(expected)
    with_empty = [[], [[1.0, 2.0], [], [3.0]], [[]], [[4.0]]]
    assert weighted(aggregation, with_empty) == pytest.approx(expected)


@given(turn_lengths, st.randoms(use_true_random=False))
def test_aggregations_equal_the_reference(lengths, random):
    losses = [[[random.uniform(-1, 1) for _ in range(length)] for length in turns] for turns in lengths]
    for aggregation in (token_mean, seq_sum_then_mean, seq_mean_then_mean, turn_mean):
        assert weighted(aggregation, losses) == pytest.approx(
            getattr(reference, aggregation.__name__)(losses)
        )


@given(turn_lengths)
def test_the_weights_of_a_mean_add_up_to_one(lengths):
    tokens = sum(map(sum, lengths))
    for aggregation in (token_mean, seq_mean_then_mean, turn_mean):
        assert aggregation(lengths).sum() == pytest.approx(1.0 if tokens else 0.0)


@given(turn_lengths, st.integers(0, 5))
def test_micro_batches_add_up_to_the_batch(lengths, cut):
    tokens = sum(map(sum, lengths))
    losses_A = torch.linspace(-1.0, 1.0, tokens, dtype=torch.float64)
    at = sum(map(sum, lengths[:cut]))
    for aggregation in AGGREGATIONS:
        weights_A = torch.from_numpy(aggregation(lengths))
        split = (weights_A[:at] * losses_A[:at]).sum() + (weights_A[at:] * losses_A[at:]).sum()
        assert split.item() == pytest.approx((weights_A * losses_A).sum().item(), abs=1e-12)


def test_a_mean_of_micro_batch_means_would_not_add_up():
    whole, parts = [[3], [1]], [[[3]], [[1]]]
    assert not np.allclose(token_mean(whole), np.concatenate([token_mean(part) / 2 for part in parts]))


def test_sums_over_nothing_positive_are_refused():
    with pytest.raises(ConfigError, match="positive constant"):
        SeqSumOver(0.0)
