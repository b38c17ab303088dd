"""Credit rules of published methods: golden values, laws, and the mistakes that released code makes."""

from dataclasses import replace

import numpy as np
import pytest
import strategies
from credit_cases import GIGPO, GROUP_RULES, HGPO_WALKS, MT, OUTCOMES, componentwise, timed, walk
from hypothesis import given
from hypothesis import strategies as st
from strategies import group, scored, scored_groups, scored_trajectories, tokens_of, trajectory

from agentrl.credit.anchors import HGPO, GiGPO
from agentrl.credit.baselines import OthersAtTurn
from agentrl.credit.components import GDPO, MTGRPO, EpisodeAndSteps
from agentrl.credit.constant import ByOutcome
from agentrl.credit.entropy import EMPG
from agentrl.credit.gae import BiLevelGAE, TokenGAE, TurnGAE
from agentrl.credit.group import BNPO, GRPO
from agentrl.credit.modifiers import ScaleAdvantages
from agentrl.credit.returns import TurnReturn, reinforce_plus_plus, reinforce_plus_plus_baseline
from agentrl.credit.strata import CountOf, Stratified, num_turns
from agentrl.credit.weights import (
    Attribution,
    ConflictTokens,
    DurationWeights,
    KeepTokens,
    KeepVaried,
    most_varied,
)
from agentrl.errors import ConfigError
from agentrl.types import Action, Credited, End, Measured, Observation, Scored, Trajectory, Turn, floats, ints

CLOSE = {"rtol": 0.0, "atol": 1e-5}


def by_turn(credited) -> list[list[float]]:
    return [[round(float(value), 6) for value in one.advantages_T] for one in credited]


# Group baselines.


def test_reinforce_plus_plus_is_whitened_over_the_batch():
    paid = [group(OUTCOMES), group([0, 0, 0, 1])]
    found = np.concatenate([tokens_of(credit) for credit in reinforce_plus_plus()(paid)])
    np.testing.assert_allclose(
        found, [1.207615, -0.724569, -0.724569, 1.207615, -0.724569, -0.724569, -0.724569, 1.207615], **CLOSE
    )


def test_reinforce_plus_plus_with_a_baseline_is_centred_first():
    paid = [group(OUTCOMES), group([0, 0, 0, 1])]
    found = np.concatenate([tokens_of(credit) for credit in reinforce_plus_plus_baseline()(paid)])
    np.testing.assert_allclose(found, [1.0, -1.0, -1.0, 1.0, -0.5, -0.5, -0.5, 1.5], **CLOSE)


def test_bnpo_weighs_groups_by_how_common_their_difficulty_is():
    paid = [group(returns) for returns in ([1, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0])]
    np.testing.assert_allclose(BNPO.fit(np.array([0.25, 0.5, 0.75, 0.25])), [1.480587, 1.617898], **CLOSE)
    found = [tokens_of(credit) for credit in BNPO()(paid)]
    np.testing.assert_allclose(
        [one.max() for one in found], [0.630577, 0.387063, 0.244417, 0.630577], **CLOSE
    )
    np.testing.assert_allclose(
        [one.min() for one in found], [-0.210192, -0.387063, -0.73325, -0.210192], **CLOSE
    )


def test_bnpo_of_equally_hard_groups_or_of_one_group_weighs_nothing():
    for paid in ([group(OUTCOMES)] * 3, [group(OUTCOMES)]):
        np.testing.assert_allclose(tokens_of(BNPO()(paid)[0]), [0.5, -0.5, -0.5, 0.5], **CLOSE)


def test_bnpo_refuses_returns_that_are_no_shares():
    with pytest.raises(ConfigError, match="-1 to 1"):
        BNPO()([group([1, -1])])


def test_credit_by_outcome_looks_at_the_signal_and_not_at_the_pay():
    won = replace(scored([0.0]), trajectory=trajectory([2], signals=[{"success": 1.0}]))
    lost = replace(scored([9.0]), trajectory=trajectory([1], signals=[{"success": 0.0}]))
    assert by_turn(ByOutcome()([(won, lost)])[0]) == [[0.1, 0.1], [-1.0]]
    assert by_turn(ByOutcome(1.0, 0.0)([(won, lost)])[0]) == [[1.0, 1.0], [0.0]]
    assert by_turn(ByOutcome(0.0, -1.0)([(won, lost)])[0]) == [[0.0, 0.0], [-1.0]]


