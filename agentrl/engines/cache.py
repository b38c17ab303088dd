"""Keys and values of past tokens: which slot holds which context, and attention over the slots.

A *slot* holds the keys and values of one context. ``Slots`` finds the slot that holds a given context by its content: policies are
stateless, so an episode is recognised by its tokens and by nothing else. ``SlotAttention`` owns the tensors.

Bits. A token's result must not depend on what else is computed beside it, so that an episode repeats bit for bit alone, among others,
and after its slot was given away and filled again. Measured with MKL on AVX-512, in float32, one and two threads, these keep the bits:

- a matrix product gives a row the same bits whatever the number of rows, from 10 on: rows are padded to multiples of 16;
- scaled dot product attention gives a query the same bits whatever the batch, and whatever the number of queries from 4 on, as long as
  the last block of 32 has none or at least 4: queries are padded;
- and it does so for many, but not all, lengths that the keys are padded to (not where the last 512 have 193 to 383): which ones depends on
  the library's blocking, so ``same_bits_lengths`` measures them when the engine starts, and only those are used.

Axes: ``M`` tokens of a step, ``B`` rows of a block, ``T`` tokens of each, ``K`` key-value heads, ``G`` query heads per such head,
``D`` dimension of a head, ``L`` length of the keys.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from agentrl.types import IntArray

ROWS = 16
"""Rows of a matrix product are padded to a multiple of this."""
KEYS = 32
"""Lengths of keys are padded to a multiple of this."""
BLOCK = 512
"""Keys are worked on in blocks of this many, so a multiple of it is always a safe length, and the room of a slot is one."""
QUERIES = 4
"""Fewest queries of one attention product."""

Index = npt.NDArray[np.int64]


def digest(tokens: IntArray) -> bytes:
    """Return a content hash of a context."""
    return hashlib.blake2b(np.ascontiguousarray(tokens, np.int32).tobytes(), digest_size=16).digest()


class Slots:
    """Bookkeeping of ``num_slots`` slots: in use, idle with a known content, or empty. Gives away the one idle for longest."""

    def __init__(self, num_slots: int) -> None:
        self._empty = list(range(num_slots))[::-1]
        self._idle: OrderedDict[int, bytes] = OrderedDict()  # slot -> content, the oldest first
        self._holding: dict[bytes, list[int]] = {}

    @property
    def num_idle(self) -> int:
        """Number of slots that nobody uses and that hold a context."""
        return len(self._idle)

    def take(self, content: bytes) -> tuple[int, bool] | None:
        """Take a slot into use, and say whether it holds ``content``; ``None`` where all slots are in use."""
        holding = self._holding.get(content)
        if holding:
            slot = holding[-1]
            self._forget(slot)
            return slot, True
        if self._empty:
            return self._empty.pop(), False
        if self._idle:
            slot = next(iter(self._idle))
            self._forget(slot)
            return slot, False
        return None

    def keep(self, slot: int, content: bytes) -> None:
        """Put a slot out of use that now holds ``content``."""
        self._idle[slot] = content
        self._holding.setdefault(content, []).append(slot)

    def drop(self, slot: int) -> None:
        """Put a slot out of use whose content is worth nothing."""
        self._empty.append(slot)

    def clear(self) -> None:
        """Forget what idle slots hold."""
        self._empty += self._idle
        self._idle.clear()
        self._holding.clear()

    def _forget(self, slot: int) -> None:
        content = self._idle.pop(slot)
        holding = self._holding[content]
        holding.remove(slot)
        if not holding:
            del self._holding[content]


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens to append to a slot that holds ``start`` tokens already."""

    slot: int
    start: int
    tokens: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Queries of one attention product: rows that feed about as many tokens each."""

    slots_B: Tensor | slice
    source_BT: Tensor | None
    """Index into ``M`` of each query; ``None``: all of ``M``, one query per row."""
    target_M: Tensor | None
    """Index into ``B * T`` of each token of ``owner_M``; ``None`` as above."""
    owner_M: Tensor | None
    mask: Tensor
    """Added to the scores, ``[B, 1, T * G, L]``: 0 where a query may look, else minus infinity."""
    num_queries: int
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Everything one forward pass is told: tokens with their place, blocks of queries, and the rows whose logits are wanted."""

    tokens_M: Tensor
    positions_M: Tensor
    cells_MH: Tensor
    """Where keys and values of each token go, as rows of ``D`` in a layer's memory, ``[M * 2 * K]``."""
    last_R: Tensor
    """Index into ``M`` of the last token of each feed, padded to a multiple of ``ROWS``."""
    blocks: tuple[Block, ...]
    """Blocks of all tokens."""
    last_blocks: tuple[Block, ...]
    """Blocks of the tokens ``last_R`` alone, for a layer of which nothing else is wanted."""


