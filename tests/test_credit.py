from dataclasses import replace

import numpy as np
import pytest
import reference
import strategies
from hypothesis import given
from hypothesis import strategies as st
from strategies import group, scored, scored_groups, scored_trajectories, tokens_of, trajectory

from agentrl.credit.baselines import NoBaseline, OthersAtTurn, OthersStart
from agentrl.credit.constant import ConstantCredit
from agentrl.credit.gae import TokenGAE, TurnGAE
from agentrl.credit.group import GRPO, RLOO, DrGRPO
from agentrl.credit.modifiers import Modified, ScaleAdvantages, UnitDeviation, Whiten
from agentrl.credit.penalty import KLPenalty
from agentrl.credit.returns import TurnReturn, turn_rloo
from agentrl.credit.turns import returns_to_go, spread
from agentrl.types import End, Measured, Scored, floats, ints

CLOSE = {"rtol": 0.0, "atol": 1e-5}
GROUP_RULES = [GRPO(), DrGRPO(), RLOO()]
BASELINES = [OthersStart(), OthersAtTurn()]
EVERY_RULE = [
    *GROUP_RULES,
    *(TurnReturn(0.9, baseline) for baseline in (NoBaseline(), *BASELINES)),
    turn_rloo(),
    TokenGAE(),
    TurnGAE(),
    ConstantCredit(),
    Modified(TokenGAE(), (Whiten(per="token"),)),
]


def name(rule) -> str:
    inner = getattr(rule, "baseline", None) or getattr(rule, "credit", None)
    return type(rule).__name__ + (f"-{type(inner).__name__}" if inner else "")


# Golden values. R = [1, 0, 0, 1]: mean 1/2, deviation sqrt(4 * 1/4 / 3) = 0.57735.


def test_grpo_divides_by_the_deviation_with_bessels_correction():
    np.testing.assert_allclose(
        tokens_of(GRPO()([group([1, 0, 0, 1])])[0]), [0.866024, -0.866024, -0.866024, 0.866024], **CLOSE
    )


def test_dr_grpo_only_subtracts_the_mean():
    np.testing.assert_allclose(tokens_of(DrGRPO()([group([1, 0, 0, 1])])[0]), [0.5, -0.5, -0.5, 0.5], **CLOSE)


def test_rloo_subtracts_the_mean_of_the_other_three():
    np.testing.assert_allclose(
        tokens_of(RLOO()([group([1, 0, 0, 1])])[0]), [2 / 3, -2 / 3, -2 / 3, 2 / 3], **CLOSE
    )


@pytest.mark.parametrize("rule", GROUP_RULES, ids=name)
def test_a_group_without_variance_gets_exactly_nothing(rule):
    assert not tokens_of(rule([group([0.1, 0.1, 0.1])])[0]).any()


def test_reinforce_plus_plus_whitens_returns_over_the_batch():
    # eight returns, three of them 1: mean 3/8, deviation 0.517549
    credited = Modified(TurnReturn(), (Whiten(),))([group([1, 0, 0, 1]), group([0, 0, 0, 1])])
    expected = [1.207615, -0.724569, -0.724569, 1.207615, -0.724569, -0.724569, -0.724569, 1.207615]
    np.testing.assert_allclose(np.concatenate([tokens_of(one) for one in credited]), expected, **CLOSE)


def test_reinforce_plus_plus_with_baseline_centres_in_the_group_and_whitens_over_the_batch():
    # centred +-1/2 and -1/4, -1/4, -1/4, 3/4: sum of squares 1 + 3/4, over 7: variance exactly 1/4
    credited = Modified(DrGRPO(), (Whiten(),))([group([1, 0, 0, 1]), group([0, 0, 0, 1])])
    expected = [1, -1, -1, 1, -0.5, -0.5, -0.5, 1.5]
    np.testing.assert_allclose(np.concatenate([tokens_of(one) for one in credited]), expected, **CLOSE)


def two_turns() -> Scored:
    """Two actions of two tokens, with two observation tokens between them that the critic never sees."""
    return scored([0.2, 1.0], [2, 2], values=[0.1, 0.2, 0.4, 0.5], prompt=2)


def test_token_gae_steps_over_the_observation():
    # backwards: 1 - .5 = .5; .5 - .4 + .95 * .5 = .575; .2 + .4 - .2 + .95 * .575 = .94625;
    # .2 - .1 + .95 * .94625 = .9989375
    ((credited,),) = TokenGAE(gamma=1.0, lam=0.95)([(two_turns(),)])
    np.testing.assert_allclose(credited.advantages_T, [0.998937, 0.94625, 0.575, 0.5], **CLOSE)
    np.testing.assert_allclose(credited.targets_T, [1.098937, 1.14625, 0.975, 1.0], **CLOSE)