# Places.


def test_gigpo_compares_turns_at_the_same_place():
    (found,) = GiGPO()([GIGPO])
    expected = [[1.268333, 1.141667, 0.666667], [-0.634167, -0.333333], [-0.634167, -0.808333, -0.333333]]
    for one, row in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.advantages_T, row, **CLOSE)


def test_gigpo_divided_by_the_deviation():
    (found,) = GiGPO(deviation=True)([GIGPO])
    expected = [[2.309397, 1.861804, 1.154699], [-1.154698, -0.577349], [-1.154698, -1.284455, -0.577349]]
    for one, row in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.advantages_T, row, **CLOSE)


def test_long_episodes_do_not_weigh_more_unless_asked_for():
    members = (walk("abcd", [0, 0, 0, 0]), walk("e", [1]))
    assert by_turn(GiGPO()([members])[0])[1] == [0.5]
    assert by_turn(GiGPO(stats_over="turn")([members])[0])[1] == [0.8]


def test_places_may_be_alike_without_being_equal():
    members = (
        scored([1.0], observations=["step 1: a red door"]),
        scored([0.0], observations=["step 2: a red door"]),
    )
    apart, alike = (GiGPO(gamma=1.0, similarity=limit)([members])[0] for limit in (1.0, 0.9))
    assert by_turn(apart) == [[0.5], [-0.5]]
    assert by_turn(alike) == [[1.0], [-1.0]]


def test_hgpo_weighs_deeper_agreement_more():
    (found,) = HGPO(deviation=False)([HGPO_WALKS])
    expected = [[0.45125, 0.471667, 0.0], [0.0, 0.0, 0.016667], [-0.45125, -0.478333, 0.0]]
    for one, row in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.advantages_T, row, **CLOSE)


def test_hgpo_divided_by_the_deviation():
    (found,) = HGPO()([HGPO_WALKS])
    expected = [[1.224742, 1.081079, 0.0], [0.0, 0.0, 0.042954], [-1.224742, -1.09826, 0.0]]
    for one, row in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.advantages_T, row, **CLOSE)


def test_an_average_turn_counts_as_information():
    """At window 1 the second member is exactly average (0), at window 2 it is not: the mean counts both."""
    members = (walk("xa", [0, 1]), walk("xa", [0, 0.5]), walk("ya", [0, 0.0]))
    (found,) = HGPO(gamma=1.0, depth=1, deviation=False)([members])
    assert by_turn(found)[1][1] == pytest.approx((2 * 0.0 + 3 * -0.25) / 5, abs=1e-6)


# Components.


def test_gdpo_tells_apart_what_a_sum_would_make_equal():
    both = lambda a, b: componentwise({"a": [a[0]], "b": [a[1]]}, {"a": [b[0]], "b": [b[1]]})  # noqa: E731
    rule = GDPO({"a": 1.0, "b": 1.0})
    pair, double = both((0, 0), (0, 1)), both((0, 0), (1, 1))
    np.testing.assert_allclose(rule._sum(pair), [-0.707007, 0.707007], **CLOSE)
    np.testing.assert_allclose(rule._sum(double), [-1.414014, 1.414014], **CLOSE)
    np.testing.assert_allclose(tokens_of(GRPO(std_eps=1e-4)([pair])[0]), [-0.707007, 0.707007], **CLOSE)
    np.testing.assert_allclose(tokens_of(GRPO(std_eps=1e-4)([double])[0]), [-0.707057, 0.707057], **CLOSE)


def test_gdpo_adds_standard_scores_and_whitens_them():
    members = componentwise(
        {"a": [0], "b": [0]}, {"a": [1], "b": [0]}, {"a": [0], "b": [1]}, {"a": [2], "b": [1]}
    )
    rule = GDPO({"a": 1.0, "b": 1.0})
    np.testing.assert_allclose(rule._sum(members), [-1.649143, -0.604786, 0.082608, 2.171322], **CLOSE)
    np.testing.assert_allclose(
        tokens_of(rule([members])[0]), [-1.02224, -0.374883, 0.051205, 1.345918], **CLOSE
    )


