"""Attention over slots, each of which holds the keys and values of one context.

``SlotAttention`` owns the keys and values; ``slots`` keeps book of which slot holds which context.

Bit-exactness. The result of a token must not depend on what else is computed in the same pass, so that an
episode repeats bit for bit when it is played alone, among others, and after its slot was given to another
context and filled again. Measured with MKL in float32, on one and two threads, three rules guarantee this:

- A matrix product gives a row the same bits whatever the number of rows, if there are at least 10 rows. Rows
  are therefore padded to a multiple of 16.
- A batched matrix product does so from 4 rows on, whatever the size and strides of the batch. These rows are
  the query heads of neighbouring key-value heads, each with zeros in the part of the other heads (adding an
  exact zero changes nothing). Where heads cannot be combined, a single query is repeated.
- A sum over keys does so whatever their number, because a masked key adds an exact zero, as long as no
  product sums over more than 192 keys: beyond that, the library decides how to split the sum. The weighted
  sum of values is therefore taken over 128 keys at a time.

Attention is computed with batched products and a softmax, for one token as for many. The library's fused
attention is bit-exact only under further conditions, and takes twice as long for one token.

Axes: ``M`` tokens of a step, ``B`` rows of a block, ``T`` tokens of a row, ``K`` key-value heads, ``G`` query
heads per key-value head, ``D`` dimension of a head, ``L`` length of the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

IntArray = npt.NDArray[np.int32]
Index = npt.NDArray[np.int64]

ROWS = 16
"""The number of rows of a matrix product is padded to a multiple of this."""
QUERIES = 4
"""Minimum number of rows of each matrix in a batched matrix product."""
KEYS = 16
"""The number of keys that a query is multiplied with is padded to a multiple of this."""
TOKENS, SPAN = 8, 64
"""Rows share a block if their number of tokens rounds up to the same multiple of ``TOKENS`` and the position
of their last token rounds down to the same multiple of ``SPAN``."""
SUMMED = 128
"""Maximum number of keys that one product sums over."""
CHUNK = 128
"""Maximum number of tokens of a row. A longer feed is split into several rows, so that its early tokens are
not multiplied with keys that only its late tokens see."""
ROOM = 512
"""Initial capacity of a slot, in tokens."""
SCORES = 2**20
"""Approximate maximum number of attention scores of one product; so many fit into a processor's cache."""


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens to append to a slot that already holds ``start`` tokens."""

    slot: int
    start: int
    tokens: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Queries of one attention product: rows with a similar number of tokens and of visible keys."""

    slots_B: Tensor | slice
    source_BT: Tensor
    """Index of each query among the ``M`` tokens of the step; padding repeats a query of the row."""
    mask: Tensor
    """Added to the attention scores, ``[B, 1, T, 1, L]``: 0 if the query may see the key, else -infinity."""


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """The tokens of a step whose attention is computed, sorted into blocks."""

    blocks: tuple[Block, ...]
    target_M: Tensor
    """Index of each token's result in the concatenated results of all blocks, ``[sum of B * T]``."""


@dataclass(frozen=True, slots=True, eq=False)
class EngineStep:
    """Input of one forward pass: tokens, positions, slots, queries, and the rows whose logits are wanted."""

    tokens_M: Tensor
    positions_M: Tensor
    slots_M: Tensor
    last_R: Tensor
    """Index of the last token of each feed among the ``M`` tokens, padded to a multiple of ``ROWS``."""
    queries: Queries
    last_queries: Queries
    """The queries of the tokens ``last_R`` alone, for the last layer, whose other outputs are not used."""


