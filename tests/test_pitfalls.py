"""Mistakes of published code, each with a test that shows that agentrl does not make it; and laws that belong
to no other module.

Tests of further mistakes are in the modules that they concern: turns found by their reward, observation
tokens in GAE, episode statistics over turns, average turns dropped (``test_credit``,
``test_credit_methods``); a divergence without gradient, clips and weights mixed (``test_losses``); a penalty
without gradient (``test_scorers``); a variant that is another loss, labels of another kind
(``test_losses_groups``).
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from credit_cases import GROUP_RULES, componentwise, timed
from hypothesis import given
from hypothesis import strategies as st
from learners import credit, groups_of, learner_of
from loss_inputs import gradient, inputs
from strategies import group, scored, scored_groups, tokens_of, trajectory

from agentrl.credit.components import EpisodeAndSteps
from agentrl.credit.entropy import EMPG
from agentrl.credit.gae import BiLevelGAE
from agentrl.credit.group import GRPO, RLOO
from agentrl.credit.returns import reinforce_plus_plus, reinforce_plus_plus_baseline
from agentrl.credit.weights import ConflictTokens, DurationWeights, KeepTokens, KeepVaried
from agentrl.errors import ConfigError
from agentrl.learner.batch import make_batch
from agentrl.learner.implicit import ImplicitPRM, OpenImplicitPRM, pair_weights
from agentrl.losses import PolicyGradient
from agentrl.losses.aggregation import SeqSumOver, seq_mean_then_mean, token_mean
from agentrl.losses.clip import Clip
from agentrl.losses.epo import EPO
from agentrl.losses.objective import Objective
from agentrl.losses.tis import SequenceTIS, TokenRejection, TokenTIS, weight_metrics
from agentrl.rewards.refine import threshold_for
from agentrl.types import Credited, Scored, floats, ints

CLOSE = {"rtol": 0.0, "atol": 1e-5}


# iStar: statistics over first turns alone, and a mean instead of the sum.


def test_every_turn_enters_the_statistics_of_process_rewards_not_only_the_first_of_each_episode():
    before, after = (
        EpisodeAndSteps()(
            [
                componentwise(
                    {"implicit": [0.3, late], "outcome": [0, 1]},
                    {"implicit": [-0.1, -0.1], "outcome": [0, 0]},
                )
            ]
        )[0]
        for late in (-0.05, 5.0)
    )
    assert (
        after[0].advantages_T[0] < 1 / np.sqrt(2) < before[0].advantages_T[0]
    )  # best step, then below the mean of all steps


def test_process_rewards_and_the_pair_loss_add_up_tokens_and_do_not_average_turns():
    """Log-ratios [[2, 4], [-1]] of a success and [[-2], [1, -3]] of a failure, beta 0.05."""
    prm = OpenImplicitPRM(ImplicitPRM(beta=0.05), learner_of())
    totals = []
    for lengths, ratios, expected in (
        ([2, 1], [2, 4, -1], [0.3, -0.05]),
        ([1, 2], [-2, 1, -3], [-0.1, -0.1]),
    ):
        played = scored([0.0, 0.0], lengths).with_measured(old_logprobs=floats([-1.0] * 3))
        paid = prm._paid(played, played.with_measured(old_logprobs=floats(np.array(ratios) - 1.0)))
        np.testing.assert_allclose(paid.ledger["implicit"], expected, **CLOSE)
        totals.append(prm._total(paid))
    np.testing.assert_allclose(totals, [5.0, -4.0], **CLOSE)
    assert pair_weights(totals, [True, False], 0.05).loss == pytest.approx(0.493249, abs=1e-5)
    assert pair_weights([2.5, -2.0], [True, False], 0.05).loss == pytest.approx(
        0.586962, abs=1e-5
    )  # the means of turns


# EPO: a band that begins at the 25th turn.


def test_the_band_holds_from_the_first_turn_on():
    _, measured = EPO(150, history=[0.8])(inputs([0.0], entropies=[3.0]))
    assert measured["outside_band"].tolist() == [1.0]


# A singleton that is credited its raw reward, and whitening across tasks.


@pytest.mark.parametrize("rule", [GRPO(), RLOO(), *GROUP_RULES], ids=repr)
def test_who_is_compared_with_nobody_gets_nothing(rule):
    assert tokens_of(rule([group([3.0])])[0]).tolist() == [0.0]


def test_whitening_over_the_batch_alone_pays_for_easy_tasks():
    """In both tasks all members did the same. Only the rule that compares within a task gives no credit."""
    easy, hard = group([1.0] * 4), group([0.0] * 4)
    plain = reinforce_plus_plus()([easy, hard])
    assert tokens_of(plain[0]).min() > 0.9
    assert tokens_of(plain[1]).max() < -0.9
    compared = reinforce_plus_plus_baseline()([easy, hard])
    assert not any(tokens_of(one).any() for one in compared)


# Statistics of few samples.


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=99), st.floats(0.0, 1.0))
def test_a_quantile_of_few_scores_is_one_of_them(scores, share):
    """Trimming one value in a hundred leaves no value of a smaller sample: the mean of nothing, NaN."""
    assert threshold_for(scores, share=share) in scores


def test_a_quantile_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="needs scores"):
        threshold_for([])


# Weights of long sequences.


def test_weights_that_saturate_are_counted_on_both_sides():
    num = 200
    behaviour = torch.full((2 * num,), -1.0, dtype=torch.float64)
    drift = torch.cat([torch.full((num,), 0.05), torch.full((num,), -0.05)]).double()
    sequence = torch.arange(2).repeat_interleave(num)
    by_token, by_sequence = (
        weight_metrics(rule, rule(behaviour + drift, behaviour, sequence))
        for rule in (TokenTIS(), SequenceTIS())
    )
    assert [float(by_sequence[f"off_policy_{name}"].mean()) for name in ("capped", "zero")] == [0.5, 0.5]
    assert [float(by_token[f"off_policy_{name}"].mean()) for name in ("capped", "zero")] == [0.0, 0.0]
    assert float(by_sequence["off_policy_weight"].mean()) == pytest.approx(
        1.0, abs=1e-3
    )  # which looks like on-policy data


def test_an_update_says_how_many_weights_saturate():
    groups = learner_of().annotate(groups_of(2), frozenset({"old_logprobs"}))
    for rule in (SequenceTIS(), TokenRejection()):
        stats = learner_of().update(
            make_batch(groups, credit(groups)), Objective(loss=PolicyGradient(), off_policy=rule)
        )
        assert 0.0 <= stats["off_policy_capped"] <= 1.0
        assert 0.0 <= stats["off_policy_zero"] <= 1.0
    assert stats["off_policy_zero"] == pytest.approx(1.0 - stats["off_policy_weight"])  # rejected or not


# Padding a failure.


def test_a_failure_pads_itself_out_of_a_mean_per_sequence_and_not_of_a_mean_per_token():

    def share(aggregation, num_tokens: int) -> float:
        """Return the weight of a failure's first four tokens, relative to a success of four tokens."""
        weights = aggregation([[num_tokens], [4]])
        return float(weights[:4].sum() / weights[-4:].sum())

    assert share(seq_mean_then_mean, 40) == pytest.approx(0.1 * share(seq_mean_then_mean, 4))
    for aggregation in (token_mean, SeqSumOver(100.0)):
        assert share(aggregation, 40) == pytest.approx(share(aggregation, 4))


