"""Losses over groups: golden values, definitions in float64 with autograd, and invariance to the division."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import ConfigError
from agentrl.losses import LossInputs
from agentrl.losses.aggregation import seq_mean_then_mean, seq_sum_then_mean, token_mean
from agentrl.losses.groups import NFT, OREAL, CoPG, DisCO, KLBound

CLOSE = {"rtol": 0.0, "atol": 1e-5}
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def inputs(logprobs, advantages, *, old=None, reference=None, sequence=None, group=None) -> LossInputs:
    """Tokens in sequences in groups: by default each token is a sequence, and all are one group."""
    logprobs = logprobs if isinstance(logprobs, torch.Tensor) else tensor(logprobs)
    sequence = torch.arange(len(logprobs)) if sequence is None else torch.tensor(sequence)
    group = torch.zeros_like(sequence) if group is None else torch.tensor(group)
    old = torch.zeros_like(logprobs.detach()) if old is None else tensor(old)
    reference = None if reference is None else tensor(reference)
    return LossInputs(
        logprobs, old, old, tensor(advantages), sequence, sequence, ref_logprobs_A=reference, group_A=group
    )


def gradient(loss, logprobs, advantages, *, weights=None, **others) -> np.ndarray:
    logprobs_A = tensor(logprobs).requires_grad_()
    loss_A, _ = loss(inputs(logprobs_A, advantages, **others))
    total = loss_A.sum() if weights is None else (tensor(weights) * loss_A).sum()
    return torch.autograd.grad(total, logprobs_A)[0].numpy()


# negative-aware fine-tuning


def test_nft_imitates_successes_and_what_failures_imply():
    logs = np.log([1.2, 1.2, 0.8])
    loss_A, measured = NFT()(inputs(logs, [0.75, -0.25, -0.25]))
    np.testing.assert_allclose(loss_A, 0.75 * np.array([-0.182322, 0.0, -0.064539]), **CLOSE)
    assert measured["clip_fraction"].tolist() == [0, 1, 0]
    loss_A, _ = NFT(floor=0.1)(inputs(logs, [0.75, -0.25, -0.25]))
    np.testing.assert_allclose(loss_A[1:], 0.75 * np.array([0.068993, -0.064539]), **CLOSE)


def test_nft_passes_the_gradient_through_the_floor():
    slopes = gradient(NFT(), np.log([1.2, 1.2, 1.0, 0.8]), [0.75, -0.25, -0.25, -0.25])
    np.testing.assert_allclose(slopes, 0.75 * np.array([-1.0, 0.4, 0.333333, 0.25]), **CLOSE)


def test_nft_weighs_groups_by_their_failures_or_as_grpo_does():
    for normalised, weight in ((False, 0.75), (True, 1.732051)):
        loss_A, _ = NFT(normalised=normalised)(inputs([1.0], [0.75]))
        np.testing.assert_allclose(loss_A, [-weight], **CLOSE)


@given(st.integers(2, 12), st.data())
def test_nft_on_policy_has_the_gradient_of_its_credit_rule(size, data):
    num_good = data.draw(st.integers(1, size - 1))
    share = num_good / size
    dr_grpo = np.array([1.0 - share] * num_good + [-share] * (size - num_good))
    np.testing.assert_allclose(gradient(NFT(), [0.0] * size, dr_grpo), -dr_grpo, **EXACT)
    grpo = dr_grpo / math.sqrt(share * (1.0 - share))
    np.testing.assert_allclose(gradient(NFT(normalised=True), [0.0] * size, dr_grpo), -grpo, **EXACT)


@given(st.floats(-30, 30), st.floats(0.03, 0.97), st.booleans())
def test_nft_raises_successes_and_lowers_failures_wherever_the_policy_is(log_ratio, share, good):
    (slope,) = gradient(NFT(), [log_ratio], [1.0 - share if good else -share])
    assert math.isfinite(slope)
    if abs(log_ratio) < 20:
        assert slope < 0 if good else slope > 0


def test_nft_has_nothing_to_say_of_groups_of_one_kind():
    loss_A, _ = NFT()(inputs([0.3, -0.3], [0.0, 0.0]))
    assert loss_A.tolist() == [0.0, 0.0]
    assert gradient(NFT(), [0.3, -0.3], [0.0, 0.0]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("returns", [[1.0, -1.0, -1.0], [-1.0, 1.0, 1.0], [2.0, 0.0]])
def test_nft_refuses_returns_that_are_not_0_and_1(returns):
    advantages = np.array(returns) - np.mean(returns)
    with pytest.raises(ConfigError, match=r"between -1 and 1; found .*; use DrGRPO"):
        NFT()(inputs([0.0] * len(returns), advantages))


# OREAL


def test_oreal_imitates_successes_and_unlearns_failures_with_half_the_weight():
    loss_A, measured = OREAL()(inputs([-2.0, -3.0], [0.5, -0.5]))
    np.testing.assert_allclose(loss_A, [1.0, 0.25], **EXACT)
    assert measured["nll"].tolist() == [2.0, 0.0]
    np.testing.assert_allclose(gradient(OREAL(), [-2.0, -3.0], [0.5, -0.5]), [-0.5, 0.25], **EXACT)


# contrastive policy gradient


def test_copg_compares_regularised_returns_of_a_group():
    given_ = {"reference": [-0.2, 0.1, -0.4]}
    logprobs, returns = [0.0, 0.0, 0.0], [1.0, 0.0, 0.5]
    loss_A, measured = CoPG(beta=0.1)(inputs(logprobs, returns, **given_))
    np.testing.assert_allclose(measured["pair_gap"], [0.7069] * 3, **CLOSE)
    np.testing.assert_allclose(loss_A.sum(), 0.7069 / 0.2, **CLOSE)
    np.testing.assert_allclose(
        gradient(CoPG(beta=0.1), logprobs, returns, **given_), [-0.745, 0.71, 0.035], **CLOSE
    )
    pair = gradient(CoPG(beta=0.1), logprobs[:2], returns[:2], reference=[-0.2, 0.1])
    np.testing.assert_allclose(pair, [-0.97, 0.97], **CLOSE)


@st.composite
def groups(draw: st.DrawFn, *, least: int = 1):
    """Draw groups of sequences of tokens.

    Log-probabilities, references, advantages, and the sequence and the group of each token.
    """
    sizes = draw(st.lists(st.integers(least, 4), min_size=1, max_size=3))
    lengths = [draw(st.integers(1, 3)) for size in sizes for _ in range(size)]
    number = sum(lengths)
    values = st.lists(st.floats(-2, 2), min_size=number, max_size=number)
    advantage = st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])
    return {
        "logprobs": draw(values),
        "old": draw(values),
        "reference": draw(values),
        "advantages": np.repeat([draw(advantage) for _ in lengths], lengths),
        "sequence": np.repeat(np.arange(len(lengths)), lengths),
        "group": np.repeat(np.repeat(np.arange(len(sizes)), sizes), lengths),
        "lengths": [(length,) for length in lengths],
    }


def members(batch) -> list[list[np.ndarray]]:
    """Return the tokens' places, by group and sequence."""
    return [
        [
            np.flatnonzero(batch["sequence"] == number)
            for number in np.unique(batch["sequence"][batch["group"] == group])
        ]
        for group in np.unique(batch["group"])
    ]