class SlotAttention:
    """Keys and values of all layers, ``[slots + 1, 2 * K, capacity, D]`` each: keys first, and every head's in one run of memory.

    The last slot takes what padding writes.
    """

    def __init__(
        self, *, num_layers: int, num_slots: int, max_context: int, num_heads: int, num_kv_heads: int, head_dim: int, like: Tensor
    ) -> None:
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.limit = up(max_context, BLOCK)
        self.padding_slot = num_slots
        # zeros, not empty: what was never written is masked, but 0 times NaN would be NaN
        self.layers = [like.new_zeros(num_slots + 1, 2 * num_kv_heads, BLOCK, head_dim) for _ in range(num_layers)]
        self._places = np.arange(self.limit)
        self._lengths = same_bits_lengths(self.limit, head_dim, like)

    @property
    def capacity(self) -> int:
        """Tokens that a slot has room for now; it grows to what is asked for."""
        return self.layers[0].shape[2]

    def _grow(self, length: int) -> None:
        """Make room for contexts of ``length`` tokens; memory is taken only for as long contexts as there are."""
        room = self.capacity
        while room < length:
            room = min(2 * room, self.limit)
        for index, cells in enumerate(self.layers):
            self.layers[index] = functional.pad(cells, (0, 0, 0, room - cells.shape[2]))

    @property
    def group(self) -> int:
        """Query heads per key-value head, ``G``."""
        return self.num_heads // self.num_kv_heads

    def plan(self, feeds: Sequence[Feed]) -> Step:
        """Lay the tokens of ``feeds`` out for one pass."""
        lengths = np.array([len(feed.tokens) for feed in feeds])
        ends = lengths.cumsum()
        total, device = int(ends[-1]), self.layers[0].device
        if (longest := max(feed.start + len(feed.tokens) for feed in feeds)) > self.capacity:
            self._grow(longest)
        tokens_M, slots_M, positions_M = (np.zeros(up(total, ROWS), np.int64) for _ in range(3))
        slots_M[total:] = self.padding_slot
        tokens_M[:total] = np.concatenate([feed.tokens for feed in feeds])
        slots_M[:total] = np.repeat([feed.slot for feed in feeds], lengths)
        starts = np.repeat([feed.start for feed in feeds], lengths)
        positions_M[:total] = starts + np.arange(total) - np.repeat(ends - lengths, lengths)
        last_R = np.zeros(up(len(feeds), ROWS), np.int64)
        last_R[: len(feeds)] = ends - 1
        heads_MH = slots_M[:, None] * 2 * self.num_kv_heads + np.arange(2 * self.num_kv_heads)
        blocks = self._blocks(slots_M, positions_M, lengths)
        decoding = total == len(feeds)
        last_blocks = blocks if decoding else self._blocks(slots_M[last_R], positions_M[last_R], np.ones(len(feeds), np.int64))
        return Step(
            tokens_M=torch.from_numpy(tokens_M).to(device),
            positions_M=torch.from_numpy(positions_M).to(device),
            cells_MH=torch.from_numpy((heads_MH * self.capacity + positions_M[:, None]).ravel()).to(device),
            last_R=torch.from_numpy(last_R).to(device),
            blocks=blocks,
            last_blocks=last_blocks,
        )

    def _blocks(self, slots_M: Index, positions_M: Index, lengths: Index) -> tuple[Block, ...]:
        """Sort rows of ``lengths`` tokens into blocks of about as many queries, over about as many keys."""
        ends = lengths.cumsum()
        needed = positions_M[ends - 1] + 1
        num_keys = self._lengths[np.searchsorted(self._lengths, needed)]
        if len(ends) == ends[-1] and num_keys.min() == num_keys.max():
            length = int(num_keys[0])
            positions_M = np.minimum(positions_M, length - 1)  # padding
            return (Block(self._select(slots_M), None, None, None, self._mask(positions_M[:, None], length, 1), self._bucket(1), length),)
        num_queries = np.array([self._bucket(length) for length in lengths.tolist()])
        kinds = num_queries * (1 << 32) + num_keys
        return tuple(
            self._block(np.flatnonzero(kinds == kind), int(kind >> 32), int(kind & 0xFFFFFFFF), lengths, ends, slots_M, positions_M)
            for kind in np.unique(kinds)
        )

    def _bucket(self, length: int) -> int:
        """Return the number of queries per row: enough to keep the bits, and few different ones."""
        if length == 1:
            return -(-QUERIES // self.group)
        size = ROWS
        while size < length:
            size *= 2
        return size if length > size * 3 // 4 or size == ROWS else size * 3 // 4

    def _block(self, rows: Index, size: int, length: int, lengths: Index, ends: Index, slots_M: Index, positions_M: Index) -> Block:
        offsets = np.arange(size)
        valid_BT = offsets < lengths[rows, None]
        source_BT = np.where(valid_BT, (ends - lengths)[rows, None] + offsets, (ends - 1)[rows, None])
        device = self.layers[0].device
        return Block(
            self._select(slots_M[source_BT[:, 0]]),
            torch.from_numpy(source_BT).to(device),
            torch.from_numpy(np.flatnonzero(valid_BT)).to(device),
            torch.from_numpy(source_BT[valid_BT]).to(device),
            self._mask(positions_M[source_BT], length, self.group),
            size,
            length,
        )

    def _select(self, slots_B: Index) -> Tensor | slice:
        """Return an index of the slots: a slice where they follow each other, which copies nothing."""
        first = int(slots_B[0])
        if np.array_equal(slots_B, np.arange(first, first + len(slots_B))):
            return slice(first, first + len(slots_B))
        return torch.from_numpy(slots_B).to(self.layers[0].device)

    def _mask(self, positions_BT: Index, length: int, repeat: int) -> Tensor:
        hidden_BTL = self._places[:length] > positions_BT[:, :, None]
        mask_BTL = torch.from_numpy(np.where(hidden_BTL, np.float32(-np.inf), np.float32(0.0))).to(self.layers[0])
        return mask_BTL.repeat_interleave(repeat, dim=1)[:, None] if repeat > 1 else mask_BTL[:, None]

    def write(self, layer: int, step: Step, keys_values: Tensor) -> None:
        """Store keys and values of a step, ``[M, 2 * K * D]``."""
        self.layers[layer].view(-1, self.head_dim).index_copy_(0, step.cells_MH, keys_values.view(-1, self.head_dim))

    def attend(self, layer: int, blocks: Sequence[Block], queries: Tensor, *, scale: float) -> Tensor:
        """Return what each token sees, ``[M, K * G * D]``, for ``queries`` ``[M, K, G, D]`` of tokens whose keys are written already."""
        if blocks[0].source_BT is None:
            return self._attend_once(layer, blocks[0], queries, scale)
        seen = queries.new_zeros(len(queries), self.num_heads * self.head_dim)
        for block in blocks:
            assert block.source_BT is not None
            assert block.target_M is not None
            assert block.owner_M is not None
            num_rows, size = block.source_BT.shape
            queries_BKTGD = queries[block.source_BT].transpose(1, 2)
            flat = queries_BKTGD.reshape(num_rows, self.num_kv_heads, size * self.group, self.head_dim)
            out = self._product(layer, block, flat, scale)
            out = out.view(num_rows, self.num_kv_heads, size, self.group, self.head_dim).transpose(1, 2).reshape(num_rows * size, -1)
            seen.index_copy_(0, block.owner_M, out.index_select(0, block.target_M))
        return seen

    def _attend_once(self, layer: int, block: Block, queries: Tensor, scale: float) -> Tensor:
        """Attention of one query per row, repeated until there are enough queries to keep the bits."""
        num_rows = len(queries)
        repeated = queries[:, :, None].expand(-1, -1, block.num_queries, -1, -1)
        flat = repeated.reshape(num_rows, self.num_kv_heads, block.num_queries * self.group, self.head_dim)
        flat = flat.contiguous()  # for one head per group the repetition is still a stride of 0, which takes another path in the library
        return self._product(layer, block, flat, scale)[:, :, : self.group].reshape(num_rows, -1)

    def _product(self, layer: int, block: Block, queries: Tensor, scale: float) -> Tensor:
        """Return attention over the block's slots, ``[B, K, queries, D]``."""
        cells = self.layers[layer][:, :, : block.length]
        cells = cells[block.slots_B] if isinstance(block.slots_B, slice) else cells.index_select(0, block.slots_B)
        keys, values = cells[:, : self.num_kv_heads], cells[:, self.num_kv_heads :]
        return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=block.mask, scale=scale)