def test_an_observation_token_with_a_value_of_nine_would_have_changed_it():
    unmasked = reference.gae_as_a_sum([0, 0.2, 0, 0, 0, 1], [0.1, 0.2, 9, 9, 0.4, 0.5], 1.0, 0.95)
    np.testing.assert_allclose(unmasked, [1.744916, 1.731491, -7.651062, -8.05375, 0.575, 0.5], **CLOSE)
    masked, _ = reference.masked_token_gae(
        [0, 0.2, 0, 0, 0, 1], [0.1, 0.2, 9, 9, 0.4, 0.5], [1, 1, 0, 0, 1, 1], 1.0, 0.95
    )
    ((credited,),) = TokenGAE(gamma=1.0, lam=0.95)([(two_turns(),)])
    np.testing.assert_allclose(credited.advantages_T, [masked[t] for t in (0, 1, 4, 5)], **CLOSE)


def test_token_gae_whitened_over_action_tokens():
    ((credited,),) = Modified(TokenGAE(gamma=1.0, lam=0.95), (Whiten(per="token"),))([(two_turns(),)])
    np.testing.assert_allclose(credited.advantages_T, [0.960301, 0.752848, -0.708921, -1.004228], **CLOSE)
    np.testing.assert_allclose(credited.targets_T, [1.098937, 1.14625, 0.975, 1.0], **CLOSE)


def test_turn_gae_reads_the_value_at_the_start_of_the_turn():
    # 1 - .4 = .6; .2 + .99 * .4 - .1 + .99 * .95 * .6 = 1.0603
    ((credited,),) = TurnGAE(gamma=0.99, lam=0.95)([(two_turns(),)])
    np.testing.assert_allclose(credited.advantages_T, [1.0603, 1.0603, 0.6, 0.6], **CLOSE)
    np.testing.assert_allclose(credited.targets_T, [1.1603, np.nan, 1.0, np.nan], **CLOSE)


def test_turn_returns_of_a_success_in_three_turns():
    # gamma .95 and a reward of 1 at the end: .95 squared, .95, 1
    np.testing.assert_allclose(
        returns_to_go(np.array([0.0, 0.0, 1.0]), gamma=0.95), [0.9025, 0.95, 1.0], **CLOSE
    )


def test_turn_rloo_compares_each_turn_with_the_others_start():
    # starts .81 (success in three turns), 0 and 0; the others' means are 0, .405, .405;
    # then divided by the deviation of the six turns
    members = (scored([0, 0, 1]), scored([0, 0]), scored([0]))
    raw = [0.81, 0.9, 1.0, -0.405, -0.405, -0.405]
    np.testing.assert_allclose(tokens_of(TurnReturn(0.9, OthersStart())([members])[0]), raw, **CLOSE)
    np.testing.assert_allclose(
        tokens_of(turn_rloo(gamma=0.9)([members])[0]), np.array(raw) / reference.deviation(raw, 1), **CLOSE
    )


def test_the_baseline_at_a_turn_counts_an_episode_that_is_over_as_nothing():
    # member 0 at turn 1: one other member has a return of 2, the other is over: (2 + 0) / 2
    members = (scored([1, 1]), scored([0, 2]), scored([4]))
    returns = [returns_to_go(one.rewards_N, gamma=1.0) for one in members]
    baselines = OthersAtTurn()(members, returns)
    np.testing.assert_allclose(baselines[0], [3.0, 1.0])
    np.testing.assert_allclose(baselines[2], [2.0])


# Edges that released code gets wrong.


def test_a_turn_without_reward_keeps_its_turn():
    ((credited,),) = TurnGAE(gamma=1.0, lam=1.0)([(scored([0, 0, 1], [1, 1, 1], values=[0.5, 0.25, 0.0]),)])
    np.testing.assert_allclose(credited.advantages_T, [0.5, 0.75, 1.0])


@pytest.mark.parametrize("rule", GROUP_RULES, ids=name)
def test_a_singleton_is_compared_with_nobody_unless_the_raw_return_is_asked_for(rule):
    assert tokens_of(rule([group([3.0])])[0]) == [0.0]
    assert tokens_of(replace(rule, singleton="raw")([group([3.0])])[0]) == [3.0]


@pytest.mark.parametrize("baseline", BASELINES, ids=name)
def test_a_singleton_is_its_own_baseline(baseline):
    assert not tokens_of(TurnReturn(0.9, baseline)([(scored([1.0, 2.0]),)])[0]).any()