def copg(beta, logprobs_A, batch) -> torch.Tensor:
    """The definition: a sum over pairs, mean over sequences."""
    total = logprobs_A.sum() * 0.0
    for group in members(batch):
        returns = [
            batch["advantages"][at[0]] - beta * (logprobs_A[at] - tensor(batch["reference"])[at]).sum()
            for at in group
        ]
        for i in range(len(group)):
            for j in range(i):
                total = total + (returns[i] - returns[j]) ** 2 / (2 * beta) / (len(group) - 1)
    return total / len(batch["lengths"])


def disco(tau, ratios, logprobs_A, batch) -> torch.Tensor:
    """The definition: a mean over sequences of their group's loss."""
    total = logprobs_A.sum() * 0.0
    tokens_A = (logprobs_A - tensor(batch["old"])).exp() if ratios else logprobs_A
    for group in members(batch):
        good = [tokens_A[at].mean() for at in group if batch["advantages"][at[0]] > 0]
        bad = [tokens_A[at].mean() for at in group if batch["advantages"][at[0]] < 0]
        if good and bad:
            bad_S = torch.stack(bad)
            worst = (
                bad_S.mean() if tau is None else tau * (torch.logsumexp(bad_S / tau, 0) - math.log(len(bad)))
            )
            total = total - len(group) * (torch.stack(good).mean() - worst)
    return total / len(batch["lengths"])


