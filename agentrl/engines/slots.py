"""Bookkeeping of which slot holds which context.

A *slot* holds the keys and values of one context. ``Slots`` finds the slot of a given context by its content:
policies are stateless, so an episode is recognised only by its tokens.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np
import numpy.typing as npt


def digest(tokens: npt.NDArray[np.int32]) -> bytes:
    """Return a content hash of a context's tokens."""
    return hashlib.blake2b(np.ascontiguousarray(tokens, np.int32).tobytes(), digest_size=16).digest()


class Slots:
    """Bookkeeping of ``num_slots`` slots, each in use, idle with a known content, or empty.

    If no slot is empty, the one that has been idle longest is reused.
    """

    def __init__(self, num_slots: int) -> None:
        self._empty = list(range(num_slots))[::-1]
        self._idle: OrderedDict[int, bytes] = OrderedDict()  # slot -> content, longest idle first
        self._holding: dict[bytes, list[int]] = {}

    @property
    def num_idle(self) -> int:
        """Number of slots that hold a context and are not in use."""
        return len(self._idle)

    def take(self, content: bytes) -> tuple[int, bool] | None:
        """Take a slot, if possible one that holds ``content``.

        Returns the slot and whether it holds ``content``, or ``None`` if all slots are in use.
        """
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
        """Release a slot that now holds ``content``."""
        self._idle[slot] = content
        self._holding.setdefault(content, []).append(slot)

    def drop(self, slot: int) -> None:
        """Release a slot whose content is of no further use."""
        self._empty.append(slot)

    def clear(self) -> None:
        """Forget the content of all idle slots."""
        self._empty += self._idle
        self._idle.clear()
        self._holding.clear()

    def _forget(self, slot: int) -> None:
        content = self._idle.pop(slot)
        holding = self._holding[content]
        holding.remove(slot)
        if not holding:
            del self._holding[content]
