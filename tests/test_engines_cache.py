import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.engines.cache import Feed, SlotAttention
from agentrl.engines.slots import Slots
from agentrl.types import ints

SLOTS, LONGEST, KV_HEADS, DIM, SCALE = 24, 420, 2, 16, 0.25


class Contexts:
    """One layer of attention over random vectors that depend only on a token's slot and position."""

    def __init__(self, group: int, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(group)
        sizes = (KV_HEADS, group, DIM), (KV_HEADS, DIM), (KV_HEADS, DIM)
        self.vectors = [torch.randn(SLOTS, LONGEST, *size, generator=generator).to(dtype) for size in sizes]
        self.attention = SlotAttention(
            num_layers=1,
            num_slots=SLOTS,
            max_context=LONGEST,
            num_heads=KV_HEADS * group,
            num_kv_heads=KV_HEADS,
            head_dim=DIM,
            like=self.vectors[0],
        )

    def feed(self, feeds: list[tuple[int, int, int]]) -> dict[tuple[int, int], torch.Tensor]:
        """Feed (slot, start, number of tokens), and return the output of each (slot, position)."""
        step = self.attention.plan([Feed(slot, start, ints(range(size))) for slot, start, size in feeds])
        places = [(slot, start + at) for slot, start, size in feeds for at in range(size)]
        slots, positions = (torch.tensor(axis) for axis in zip(*places, strict=True))
        queries, keys, values = (
            torch.cat(
                [
                    vector[slots, positions],
                    vector.new_zeros(len(step.tokens_M) - len(places), *vector.shape[2:]),
                ]
            )
            for vector in self.vectors
        )
        self.attention.write(0, step, keys, values)
        seen = self.attention.attend(0, step.queries, queries, scale=SCALE)
        last = self.attention.attend(0, step.last_queries, queries[step.last_R], scale=SCALE)
        for row, (slot, start, size) in enumerate(feeds):
            assert torch.equal(last[row], seen[places.index((slot, start + size - 1))])
        return dict(zip(places, seen, strict=False))

    def reference(self, slot: int, position: int) -> torch.Tensor:
        """Attention from its definition, in float64."""
        query, keys, values = (vector[slot].double() for vector in self.vectors)
        scores = torch.einsum("kgd,lkd->kgl", query[position], keys[: position + 1]) * SCALE
        return torch.einsum("kgl,lkd->kgd", scores.softmax(-1), values[: position + 1]).flatten()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_attention_is_what_its_definition_says(dtype, tolerance):
    contexts = Contexts(2, dtype)
    contexts.feed([(slot, 0, 150 + slot) for slot in range(SLOTS)])
    seen = contexts.feed([(3, 153, 1), (9, 159, 140), (4, 154, 1), (17, 167, 2), (20, 170, 17)])
    for place, found in seen.items():
        torch.testing.assert_close(found.double(), contexts.reference(*place), atol=tolerance, rtol=0)


@settings(deadline=None, max_examples=12)
@given(st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1))
def test_what_a_token_sees_has_the_same_bits_however_its_context_was_fed(group, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, LONGEST, SLOTS)
    whole = Contexts(group).feed([(slot, 0, int(length)) for slot, length in enumerate(lengths)])
    contexts, filled = Contexts(group), np.zeros(SLOTS, int)
    while (filled < lengths).any():
        active = rng.permutation(np.flatnonzero(filled < lengths))[: rng.integers(1, SLOTS + 1)]
        sizes = np.minimum(rng.choice([1, 1, 1, 2, 7, 19, 130, 300], len(active)), (lengths - filled)[active])
        seen = contexts.feed(
            [(int(slot), int(filled[slot]), int(size)) for slot, size in zip(active, sizes, strict=True)]
        )
        assert all(torch.equal(found, whole[place]) for place, found in seen.items())
        filled[active] += sizes


def test_slots_are_found_by_content_and_given_away_the_oldest_first():
    slots = Slots(2)
    assert slots.take(b"") == (0, False)
    assert slots.take(b"") == (1, False)
    assert slots.take(b"") is None
    slots.keep(1, b"one")
    slots.keep(0, b"two")
    assert slots.take(b"one") == (1, True)
    assert slots.take(b"other") == (0, False)
    slots.drop(0)
    slots.keep(1, b"one")
    slots.clear()
    assert slots.num_idle == 0
    assert slots.take(b"one") in [(0, False), (1, False)]