def compare(loss, defined, aggregate, batch) -> None:
    """Hold value and gradient of a loss against its definition."""
    weights = aggregate(batch["lengths"])
    names = ("advantages", "old", "reference", "sequence", "group")
    logprobs_A = tensor(batch["logprobs"]).requires_grad_()
    loss_A, _ = loss(inputs(logprobs_A, **{name: batch[name] for name in names}))
    found, wanted = (tensor(weights) * loss_A).sum(), defined(logprobs_A, batch)
    np.testing.assert_allclose(found.detach(), wanted.detach(), atol=1e-9, rtol=1e-9)
    slopes = [torch.autograd.grad(value, logprobs_A)[0] for value in (found, wanted)]
    np.testing.assert_allclose(*slopes, atol=1e-9, rtol=1e-9)


@given(groups(), st.sampled_from([0.01, 0.1, 1.0]))
def test_copg_has_the_value_and_the_gradient_of_its_definition(batch, beta):
    compare(CoPG(beta), lambda logprobs_A, batch: copg(beta, logprobs_A, batch), seq_sum_then_mean, batch)


@given(groups())
def test_copg_at_its_reference_is_leave_one_out(batch):
    batch["reference"] = batch["logprobs"]
    slopes = gradient(
        CoPG(),
        batch["logprobs"],
        **{name: batch[name] for name in ("advantages", "reference", "sequence", "group")},
    )
    for group in members(batch):
        returns = np.array([batch["advantages"][at[0]] for at in group])
        rloo = returns - (returns.sum() - returns) / (len(group) - 1) if len(group) > 1 else np.zeros(1)
        for at, advantage in zip(group, rloo, strict=True):
            np.testing.assert_allclose(slopes[at], -advantage, **EXACT)


# discriminative constrained optimisation


def test_disco_scores_successes_above_the_likeliest_failures():
    scores, labels = [-0.2, -0.4, -0.3, -1.0], [1.0, 1.0, -1.0, -1.0]
    for tau, margin in ((None, 0.35), (10.0, 0.343876), (0.1, 0.069224)):
        loss_A, measured = DisCO(tau=tau)(inputs(scores, labels))
        np.testing.assert_allclose(measured["margin"], [margin] * 4, **CLOSE)
        np.testing.assert_allclose(loss_A, [-margin] * 4, **CLOSE)
    slopes = gradient(DisCO(tau=0.1), scores, labels)
    np.testing.assert_allclose(slopes, 4 * np.array([-0.5, -0.5, 0.999089, 0.000911]), **CLOSE)


@given(groups(), st.sampled_from([None, 0.1, 1.0, 10.0]), st.booleans())
def test_disco_has_the_value_and_the_gradient_of_its_definition(batch, tau, ratios):
    compare(
        DisCO(tau, ratios),
        lambda logprobs_A, batch: disco(tau, ratios, logprobs_A, batch),
        seq_mean_then_mean,
        batch,
    )


def test_the_ratios_of_disco_are_tilted_too():
    scores, labels = np.log([1.1, 0.9, 0.8, 1.3]), [1.0, 1.0, -1.0, -1.0]
    plain, tilted = (gradient(DisCO(tau, ratios=True), scores, labels) for tau in (None, 0.1))
    assert plain[2] / plain[3] == pytest.approx(0.8 / 1.3)
    assert tilted[3] > 100 * tilted[2] > 0