# A clip that sees the behaviour policy.


def test_a_weight_does_not_move_the_clip():
    """The ratio to the policy of the update's start is 1: nothing is clipped, however old the data are."""
    x = inputs([-1.0], old=[-1.0], behaviour=[-3.0], advantages=[1.0])
    weight = float(TokenTIS(cap=5.0)(x.old_logprobs_A, x.behaviour_logprobs_A, x.sequence_A))
    assert weight == 5.0
    assert (weight * gradient(Clip(), x)).tolist() == [-5.0]


# Laws.


@given(
    st.lists(st.lists(st.floats(0.0, 3.0), min_size=1, max_size=4), min_size=1, max_size=4),
    st.floats(0.0, 3.0),
)
def test_entropy_scales_have_mean_one(entropies, kappa):
    scales, _ = EMPG(kappa=kappa)._modulation([np.array(row) for row in entropies])
    assert np.concatenate(scales).mean() == pytest.approx(1.0)


@given(st.lists(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=4), min_size=1, max_size=4))
def test_durations_have_mean_one_below_the_cap(seconds):
    members = tuple(timed(row) for row in seconds)
    (found,) = DurationWeights(max_weight=1e9)(
        [members], [tuple(Credited(floats(np.ones(len(row)))) for row in seconds)]
    )
    assert tokens_of(found).mean() == pytest.approx(1.0, abs=1e-4)


def measured(one: Scored) -> Scored:
    """Return ``one`` with entropies and values that depend on the action tokens alone."""
    num = one.trajectory.num_tokens
    return one.with_measured(
        entropies=floats(np.linspace(0.1, 1.0, num)), values=floats(np.linspace(-1.0, 1.0, num))
    )


def padded(one: Scored, prompt: int) -> Scored:
    turns = tuple(
        replace(turn, action=replace(turn.action, prompt=ints([0] * prompt))) for turn in one.trajectory.turns
    )
    return replace(one, trajectory=replace(one.trajectory, turns=turns))


@given(scored_groups(), st.integers(0, 5))
def test_what_is_shown_besides_the_place_does_not_matter(members, prompt):
    members = tuple(map(measured, members))
    shown = tuple(padded(one, prompt) for one in members)
    for rule in (*GROUP_RULES, BiLevelGAE()):
        (expected,), (found,) = rule([members]), rule([shown])
        np.testing.assert_array_equal(tokens_of(found), tokens_of(expected))
    (base,) = RLOO()([members])
    for modifier in (EMPG(), ConflictTokens(), KeepVaried(2), KeepTokens()):
        np.testing.assert_array_equal(
            tokens_of(modifier([shown], [base])[0]), tokens_of(modifier([members], [base])[0])
        )


@given(scored_groups(min_turns=1, min_tokens=1), st.randoms(use_true_random=False))
def test_modifiers_do_not_see_the_order_of_members(members, random):
    members = tuple(map(measured, members))
    order = list(range(len(members)))
    random.shuffle(order)
    (base,) = RLOO()([members])
    for modifier in (EMPG(), ConflictTokens(), KeepTokens()):
        (straight,) = modifier([members], [base])
        (shuffled,) = modifier([tuple(members[i] for i in order)], [tuple(base[i] for i in order)])
        for place, i in enumerate(order):
            np.testing.assert_allclose(shuffled[place].advantages_T, straight[i].advantages_T, atol=1e-5)


def test_only_a_trajectory_without_tokens_is_left_out_of_an_update():
    """An episode that ended before its first action still counts in the mean of its group."""
    members = (scored([1.0]), Scored(trajectory([]), {"outcome": floats()}))
    credited = RLOO()([members])
    assert tokens_of(credited[0]).tolist() == [1.0]
    assert len(make_batch([members], credited).sequences) == 1