class SlotAttention:
    """Keys and values of all layers, and the attention over them.

    Keys are ``[slots + 1, K / J, J * D, capacity]``, values ``[slots + 1, K / J, capacity, J * D]``, where
    ``J`` heads share a product. The products read both in this layout without a copy, so attention of one
    token takes only the time of reading them. The last slot receives the keys and values of padding.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_slots: int,
        max_context: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        like: Tensor,
    ) -> None:
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        # The fused kernel is used in half precision, where separate products would round the scores, and on
        # GPUs, where no bit-exactness is promised.
        self._fused = like.is_cuda or like.dtype.itemsize < 4
        self._joined = 1 if self._fused else _joined(self.group, num_kv_heads, head_dim)
        num_joint, width = num_kv_heads // self._joined, head_dim * self._joined
        self.limit = up(max_context, ROOM)
        self.padding_slot = num_slots
        # zeros, not empty: entries that were never written are masked, but 0 times NaN would be NaN
        self.keys = [like.new_zeros(num_slots + 1, num_joint, width, ROOM) for _ in range(num_layers)]
        self.values = [like.new_zeros(num_slots + 1, num_joint, ROOM, width) for _ in range(num_layers)]

    @property
    def capacity(self) -> int:
        """Current capacity of a slot in tokens; it grows when a longer context is fed."""
        return self.keys[0].shape[3]

    def _grow(self, length: int) -> None:
        """Enlarge the slots to hold ``length`` tokens: memory follows the longest context so far."""
        room = self.capacity
        while room < length:
            room = min(2 * room, self.limit)
        more = room - self.capacity
        self.keys = [functional.pad(keys, (0, more)) for keys in self.keys]
        self.values = [functional.pad(values, (0, 0, 0, more)) for values in self.values]

    @property
    def group(self) -> int:
        """Number of query heads per key-value head, ``G``."""
        return self.num_heads // self.num_kv_heads

    def plan(self, feeds: Sequence[Feed]) -> EngineStep:
        """Lay out the tokens of ``feeds`` for one forward pass."""
        lengths = np.array([len(feed.tokens) for feed in feeds])
        ends = lengths.cumsum()
        total, device = int(ends[-1]), self.keys[0].device
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
        queries = self._queries(slots_M, positions_M, lengths)
        decoding = total == len(feeds)
        return EngineStep(
            tokens_M=torch.from_numpy(tokens_M).to(device),
            positions_M=torch.from_numpy(positions_M).to(device),
            slots_M=torch.from_numpy(slots_M).to(device),
            last_R=torch.from_numpy(last_R).to(device),
            queries=queries,
            last_queries=queries
            if decoding
            else self._queries(slots_M[last_R], positions_M[last_R], np.ones_like(lengths)),
        )

    def _queries(self, slots_M: Index, positions_M: Index, lengths: Index) -> Queries:
        """Split feeds of ``lengths`` tokens into rows, and sort the rows into blocks.

        Only rows of one token read the keys and values in place, without a copy, because only their time is
        dominated by reading.
        """
        ends = lengths.cumsum()
        chunks = -(-lengths // CHUNK)
        nth = np.arange(chunks.sum()) - np.repeat(chunks.cumsum() - chunks, chunks)
        firsts = np.repeat(ends - lengths, chunks) + CHUNK * nth
        sizes = np.minimum(np.repeat(ends, chunks) - firsts, CHUNK)
        seen = positions_M[firsts + sizes - 1]
        kinds = (np.where(sizes == 1, 0, -(-sizes // TOKENS)) << 32) + seen // SPAN
        single = np.flatnonzero(sizes == 1)
        if in_place := len(single) > 0 and _is_dense(slots_M[firsts[single]], seen[single]):
            kinds[single] = 0
        order = np.lexsort((slots_M[firsts], kinds))
        blocks: list[Block] = []
        target_M, filled = np.zeros_like(slots_M), 0
        for rows in np.split(order, np.flatnonzero(np.diff(kinds[order])) + 1):
            num_tokens = (
                -(-QUERIES // (self.group * self._joined))
                if sizes[rows[0]] == 1
                else up(int(sizes[rows].max()), QUERIES)
            )
            length = up(int(seen[rows].max()) + 1, KEYS)
            most = max(1, SCORES // (self.num_heads * num_tokens * length))
            for part in (rows[first : first + most] for first in range(0, len(rows), most)):
                slots_B, places = self._select(slots_M[firsts[part]], in_place and sizes[part[0]] == 1)
                num_rows = slots_B.stop - slots_B.start if isinstance(slots_B, slice) else len(part)
                source_BT = np.full((num_rows, num_tokens), firsts[part[0]])
                offsets = np.arange(num_tokens)
                source_BT[places] = firsts[part, None] + np.minimum(offsets, sizes[part, None] - 1)
                real = offsets < sizes[part, None]
                target_M[source_BT[places][real]] = (filled + places[:, None] * num_tokens + offsets)[real]
                filled += source_BT.size
                blocks.append(self._block(slots_B, source_BT, positions_M, length))
        return Queries(tuple(blocks), torch.from_numpy(target_M).to(self.keys[0].device))

    def _block(self, slots_B: Tensor | slice, source_BT: Index, positions_M: Index, length: int) -> Block:
        hidden_BTL = np.arange(length) > positions_M[source_BT][:, :, None]
        mask_BTL = np.where(hidden_BTL, np.float32(-np.inf), np.float32(0.0))
        device = self.keys[0].device
        return Block(
            slots_B,
            torch.from_numpy(source_BT).to(device),
            torch.from_numpy(mask_BTL).to(self.keys[0])[:, None, :, None],
        )

    def _select(self, slots_B: Index, in_place: bool) -> tuple[Tensor | slice, Index]:
        """Return an index that selects ``slots_B`` from all slots, and each slot's place in the selection.

        ``slots_B`` is in ascending order. With ``in_place`` the index is a slice, which selects without a
        copy, from the first of the slots to the last.
        """
        if in_place:
            return slice(int(slots_B[0]), int(slots_B[-1]) + 1), slots_B - slots_B[0]
        return torch.from_numpy(slots_B).to(self.keys[0].device), np.arange(len(slots_B))

    def write(self, layer: int, step: EngineStep, keys: Tensor, values: Tensor) -> None:
        """Store the keys and values of a step's tokens in their slots, ``[M, K, D]`` each."""
        whole = (len(keys), self.num_kv_heads // self._joined, self._joined * self.head_dim)
        self.keys[layer].permute(0, 3, 1, 2)[step.slots_M, step.positions_M] = keys.reshape(whole)
        self.values[layer].transpose(1, 2)[step.slots_M, step.positions_M] = values.reshape(whole)

    def copy(self, slot: int, others: list[int], *, length: int) -> None:
        """Copy the keys and values of the first ``length`` tokens of ``slot`` to the slots ``others``."""
        for keys, values in zip(self.keys, self.values, strict=True):
            keys[others, :, :, :length] = keys[slot, :, :, :length]
            values[others, :, :length] = values[slot, :, :length]

    def attend(self, layer: int, queries: Queries, vectors: Tensor, *, scale: float) -> Tensor:
        """Return the attention output of each token, ``[M, K * G * D]``, for queries ``[M, K, G, D]``.

        The keys and values of these tokens must have been stored with ``write`` before.
        """
        whole = self._join(vectors * scale)
        seen = [self._product(layer, block, whole) for block in queries.blocks]
        return (seen[0] if len(seen) == 1 else torch.cat(seen)).index_select(0, queries.target_M)

    def _join(self, vectors: Tensor) -> Tensor:
        """Combine queries of ``J`` key-value heads: ``[M, K, G, D]`` becomes ``[M, K / J, J * G, J * D]``.

        Each query is zero outside the part of its own head.
        """
        joined, (num_tokens, num_kv, group, dim) = self._joined, vectors.shape
        if joined == 1:
            return vectors
        whole = vectors.new_zeros(num_tokens, num_kv // joined, joined, group, joined, dim)
        whole.diagonal(dim1=2, dim2=4).copy_(
            vectors.view(num_tokens, -1, joined, group, dim).permute(0, 1, 3, 4, 2)
        )
        return whole.view(num_tokens, num_kv // joined, joined * group, joined * dim)

    def _product(self, layer: int, block: Block, vectors: Tensor) -> Tensor:
        """Return the attention output of a block, ``[B * T, K * G * D]``, for joined queries."""
        num_rows, num_tokens = block.source_BT.shape
        (num_joint, group, width), length = vectors.shape[1:], block.mask.shape[-1]
        queries = (
            vectors[block.source_BT].transpose(1, 2).reshape(num_rows * num_joint, num_tokens * group, width)
        )
        keys, values = self.keys[layer][..., :length], self.values[layer][:, :, :length]
        if isinstance(block.slots_B, slice):
            keys, values = keys[block.slots_B].flatten(0, 1), values[block.slots_B].flatten(0, 1)
        else:
            keys, values = (
                keys.index_select(0, block.slots_B).flatten(0, 1),
                values.index_select(0, block.slots_B).flatten(0, 1),
            )
        if self._fused:
            mask = block.mask.expand(-1, -1, -1, group, -1).flatten(2, 3)
            whole = (num_rows, num_joint, -1, width)
            out = functional.scaled_dot_product_attention(
                queries.view(whole),
                keys.mT.contiguous().view(whole),
                values.view(whole),
                attn_mask=mask,
                scale=1.0,
            )
        else:
            scores = torch.bmm(queries, keys)
            scores.view(num_rows, num_joint, num_tokens, group, length).add_(block.mask)
            weights = torch.softmax(scores, dim=-1)
            out = torch.bmm(weights[:, :, :SUMMED], values[:, :SUMMED])
            for first in range(SUMMED, length, SUMMED):
                out.baddbmm_(weights[:, :, first : first + SUMMED], values[:, first : first + SUMMED])
        heads = (num_rows, num_joint, num_tokens, self._joined, self.group, self._joined, self.head_dim)
        own = out.view(heads).diagonal(
            dim1=3, dim2=5
        )  # for the queries of each head, only the part of that head
        return own.permute(0, 2, 1, 5, 3, 4).reshape(num_rows * num_tokens, -1)


def _joined(group: int, num_kv_heads: int, head_dim: int) -> int:
    """Return how many key-value heads share a product, ``J``.

    It is the largest number that divides the heads evenly, gives at most ``QUERIES`` queries, and has a total
    width of at most ``SUMMED``. A product of a single query is filled up to ``QUERIES`` rows anyway, and
    queries of other heads are more useful rows than repetitions.
    """
    return max(
        (
            joined
            for joined in range(1, QUERIES // group + 1)
            if num_kv_heads % joined == 0 and joined * head_dim <= SUMMED
        ),
        default=1,
    )


def _is_dense(slots_B: Index, seen_B: Index) -> bool:
    """Return whether reading all slots from the first to the last is cheaper than copying those in use.

    Reading in place covers every slot in between, each up to the length of the longest context in use.
    """
    in_use = np.unique(slots_B)
    return len(in_use) == len(slots_B) and bool(
        (in_use[-1] + 1 - in_use[0]) * seen_B.max() <= 2 * (seen_B + SPAN // 2).sum()
    )


def up(number: int, multiple: int) -> int:
    """Return the smallest multiple that is at least ``number``.

    >>> up(1, 16), up(16, 16), up(17, 16)
    (16, 16, 32)
    """
    return -(-number // multiple) * multiple
