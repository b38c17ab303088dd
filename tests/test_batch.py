import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentrl.learner.batch import Batch, Micro, make_batch
from agentrl.types import (
    Action,
    Credited,
    End,
    Measured,
    Observation,
    Scored,
    Task,
    Trajectory,
    Turn,
    floats,
    ints,
)


def turn(prompt: list[int], tokens: list[int], *, fresh: bool = False) -> Turn:
    return Turn(
        Observation.text("o"),
        Action("a", ints(prompt), ints(tokens), floats([-token / 10 for token in tokens]), fresh=fresh),
    )


def scored(*turns: Turn, **measured: object) -> Scored:
    return Scored(Trajectory(Task("t"), turns, End.TERMINATED), {}, **measured)


@st.composite
def plays(draw: st.DrawFn) -> Scored:
    tokens = st.lists(st.integers(1, 9), max_size=4)
    turns = []
    for index in range(draw(st.integers(0, 4))):
        fresh = draw(st.booleans())
        opens = index == 0 or fresh
        turns.append(
            turn(
                draw(st.lists(st.integers(10, 19), min_size=int(opens), max_size=4)),
                draw(tokens),
                fresh=fresh,
            )
        )
    return scored(*turns)


def numbered(play: Scored) -> Credited:
    """Credit that counts the action tokens, so that their order can be seen."""
    return Credited(
        floats(np.arange(play.trajectory.num_tokens)), floats(100 + np.arange(play.trajectory.num_tokens))
    )


def test_a_context_is_prompts_and_actions_in_turn():
    play = scored(turn([10, 11], [1, 2]), turn([12], [3]))
    (sequence,) = make_batch([(play,)], [(numbered(play),)]).sequences
    (row,) = sequence.rows
    assert row.tokens_L.tolist() == [10, 11, 1, 2, 12, 3]
    assert row.positions_A.tolist() == [2, 3, 5]
    assert row.is_action_L.tolist() == [False, False, True, True, False, True]
    assert row.turn_A.tolist() == [0, 0, 1]
    assert row.behaviour_A.tolist() == pytest.approx([-0.1, -0.2, -0.3])
    assert row.advantages_A.tolist() == [0, 1, 2]
    assert row.targets_A.tolist() == [100, 101, 102]
    assert sequence.turn_lengths == (2, 1)


@given(
    st.lists(st.lists(plays(), min_size=1, max_size=3), max_size=5),
    st.integers(1, 40),
    st.integers(1, 4),
    st.integers(0, 9),
)
def test_whole_groups_are_neither_dealt_nor_packed_apart(groups, budget, number, seed):
    batch = make_batch([tuple(group) for group in groups])
    members = {
        group: [s for s in batch.sequences if s.group == group]
        for group in {s.group for s in batch.sequences}
    }
    parts = batch.minibatches(number, seed, whole_groups=True)
    assert len(parts) == min(number, len(members))
    assert sorted(id(sequence) for part in parts for sequence in part.sequences) == sorted(
        id(sequence) for sequence in batch.sequences
    )
    for part in parts:
        for pack in part.packs(budget, whole_groups=True):
            held = [part.sequences[index] for index in pack]
            assert (
                sum(sequence.num_tokens for sequence in held) <= budget
                or len({sequence.group for sequence in held}) == 1
            )
            for group in {sequence.group for sequence in held}:
                assert [id(sequence) for sequence in held if sequence.group == group] == [
                    id(sequence) for sequence in members[group]
                ]


def test_groups_are_numbered_within_a_micro_batch():
    play = scored(turn([10], [1, 2]))
    batch = make_batch([(play, play), (play,), (play, play)])
    assert [sequence.group for sequence in batch.sequences] == [0, 0, 1, 2, 2]
    micro = Micro.lay([batch.sequences[index] for index in (4, 1, 3)], torch.device("cpu"))
    assert micro.group_A.tolist() == [1, 1, 0, 0, 1, 1]


def test_a_fresh_action_starts_a_row_of_its_own():
    play = scored(turn([10], [1]), turn([11, 12], [2, 3], fresh=True), turn([13], [4]))
    (sequence,) = make_batch([(play,)], [(numbered(play),)]).sequences
    assert [row.tokens_L.tolist() for row in sequence.rows] == [[10, 1], [11, 12, 2, 3, 13, 4]]
    assert [row.advantages_A.tolist() for row in sequence.rows] == [[0], [1, 2, 3]]
    assert [row.turn_A.tolist() for row in sequence.rows] == [[0], [1, 1, 2]]