@pytest.mark.parametrize("rule", EVERY_RULE, ids=name)
def test_episodes_without_turns_and_turns_without_tokens_are_accepted(rule):
    members = (
        scored([], values=[]),
        scored([1.0, 2.0], [0, 0], values=[]),
        scored([0.5, 0.5, 0.5], [0, 2, 0], values=[0.1, 0.2]),
    )
    (credited,) = rule([members])
    assert [len(one.advantages_T) for one in credited] == [0, 0, 2]
    assert np.isfinite(tokens_of(credited)).all()
    assert rule([()]) == [()]
    assert rule([]) == []


def test_an_episode_without_turns_counts_in_the_statistics_of_its_group():
    np.testing.assert_allclose(tokens_of(RLOO()([(scored([1.0]), scored([]))])[0]), [1.0])


def test_the_reward_of_a_turn_without_tokens_goes_to_the_action_before_it():
    one = scored([9.0, 0.25, 0.5, 1.0], [0, 1, 0, 1], values=[0.0, 0.0])
    for rule in (TokenGAE(gamma=1.0, lam=1.0), TurnGAE(gamma=1.0, lam=1.0)):
        np.testing.assert_allclose(tokens_of(rule([(one,)])[0]), [1.75, 1.0])


def test_a_truncated_episode_is_not_bootstrapped():
    ends = [
        replace(two_turns(), trajectory=replace(two_turns().trajectory, end=end))
        for end in (End.TERMINATED, End.TRUNCATED)
    ]
    for rule in (TokenGAE(), TurnGAE()):
        ((done,), (cut,)) = rule([(ends[0],), (ends[1],)])
        np.testing.assert_array_equal(done.advantages_T, cut.advantages_T)


@pytest.mark.parametrize("rule", EVERY_RULE, ids=name)
def test_a_failed_episode_never_reaches_credit(rule):
    failed = Scored(
        trajectory([1], end=End.FAILED), {"outcome": floats([0.0])}, measured=Measured(values=floats([0.0]))
    )
    with pytest.raises(AssertionError, match="failed episode"):
        rule([(failed, failed)])


@pytest.mark.parametrize("rule", [TokenGAE(), TurnGAE()], ids=name)
def test_a_value_that_was_not_measured_is_an_error(rule):
    with pytest.raises(AssertionError, match="values were not measured"):
        rule([(scored([1.0]),)])


def test_a_rule_declares_the_smallest_group_that_it_can_use():
    assert [rule.min_group for rule in GROUP_RULES] == [2, 2, 2]
    assert turn_rloo().min_group == TurnReturn(1.0, OthersAtTurn()).min_group == 2
    assert TurnReturn().min_group == TokenGAE().min_group == ConstantCredit().min_group == 1


def test_whitening_counts_a_turn_once_however_long_it_is():
    long, short = scored([1.0], [9]), scored([0.0], [1])
    by_turn = tokens_of(Modified(TurnReturn(), (Whiten(),))([(long, short)])[0])
    np.testing.assert_allclose(by_turn, [0.707107] * 9 + [-0.707107], **CLOSE)
    by_token = tokens_of(Modified(TurnReturn(), (Whiten(per="token"),))([(long, short)])[0])
    np.testing.assert_allclose(by_token, reference.whitened([1.0] * 9 + [0.0]), **CLOSE)


def test_rescaling_a_batch_without_variance_stays_finite():
    same = (scored([0.1]), scored([0.1]))
    assert not tokens_of(Modified(TurnReturn(), (Whiten(),))([same])[0]).any()
    np.testing.assert_allclose(tokens_of(Modified(TurnReturn(), (UnitDeviation(),))([same])[0]), [0.1, 0.1])


@pytest.mark.parametrize("modifier", [Whiten(), UnitDeviation()], ids=name)
def test_a_single_turn_has_no_deviation_to_divide_by(modifier):
    lone = (scored([1.0], [2], values=[0.0, 0.5]),)
    advantages = tokens_of(Modified(TokenGAE(1.0, 1.0), (modifier,))([lone])[0])
    np.testing.assert_allclose(advantages, [0.0, 0.0] if isinstance(modifier, Whiten) else [1.0, 0.5])


def test_scaled_credit_serves_as_control():
    members = group([1, 0])
    for factor in (0.0, -1.0):
        flipped = Modified(RLOO(), (ScaleAdvantages(factor),))([members])[0]
        np.testing.assert_allclose(tokens_of(flipped), factor * tokens_of(RLOO()([members])[0]))