def test_gdpo_of_one_component_is_grpo():
    members = group([0.0, 1.0, 5.0])
    np.testing.assert_allclose(
        tokens_of(GDPO({"outcome": 1.0})([members])[0]), tokens_of(GRPO(std_eps=1e-4)([members])[0]), **CLOSE
    )


def test_mt_grpo_credits_turns_up_to_the_reward_with_both_scores():
    called = [[{"called": 1.0}, {"called": 0.0}]] * 4
    (found,) = MTGRPO(process="tool", present="called")([componentwise(*MT, signals=called)])
    np.testing.assert_allclose(
        [one.advantages_T[0] for one in found], [1.648408, -2.170096, -0.083343, 0.605031], **CLOSE
    )
    np.testing.assert_allclose(
        [one.advantages_T[1] for one in found], [0.865875, -0.865875, -0.865875, 0.865875], **CLOSE
    )


def test_mt_grpo_without_a_tool_call_compares_the_sums():
    silent = [[{"called": 0.0}, {"called": 0.0}]] * 4
    (found,) = MTGRPO(process="tool", present="called")([componentwise(*MT, signals=silent)])
    np.testing.assert_allclose(
        [one.advantages_T[0] for one in found], [0.937777, -1.019322, -0.693139, 0.774685], **CLOSE
    )


def test_istar_adds_the_episodes_score_and_the_steps():
    members = componentwise(
        {"implicit": [0.3, -0.05], "outcome": [0, 1]}, {"implicit": [-0.1, -0.1], "outcome": [0, 0]}
    )
    (found,) = EpisodeAndSteps()([members])
    for one, row in zip(found, [[2.195892, 0.383458], [-1.289675, -1.289675]], strict=True):
        np.testing.assert_allclose(one.advantages_T, row, **CLOSE)


@pytest.mark.parametrize(
    "rule", [GDPO({"judge": 1.0}), MTGRPO(process="judge"), EpisodeAndSteps(process="judge")], ids=repr
)
def test_a_component_that_nothing_pays_is_named(rule):
    with pytest.raises(ConfigError, match="'judge', which nothing pays; the ledger has outcome"):
        rule([group([0.0, 1.0])])


# Strata.


def test_episodes_are_compared_with_their_like():
    strata = [1, 1, 1, 2, 2, 3]
    members = tuple(
        Scored(
            trajectory([1] * num, signals=[{"search": 1.0}] * num),
            {"outcome": floats([0.0] * (num - 1) + [value])},
        )
        for num, value in zip(strata, [1, 0, 0, 1, 1, 0], strict=True)
    )
    for stratum in (CountOf("search"), num_turns):
        for alpha, expected in (
            (1.0, [1.154699, -0.577349, -0.577349, 0.0, 0.0, 0.0]),
            (0.0, [0.912869, -0.912869, -0.912869, 0.912869, 0.912869, -0.912869]),
            (0.8, [1.106333, -0.644453, -0.644453, 0.182574, 0.182574, -0.182574]),
        ):
            (found,) = Stratified(stratum, alpha=alpha)([members])
            np.testing.assert_allclose([one.advantages_T[0] for one in found], expected, **CLOSE)


# Two levels.


def test_the_turns_advantage_stands_at_its_end_and_runs_back_through_its_tokens():
    one = scored([0.2, 1.0], [2, 2], values=[0.1, 0.2, 0.4, 0.5])
    ((found,),) = BiLevelGAE()([(one,)])
    np.testing.assert_allclose(found.advantages_T, [1.05, 0.95, 0.6, 0.5], **CLOSE)
    np.testing.assert_allclose(found.targets_T, [1.15, 1.15, 1.0, 1.0], **CLOSE)


def test_a_turn_without_reward_is_a_turn_on_both_levels():
    """Released code finds turns by their reward, so it would see no first turn and give [0, 0] there."""
    one = scored([0.0, 1.0], [1, 1], values=[0.0, 0.0])
    ((found,),) = BiLevelGAE(gamma_turn=0.5)([(one,)])
    np.testing.assert_allclose(found.advantages_T, [0.5, 1.0], **CLOSE)