@given(st.lists(plays(), max_size=6))
def test_no_action_token_is_lost_and_none_comes_twice(played):
    batch = make_batch([(play,) for play in played], [(numbered(play),) for play in played])
    spoken = [
        play
        for play in played
        if any(len(t.action.prompt) or len(t.action.tokens) for t in play.trajectory.turns)
    ]
    assert len(batch.sequences) == len(spoken)
    for play, sequence in zip(spoken, batch.sequences, strict=True):
        said = np.concatenate([row.tokens_L[row.positions_A] for row in sequence.rows])
        assert said.tolist() == [token for t in play.trajectory.turns for token in t.action.tokens]
        advantages = np.concatenate([row.advantages_A for row in sequence.rows])
        assert advantages.tolist() == list(range(play.trajectory.num_tokens))
        assert sequence.turn_lengths == tuple(len(t.action.tokens) for t in play.trajectory.turns)


@given(st.lists(plays(), max_size=8), st.integers(1, 30))
def test_packs_hold_every_sequence_once_within_the_budget(played, budget):
    batch = make_batch([(play,) for play in played])
    packs = batch.packs(budget)
    assert sorted(index for pack in packs for index in pack) == list(range(len(batch.sequences)))
    for pack in packs:
        assert len(pack) == 1 or sum(batch.sequences[index].num_tokens for index in pack) <= budget


@given(st.lists(plays(), max_size=8), st.integers(1, 10), st.integers(0, 3))
def test_minibatches_divide_the_batch_evenly_and_the_same_way_each_time(played, number, seed):
    batch = make_batch([(play,) for play in played])
    parts = batch.minibatches(number, seed)
    found = [id(sequence) for part in parts for sequence in part.sequences]
    assert sorted(found) == sorted(id(sequence) for sequence in batch.sequences)
    assert [len(part.sequences) for part in parts] == [
        len(part.sequences) for part in batch.minibatches(number, seed)
    ]
    assert found == [id(sequence) for part in batch.minibatches(number, seed) for sequence in part.sequences]
    sizes = [len(part.sequences) for part in parts]
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_another_seed_deals_otherwise():
    batch = make_batch([(scored(turn([10], [index])),) for index in range(20)])
    assert batch.minibatches(2, 0)[0].sequences != batch.minibatches(2, 1)[0].sequences


@given(st.lists(plays(), min_size=1, max_size=6))
def test_the_token_before_each_token_predicts_it(played):
    batch = make_batch([(play,) for play in played], [(numbered(play),) for play in played])
    if not batch.sequences:
        return
    micro = Micro.lay(batch.sequences, torch.device("cpu"))
    laid = np.concatenate(micro.rows)
    assert laid[micro.predicts_A.numpy() + 1].tolist() == micro.tokens_A.tolist()
    assert laid[micro.observes_S.numpy() + 1].tolist() == micro.observed_S.tolist()
    starts = len(micro.rows)
    assert len(micro.tokens_A) + len(micro.observed_S) + starts == len(laid), (
        "every token but the first of a row is predicted once"
    )
    assert (micro.tokens_A < 10).all()
    assert (micro.observed_S >= 10).all()


def test_sequences_and_turns_of_a_micro_batch_are_numbered_from_zero():
    first, second = (
        scored(turn([10], [1, 2]), turn([11], []), turn([12], [3])),
        scored(turn([13], [4]), turn([14], [5], fresh=True)),
    )
    micro = Micro.lay(make_batch([(first, second)]).sequences, torch.device("cpu"))
    assert micro.sequence_A.tolist() == [0, 0, 0, 1, 1]
    assert micro.turn_A.tolist() == [0, 0, 1, 2, 3]


def test_what_does_not_fit_together_is_refused():
    play = scored(turn([10], [1, 2]))
    with pytest.raises(ValueError, match="advantages of task 't'"):
        make_batch([(play,)], [(Credited(floats([1.0])),)])
    with pytest.raises(ValueError, match="values of task 't'"):
        make_batch([(scored(turn([10], [1, 2]), measured=Measured(values=floats([1.0]))),)])
    with pytest.raises(ValueError, match="zip"):
        make_batch([(play,)], [])
    with pytest.raises(ValueError, match="no context before it"):
        make_batch([(scored(turn([], [1])),)])


def test_an_empty_batch_has_no_parts():
    assert Batch(()).minibatches(3, 0) == []
    assert Batch(()).packs(10) == []
    assert make_batch([(scored(),)]).num_tokens == 0