@given(groups(), st.floats(0.1, 10))
def test_disco_looks_at_the_sign_of_an_advantage_alone(batch, factor):
    names = ("old", "sequence", "group")
    others = {name: batch[name] for name in names}
    slopes = gradient(DisCO(), batch["logprobs"], batch["advantages"], **others)
    np.testing.assert_allclose(
        gradient(DisCO(), batch["logprobs"], factor * batch["advantages"], **others), slopes, **EXACT
    )


def test_disco_skips_groups_of_one_kind_and_says_so():
    x = inputs([-1.0, -2.0, -3.0, -4.0], [1.0, 1.0, -1.0, -1.0], group=[0, 0, 1, 1])
    for tau in (None, 10.0):
        loss_A, measured = DisCO(tau)(x)
        assert loss_A.tolist() == [0.0] * 4
        assert measured["one_sided"].tolist() == [1.0] * 4


def test_the_bound_is_free_inside_and_pulls_outside():
    for divergence, penalty in ((5e-5, 0.0), (2e-4, 2e-5)):
        log_ratio = math.sqrt(2 * divergence)
        for _ in range(30):  # solve rho - 1 - log rho = divergence
            log_ratio -= (math.expm1(log_ratio) - log_ratio - divergence) / math.expm1(log_ratio)
        loss_A, measured = KLBound()(inputs([log_ratio] * 3, [1.0] * 3))
        np.testing.assert_allclose(loss_A, [penalty] * 3, rtol=1e-6, atol=1e-12)
        assert measured["bound_exceeded"].tolist() == [float(penalty > 0)] * 3
    assert (
        gradient(KLBound(), [0.1, -0.1], [0.0, 0.0])[0] > 0 > gradient(KLBound(), [0.1, -0.1], [0.0, 0.0])[1]
    )
    assert gradient(KLBound(), [0.005, -0.005], [0.0, 0.0]).tolist() == [0.0, 0.0]


# division into micro-batches


@given(
    groups(),
    st.sampled_from(
        [
            (CoPG(), seq_sum_then_mean),
            (DisCO(), seq_mean_then_mean),
            (KLBound(), token_mean),
            (OREAL(), token_mean),
        ]
    ),
)
def test_groups_one_by_one_have_the_gradient_of_all_together(batch, case):
    loss, aggregate = case
    weights = aggregate(batch["lengths"])
    names = ("logprobs", "advantages", "old", "reference", "sequence", "group")
    whole = gradient(loss, **{name: batch[name] for name in names}, weights=weights)
    for group in np.unique(batch["group"]):
        at = np.flatnonzero(batch["group"] == group)
        part = {name: np.asarray(batch[name])[at] for name in names}
        # the numbers may have gaps, because sequences may have no tokens
        part["sequence"] = 2 * (part["sequence"] - part["sequence"][0]) + 1
        part["group"] = part["group"] * 0
        np.testing.assert_allclose(gradient(loss, **part, weights=weights[at]), whole[at], **EXACT)


@given(groups(), st.randoms())
def test_the_order_of_sequences_does_not_matter(batch, random):
    order = list(range(len(batch["lengths"])))
    random.shuffle(order)
    at = np.concatenate([np.flatnonzero(batch["sequence"] == number) for number in order])
    names = ("logprobs", "advantages", "old", "reference", "group")
    renumbered = np.repeat(np.arange(len(order)), [batch["lengths"][number][0] for number in order])
    for loss in (CoPG(), DisCO(), KLBound()):
        slopes = gradient(loss, **{name: batch[name] for name in (*names, "sequence")})
        moved = gradient(loss, **{name: np.asarray(batch[name])[at] for name in names}, sequence=renumbered)
        np.testing.assert_allclose(moved, slopes[at], **EXACT)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NFT(floor=0.0), "0 < floor <= 1"),
        (lambda: NFT(bound=0.5), "0 < bound < 0.5"),
        (lambda: OREAL(negative=-1.0), "must not be negative"),
        (lambda: CoPG(beta=0.0), "a beta above 0"),
        (lambda: DisCO(tau=0.0), "a tau above 0"),
        (lambda: KLBound(delta=-1.0), "a delta of at least 0"),
    ],
)
def test_settings_without_a_meaning_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