@given(scored_trajectories(min_turns=1, min_tokens=1), st.sampled_from([0.5, 0.95, 1.0]))
def test_two_levels_end_in_the_turn_level_and_are_one_where_there_is_one_turn(one, lam):
    ((found,),) = BiLevelGAE(gamma_turn=0.9, lam=lam)([(one,)])
    ends = np.cumsum(one.num_tokens_N) - 1
    at_ends = replace(
        one,
        trajectory=replace(
            one.trajectory,
            turns=tuple(
                replace(t, action=Action("a", ints(), ints([0]), floats([-1.0])))
                for t in one.trajectory.turns
            ),
        ),
    ).with_measured(values=floats(one.measured.values[ends]))
    ((turns,),) = TurnGAE(gamma=0.9, lam=lam)([(at_ends,)])
    np.testing.assert_allclose(found.advantages_T[ends], turns.advantages_T, atol=1e-5)
    single = replace(
        one,
        trajectory=replace(one.trajectory, turns=one.trajectory.turns[:1]),
        ledger={"outcome": one.ledger["outcome"][:1]},
    ).with_measured(values=one.measured.values[: one.num_tokens_N[0]])
    ((two,),), ((flat,),) = BiLevelGAE(lam=lam)([(single,)]), TokenGAE(lam=lam)([(single,)])
    np.testing.assert_allclose(two.advantages_T, flat.advantages_T, atol=1e-5)


# Entropy.


def modulated(rule, *, lengths=((1, 1, 1), (1, 1))):
    entropies = [[0.2, 0.8, 0.5], [0.4, 1.0]]
    members = tuple(
        Scored(
            trajectory(list(counts)),
            {"outcome": floats([0.0] * len(counts))},
            measured=Measured(entropies=floats(np.repeat(values, counts))),
        )
        for counts, values in zip(lengths, entropies, strict=True)
    )
    credited = tuple(
        Credited(floats(np.full(one.trajectory.num_tokens, advantage)))
        for one, advantage in zip(members, (1.0, -1.0), strict=True)
    )
    (found,) = rule([members], [credited])
    starts = [np.cumsum(counts) - counts for counts in map(np.array, lengths)]
    return np.concatenate([one.advantages_T[start] for one, start in zip(found, starts, strict=True)])


def test_empg_amplifies_sure_turns_and_pays_for_clarity_to_come():
    np.testing.assert_allclose(
        modulated(EMPG(center="none")), [1.535866, 0.7487, 1.039352, -1.159346, -0.556325], **CLOSE
    )
    np.testing.assert_allclose(
        modulated(EMPG()), [1.214217, 0.42705, 0.717702, -1.480995, -0.877974], **CLOSE
    )


def test_empg_centred_over_tokens():
    found = modulated(EMPG(center="token"), lengths=((10, 20, 10), (10, 10)))
    np.testing.assert_allclose(found, [1.143042, 0.355875, 0.646527, -1.55217, -0.949149], **CLOSE)


def test_each_part_of_empg_alone():
    np.testing.assert_allclose(
        modulated(EMPG(zeta=0.0, center="none")), [1.512248, 0.714335, 1.039352, -1.17774, -0.556325], **CLOSE
    )
    clarity = [1 + 0.05 * 0.472367, 1 + 0.05 * 0.687289, 1.0, -1 + 0.05 * 0.367879, -1.0]
    np.testing.assert_allclose(modulated(EMPG(kappa=0.0, center="none")), clarity, **CLOSE)


def test_equal_entropies_change_nothing():
    members = (
        Scored(
            trajectory([2, 1]), {"outcome": floats([0, 0])}, measured=Measured(entropies=floats([0.7] * 3))
        ),
    )
    credited = [(Credited(floats([1.0, 1.0, -1.0])),)]
    ((found,),) = EMPG(zeta=0.0, center="none")([members], credited)
    np.testing.assert_allclose(found.advantages_T, [1.0, 1.0, -1.0], **CLOSE)