@torch.no_grad()
def same_bits_lengths(limit: int, head_dim: int, like: Tensor) -> Index:
    """Return ascending lengths of keys, up to ``limit``, for which attention gives the same bits.

    Up to two blocks they are found by trying every multiple of ``KEYS`` on random numbers against four blocks, for few and for many
    queries; beyond, they are whole blocks.
    """
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(1, 2, size, head_dim, generator=generator).to(like) for size in (64, 4 * BLOCK, 4 * BLOCK))

    def attention(length: int, num_queries: int, hidden: Tensor) -> Tensor:
        mask = torch.zeros_like(hidden[:num_queries, :length], dtype=like.dtype).masked_fill(hidden[:num_queries, :length], -torch.inf)
        return functional.scaled_dot_product_attention(
            queries[:, :, :num_queries], keys[:, :, :length], values[:, :, :length], attn_mask=mask[None, None]
        )

    lengths = list(range(BLOCK, limit + 1, BLOCK))
    for length in range(KEYS, min(limit, 2 * BLOCK), KEYS):
        positions = length - 1 - torch.arange(64, device=like.device) % length
        hidden = torch.arange(4 * BLOCK, device=like.device) > positions[:, None]
        if all(torch.equal(attention(length, few, hidden), attention(4 * BLOCK, few, hidden)) for few in (QUERIES, 64)):
            lengths.append(length)
    return np.unique(np.array(lengths))


def up(number: int, multiple: int) -> int:
    """Return the smallest multiple that is at least ``number``.

    >>> up(1, 16), up(16, 16), up(17, 16)
    (16, 16, 32)
    """
    return -(-number // multiple) * multiple
