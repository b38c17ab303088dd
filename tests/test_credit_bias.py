"""Exact expected gradients of credit rules, compared with the policy gradient.

Every group that can be sampled is enumerated and weighted with its probability; the policy gradient is
computed by enumeration too. Unbiased rules must agree to 1e-6; for biased rules the size of the bias is
stated.
"""

import numpy as np
import pytest

from agentrl.credit.anchors import GiGPO
from agentrl.credit.baselines import Baseline, OthersAtTurn, OthersStart
from agentrl.credit.components import MTGRPO
from agentrl.credit.gae import BiLevelGAE, TokenGAE, TurnGAE
from agentrl.credit.group import GRPO, RLOO, DrGRPO
from agentrl.credit.penalty import KLPenalty
from agentrl.credit.returns import TurnReturn, turn_rloo
from agentrl.credit.strata import Stratified, num_turns
from agentrl.testing.mdp import DECISIONS, Mdp, bias
from agentrl.types import floats

WORLDS = [Mdp.random(seed) for seed in (0, 1)]
BASELINES = [OthersStart(), OthersAtTurn()]


def cosine(one, other) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.fixture(params=WORLDS, ids=["world 0", "world 1"])
def world(request) -> Mdp:
    return request.param


def test_the_enumeration_is_the_world(world):
    assert len(world.episodes) == 15
    assert sum(one.probability for one in world.episodes) == pytest.approx(1.0)
    assert {len(one.rewards) for one in world.episodes} == {1, 2, 3}
    np.testing.assert_allclose(
        world.gradient_P, world.differences_P(lambda one: one.expected_return), atol=1e-8
    )


@pytest.mark.parametrize("group_size", [1, 2])
def test_the_return_to_go_is_unbiased(world, group_size):
    np.testing.assert_allclose(world.estimate(TurnReturn(), group_size)[0], world.gradient_P, atol=1e-6)


@pytest.mark.parametrize("group_size", [2, 3])
def test_rloo_is_unbiased(world, group_size):
    np.testing.assert_allclose(world.estimate(RLOO(), group_size)[0], world.gradient_P, atol=1e-6)


@pytest.mark.parametrize("baseline", BASELINES, ids=repr)
@pytest.mark.parametrize("group_size", [2, 3])
def test_baselines_made_of_the_others_are_unbiased(world, baseline, group_size):
    np.testing.assert_allclose(
        world.estimate(TurnReturn(1.0, baseline), group_size)[0], world.gradient_P, atol=1e-6
    )


@pytest.mark.parametrize("baseline", BASELINES, ids=repr)
def test_with_a_discount_baselines_still_change_nothing_in_expectation(world, baseline):
    plain, _ = world.estimate(TurnReturn(0.8), 1)
    np.testing.assert_allclose(world.estimate(TurnReturn(0.8, baseline), 2)[0], plain, atol=1e-6)


@pytest.mark.parametrize("group_size", [2, 3])
def test_dr_grpo_is_the_policy_gradient_times_n_minus_one_over_n(world, group_size):
    expected = world.gradient_P * (group_size - 1) / group_size
    np.testing.assert_allclose(world.estimate(DrGRPO(), group_size)[0], expected, atol=1e-6)


@pytest.mark.parametrize("rule", [TokenGAE(1.0, 1.0), TurnGAE(1.0, 1.0)], ids=repr)
@pytest.mark.parametrize("wrong_by", [0.0, 0.7])
def test_gae_with_lambda_one_is_unbiased_whatever_the_critic_says(world, rule, wrong_by):
    np.testing.assert_allclose(world.estimate(rule, 1, wrong_by=wrong_by)[0], world.gradient_P, atol=1e-6)


@pytest.mark.parametrize("lam", [0.0, 0.9])
@pytest.mark.parametrize("rule", [TokenGAE, TurnGAE])
def test_gae_with_the_true_values_is_unbiased_at_any_lambda(world, rule, lam):
    np.testing.assert_allclose(world.estimate(rule(1.0, lam), 1)[0], world.gradient_P, atol=1e-6)