@given(scored_groups(values=False, min_size=1))
def test_empg_accepts_turns_without_tokens_and_episodes_without_turns(members):
    measured = tuple(
        one.with_measured(entropies=floats(np.linspace(0.0, 1.0, one.trajectory.num_tokens)))
        for one in members
    )
    (found,) = EMPG()(
        [measured], [tuple(Credited(floats(np.ones(one.trajectory.num_tokens))) for one in measured)]
    )
    for one, credit in zip(measured, found, strict=True):
        assert credit.advantages_T.shape == (one.trajectory.num_tokens,)
        assert np.isfinite(credit.advantages_T).all()


# Weights.


def test_long_actions_count_as_much_time_as_they_take():
    members, credited = (timed([1.0, 10.0, 4.0]),), [(Credited(floats([1.0, -1.0, 0.5])),)]
    ((found,),) = DurationWeights()([members], credited)
    np.testing.assert_allclose(found.advantages_T, [0.2, -2.0, 0.4], **CLOSE)
    ((capped,),) = DurationWeights(max_weight=1.0)([members], credited)
    np.testing.assert_allclose(capped.advantages_T, [0.2, -1.0, 0.4], **CLOSE)
    ((instant,),) = DurationWeights()([(timed([0.0]),)], [(Credited(floats([1.0])),)])
    np.testing.assert_allclose(instant.advantages_T, [1.0], **CLOSE)


def spoken(*episodes: list[int]) -> tuple[Scored, ...]:
    return tuple(
        Scored(
            Trajectory(
                strategies.trajectory([1]).task,
                (
                    Turn(
                        Observation.text("o"), Action("a", ints(), ints(tokens), floats([-1.0] * len(tokens)))
                    ),
                ),
                End.TERMINATED,
            ),
            {"outcome": floats([0.0])},
        )
        for tokens in episodes
    )


def test_what_failures_share_with_successes_is_not_unlearned():
    members = spoken([5, 6, 7, 9], [5, 6, 8, 9], [5, 6, 1, 9], [5, 2, 3, 9])
    credited = tuple(Credited(floats([sign] * 4)) for sign in (1.0, 1.0, -1.0, -1.0))
    (found,) = ConflictTokens()([members], [credited])
    assert by_turn(found) == [[2, 2, 1, 2], [2, 2, 1, 2], [0, 0, -1, 0], [0, -1, -1, 0]]
    (alone,) = ConflictTokens()([members[:2]], [credited[:2]])
    assert by_turn(alone) == [[1, 1, 1, 1], [1, 1, 1, 1]]


def test_the_most_varied_episodes_are_kept():
    advantages = np.array([-1.2, -0.9, -0.1, 0.0, 0.1, 0.4, 0.9, 1.6])
    kept = most_varied(advantages, 4)
    np.testing.assert_allclose(advantages[kept], [-1.2, -0.9, 0.9, 1.6])
    assert advantages[kept].var() == pytest.approx(1.395, abs=1e-5)
    credited = tuple(Credited(floats([a])) for a in advantages)
    (found,) = KeepVaried(4)([group([0.0] * 8)], [credited])
    np.testing.assert_allclose(
        tokens_of(found), np.where(np.isin(np.arange(8), kept), advantages, 0.0), **CLOSE
    )


@given(st.lists(strategies.amounts, min_size=2, max_size=8), st.integers(2, 6))
def test_no_other_choice_varies_more(values, num):
    from itertools import combinations

    array = np.array(values)
    best = max(
        array[list(chosen)].var() for chosen in combinations(range(len(values)), min(num, len(values)))
    )
    assert array[most_varied(array, num)].var() == pytest.approx(best, abs=1e-12)


def test_the_tokens_that_matter_are_kept():
    one = Scored(
        trajectory([4]),
        {"outcome": floats([0.0])},
        measured=Measured(entropies=floats([0.1, 0.9, 0.5, 0.05])),
    )
    ((found,),) = KeepTokens(0.5)([(one,)], [(Credited(floats([1.6, 1.6, -1.2, -1.2])),)])
    np.testing.assert_allclose(found.advantages_T, [0.0, 1.6, -1.2, 0.0], **CLOSE)


# Laws of every rule that compares the members of a group.