def test_constant_credit_ignores_what_was_paid():
    np.testing.assert_array_equal(
        tokens_of(ConstantCredit(1.0)([(scored([5.0, -3.0], [2, 1]),)])[0]), [1, 1, 1]
    )


def test_the_kl_penalty_is_paid_by_the_turn_that_diverged():
    one = scored([0.0, 1.0], [2, 1], logprobs=[[-1.0, -2.0], [-0.5]]).with_measured(
        ref_logprobs=floats([-1.5, -1.0, -0.5])
    )
    # turn 0: (.5 - 1) * -.1 = .05; turn 1: 0
    np.testing.assert_allclose(
        tokens_of(KLPenalty(TurnReturn(), coef=0.1)([(one,)])[0]), [1.05, 1.05, 1.0], **CLOSE
    )
    measured = one.with_measured(old_logprobs=one.measured.ref_logprobs)
    np.testing.assert_allclose(
        tokens_of(KLPenalty(TurnReturn(), coef=0.1)([(measured,)])[0]), [1.0, 1.0, 1.0], **CLOSE
    )
    assert KLPenalty(TokenGAE()).needs == {"values", "ref_logprobs"}


# Laws.


@given(scored_groups(values=False, min_turns=1, min_tokens=1), strategies.amounts)
def test_group_credit_ignores_a_constant(members, constant):
    moved = tuple(
        replace(one, ledger={**one.ledger, "gift": floats([0.0] * (len(one.rewards_N) - 1) + [constant])})
        for one in members
    )
    for rule in (*GROUP_RULES, TurnReturn(1.0, OthersStart())):
        np.testing.assert_allclose(tokens_of(rule([moved])[0]), tokens_of(rule([members])[0]), atol=1e-4)


@given(st.lists(strategies.amounts, min_size=2, max_size=8))
def test_group_credit_sums_to_zero_and_equals_the_reference(returns):
    for rule, expected in ((GRPO(), reference.grpo), (DrGRPO(), reference.dr_grpo), (RLOO(), reference.rloo)):
        advantages = tokens_of(rule([group(returns)])[0])
        assert abs(advantages.sum()) < 1e-4
        np.testing.assert_allclose(advantages, expected(returns), atol=1e-5)


@given(st.lists(strategies.amounts, min_size=2, max_size=8))
def test_rloo_is_dr_grpo_times_n_over_n_minus_one(returns):
    n = len(returns)
    np.testing.assert_allclose(
        tokens_of(RLOO()([group(returns)])[0]),
        tokens_of(DrGRPO()([group(returns)])[0]) * n / (n - 1),
        atol=1e-6,
    )


@given(scored_groups(), st.randoms(use_true_random=False))
def test_the_order_of_members_does_not_matter(members, random):
    order = list(range(len(members)))
    random.shuffle(order)
    for rule in EVERY_RULE:
        straight = rule([members])[0]
        shuffled = rule([tuple(members[i] for i in order)])[0]
        for place, i in enumerate(order):
            np.testing.assert_allclose(shuffled[place].advantages_T, straight[i].advantages_T, atol=1e-5)


@given(scored_groups())
def test_groups_do_not_see_each_other_before_the_batch_is_rescaled(members):
    other = group([5.0, -5.0])
    for rule in (*GROUP_RULES, *(TurnReturn(0.9, baseline) for baseline in BASELINES)):
        np.testing.assert_array_equal(tokens_of(rule([members, other])[0]), tokens_of(rule([members])[0]))


@given(scored_groups(), st.integers(0, 5))
def test_prompt_tokens_do_not_matter(members, prompt):
    def padded(one: Scored) -> Scored:
        turns = tuple(
            replace(turn, action=replace(turn.action, prompt=ints([0] * prompt)))
            for turn in one.trajectory.turns
        )
        return replace(one, trajectory=replace(one.trajectory, turns=turns))

    for rule in EVERY_RULE:
        np.testing.assert_array_equal(
            tokens_of(rule([tuple(map(padded, members))])[0]), tokens_of(rule([members])[0])
        )


@given(scored_groups(min_size=1))
def test_every_rule_gives_one_number_per_action_token(members):
    for rule in EVERY_RULE:
        (credited,) = rule([members])
        assert [one.advantages_T.shape for one in credited] == [
            (one.trajectory.num_tokens,) for one in members
        ]