@pytest.mark.parametrize("rule", [TokenGAE, TurnGAE])
def test_gae_with_a_wrong_critic_is_biased_below_lambda_one(world, rule):
    estimate, _ = world.estimate(rule(1.0, 0.5), 1, wrong_by=0.7)
    assert np.linalg.norm(estimate - world.gradient_P) > 0.05 * np.linalg.norm(world.gradient_P)


@pytest.mark.parametrize(
    ("rule", "cosines"),
    [(GRPO(), (0.9230, 0.9177)), (turn_rloo(gamma=1.0), (0.9570, 0.9606))],
    ids=["GRPO", "turn_rloo"],
)
def test_dividing_by_a_deviation_of_the_same_episodes_turns_the_gradient(rule, cosines):
    # groups of 3; GRPO's bias stays in larger batches, that of the batch's deviation averages out
    for world, expected in zip(WORLDS, cosines, strict=True):
        assert cosine(world.estimate(rule, 3)[0], world.gradient_P) == pytest.approx(expected, abs=1e-4)


def test_the_bias_of_dividing_by_the_batchs_deviation_shrinks_with_the_batch(world):
    small, large = (
        cosine(world.estimate(turn_rloo(gamma=1.0), size)[0], world.gradient_P) for size in (2, 3)
    )
    assert small < large < 1.0


def test_a_baseline_that_sees_its_own_future_is_biased(world):
    class Peeking(Baseline):
        min_group = 1

        def __call__(self, group, returns_GN):
            return [np.full(len(returns_N), returns_N[-1]) for returns_N in returns_GN]

    estimate, _ = world.estimate(TurnReturn(1.0, Peeking()), 1)
    assert np.linalg.norm(estimate - world.gradient_P) > 0.2 * np.linalg.norm(world.gradient_P)


def test_a_critic_has_less_variance_than_the_bare_return(world):
    variances = [world.estimate(rule, 1)[1] for rule in (TurnReturn(), TurnGAE(1.0, 1.0), TurnGAE(1.0, 0.9))]
    assert variances[0] > 1.1 * variances[1] > 1.1 * variances[2]


def test_the_kl_penalty_gives_the_gradient_of_the_return_less_the_divergence(world):
    coef, reference = 0.3, Mdp.random(7)

    estimate_P = np.zeros(len(DECISIONS))
    for episode, theirs in zip(world.episodes, reference.episodes, strict=True):
        old, ref = floats(episode.logprobs_T), floats(theirs.logprobs_T)
        ((credited,),) = KLPenalty(TurnReturn(), coef)(
            [(world.scored(episode).with_measured(old_logprobs=old, ref_logprobs=ref),)]
        )
        estimate_P += episode.probability * episode.scores_TP.T @ credited.advantages_T.astype(np.float64)

    def objective(one: Mdp) -> float:
        pairs = zip(one.episodes, reference.episodes, strict=True)
        return sum(
            mine.probability
            * (sum(mine.rewards) - coef * (np.log(mine.probability) - np.log(theirs.probability)))
            for mine, theirs in pairs
        )

    np.testing.assert_allclose(estimate_P, world.differences_P(objective), atol=1e-6)


@pytest.mark.parametrize("wrong_by", [0.0, 0.7])
def test_two_levels_with_lambda_one_and_no_discount_are_unbiased(world, wrong_by):
    np.testing.assert_allclose(
        world.estimate(BiLevelGAE(1.0, 1.0, 1.0), 1, wrong_by=wrong_by)[0], world.gradient_P, atol=1e-6
    )


def test_comparing_turns_by_their_index_is_biased_and_comparing_returns_to_go_at_the_turn_is_not():
    """Same rewards along the way, same group: only what is subtracted differs."""
    by_index, ours = (
        bias(rule, group_size=3) for rule in (MTGRPO(process="steps"), TurnReturn(baseline=OthersAtTurn()))
    )
    assert ours.error < 1e-6
    assert abs(ours.scale - 1.0) < 1e-6
    assert by_index.error > 0.2


@pytest.mark.parametrize(
    ("rule", "error"), [(GiGPO(gamma=1.0), 0.05), (Stratified(num_turns, alpha=1.0), 0.4), (GRPO(), 0.2)]
)
def test_what_is_biased_is_known_to_be(rule, error):
    assert bias(rule, group_size=2, seed=1).error > error or bias(rule, group_size=3, seed=1).error > error