@given(scored_groups(values=False), st.randoms(use_true_random=False))
def test_the_order_of_members_does_not_matter(members, random):
    order = list(range(len(members)))
    random.shuffle(order)
    for rule in GROUP_RULES:
        if getattr(rule, "similarity", 1.0) < 1.0:
            continue  # which states are similar depends on which came first
        straight, shuffled = rule([members])[0], rule([tuple(members[i] for i in order)])[0]
        for place, i in enumerate(order):
            np.testing.assert_allclose(shuffled[place].advantages_T, straight[i].advantages_T, atol=1e-4)


@given(scored_groups(values=False, min_size=1))
def test_every_rule_gives_one_number_per_action_token(members):
    for rule in GROUP_RULES:
        (credited,) = rule([members])
        assert [one.advantages_T.shape for one in credited] == [
            (one.trajectory.num_tokens,) for one in members
        ]
        assert all(np.isfinite(one.advantages_T).all() for one in credited)


@given(scored_groups(values=False))
def test_without_reward_nothing_is_credited(members):
    unpaid = tuple(
        replace(one, ledger={"outcome": floats(np.zeros(len(one.trajectory.turns)))}) for one in members
    )
    for rule in GROUP_RULES:
        assert not tokens_of(rule([unpaid])[0]).any()


@given(st.lists(strategies.amounts, min_size=2, max_size=8))
def test_scores_within_strata_sum_to_zero_in_each(returns):
    members = tuple(scored([0.0] * (i % 2) + [value]) for i, value in enumerate(returns))
    (found,) = Stratified(num_turns, alpha=1.0)([members])
    totals = [sum(one.advantages_T[0] for i, one in enumerate(found) if i % 2 == side) for side in (0, 1)]
    np.testing.assert_allclose(totals, 0.0, atol=1e-4)


def test_a_control_turns_a_rule_around():
    (straight,) = GiGPO()([GIGPO])
    (flipped,) = ScaleAdvantages(-1.0)([GIGPO], [straight])
    np.testing.assert_allclose(tokens_of(flipped), -tokens_of(straight))


# The hidden charge of comparing by turn index.


def test_comparing_by_turn_index_charges_the_mean_step_reward_for_every_turn_and_ours_does_not():
    """Every turn is paid 1 and nothing else, so longer episodes are better.

    By index no turn is worth anything.
    """
    members = tuple(scored([1.0] * num) for num in (1, 2, 3))
    indexed = MTGRPO(process="outcome", outcome="none")
    (charged,) = indexed(
        [
            tuple(
                replace(one, ledger={**one.ledger, "none": floats(np.zeros(len(one.rewards_N)))})
                for one in members
            )
        ]
    )
    assert not tokens_of(charged).any()
    (ours,) = TurnReturn(baseline=OthersAtTurn())([members])
    assert by_turn(ours) == [[-1.5], [0.0, 0.0], [1.5, 1.5, 1.0]]


# Attribution.


def test_a_step_counts_as_clearly_as_the_steps_up_to_it_foretell_the_outcome():
    paid = componentwise({"opinion": [0.0, 2.0, -1.0]}, {"opinion": [-1.0, -2.0, 1.0]})
    ((good, bad),) = Attribution("opinion")(
        [paid], [(Credited(floats([2.0] * 3)), Credited(floats([-1.0] * 3)))]
    )
    np.testing.assert_allclose(good.advantages_T, 2 * np.array([0.0, 0.462117, 0.16514]), **CLOSE)
    np.testing.assert_allclose(bad.advantages_T, -np.array([0.462117, 0.635149, 0.321513]), **CLOSE)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=6), st.floats(-2, 2), st.floats(0, 0.9))
def test_attribution_never_turns_an_advantage_and_never_makes_it_larger(opinions, advantage, threshold):
    paid = componentwise({"opinion": opinions})
    before = floats([advantage] * len(opinions))
    ((found,),) = Attribution("opinion", threshold)([paid], [(Credited(before),)])
    assert (found.advantages_T * before >= 0).all()
    assert (np.abs(found.advantages_T) <= np.abs(before)).all()


def test_attribution_needs_an_opinion_and_a_threshold_below_certainty():
    with pytest.raises(ConfigError, match="asks for the component 'opinion', which nothing pays"):
        Attribution("opinion")([group([1.0])], [(Credited(floats([1.0])),)])
    with pytest.raises(ConfigError, match="below 1; found 1"):
        Attribution("opinion", threshold=1.0)