@given(scored_groups(values=False))
def test_turn_returns_equal_the_reference(members):
    paid = [list(one.rewards_N) for one in members]
    expected = reference.turn_rloo(paid, 0.9)
    for credited, one, turns in zip(
        TurnReturn(0.9, OthersStart())([members])[0], members, expected, strict=True
    ):
        np.testing.assert_allclose(
            credited.advantages_T, spread(np.array(turns), one.num_tokens_N), atol=1e-5
        )


@given(scored_trajectories(min_tokens=1), st.floats(0, 1), st.floats(0, 1))
def test_token_gae_equals_the_masked_recursion_over_the_whole_context(one, gamma, lam):
    rewards, values, mask, place = [], [], [], 0
    for reward, turn in zip(one.rewards_N, one.trajectory.turns, strict=True):
        length = len(turn.action.tokens)
        rewards += [0.0] * len(turn.action.prompt) + [0.0] * (length - 1) + [float(reward)]
        values += [9.0] * len(turn.action.prompt) + list(one.measured.values[place : place + length])
        mask += [0] * len(turn.action.prompt) + [1] * length
        place += length
    advantages, targets = reference.masked_token_gae(rewards, values, mask, gamma, lam)
    ((credited,),) = TokenGAE(gamma, lam)([(one,)])
    on = [t for t, action in enumerate(mask) if action]
    np.testing.assert_allclose(credited.advantages_T, [advantages[t] for t in on], atol=1e-5)
    np.testing.assert_allclose(credited.targets_T, [targets[t] for t in on], atol=1e-5)


@given(scored_trajectories(min_tokens=1), st.floats(0, 1), st.floats(0, 1))
def test_turn_gae_equals_the_definition_as_a_sum(one, gamma, lam):
    first = np.cumsum(one.num_tokens_N) - one.num_tokens_N
    values_N = [float(one.measured.values[t]) for t in first]
    expected = reference.gae_as_a_sum([float(r) for r in one.rewards_N], values_N, gamma, lam)
    ((credited,),) = TurnGAE(gamma, lam)([(one,)])
    np.testing.assert_allclose(credited.advantages_T, spread(np.array(expected), one.num_tokens_N), atol=1e-5)
    np.testing.assert_allclose(credited.targets_T[first], np.array(expected) + values_N, atol=1e-5)
    assert np.isnan(np.delete(credited.targets_T, first)).all()


@given(scored_groups(min_tokens=1, min_turns=1))
def test_whitened_advantages_have_mean_zero_and_deviation_one(members):
    by_turn, by_token = (
        Modified(TokenGAE(), (Whiten(per=unit),))([members])[0] for unit in ("turn", "token")
    )
    pairs = list(zip(by_turn, members, strict=True))
    turns = [
        part.mean()
        for one, member in pairs
        for part in np.split(one.advantages_T, member.num_tokens_N.cumsum()[:-1])
    ]
    assert abs(np.mean(turns)) < 1e-4
    for advantages in (
        tokens_of(by_token),
        tokens_of(Modified(TurnReturn(), (Whiten(),))([[scored(m.rewards_N) for m in members]])[0]),
    ):
        assert abs(advantages.mean()) < 1e-4
        assert advantages.std(ddof=1) == pytest.approx(1.0, abs=1e-3) or not advantages.any()


@given(scored_trajectories(min_tokens=1))
def test_with_lambda_one_the_advantage_is_the_return_minus_the_value(one):
    to_go = spread(returns_to_go(one.rewards_N, gamma=1.0), one.num_tokens_N)
    ((token,),) = TokenGAE(1.0, 1.0)([(one,)])
    np.testing.assert_allclose(token.advantages_T, to_go - one.measured.values, atol=1e-5)
    np.testing.assert_allclose(token.targets_T, to_go, atol=1e-5)


@given(scored_trajectories(min_tokens=1))
def test_token_and_turn_gae_agree_where_each_turn_is_one_token(one):
    lengths = [1] * len(one.rewards_N)
    single = scored(list(one.rewards_N), lengths, values=list(one.measured.values[: len(lengths)]))
    np.testing.assert_allclose(
        tokens_of(TokenGAE(0.9, 0.8)([(single,)])[0]), tokens_of(TurnGAE(0.9, 0.8)([(single,)])[0]), atol=1e-6
    )


@given(scored_groups(min_tokens=1))
def test_without_reward_nothing_is_credited(members):
    unpaid = tuple(replace(one, ledger={"outcome": floats([0.0] * len(one.rewards_N))}) for one in members)
    for rule in (*GROUP_RULES, turn_rloo(), TurnReturn(0.9, OthersAtTurn())):
        assert not tokens_of(rule([unpaid])[0]).any()
