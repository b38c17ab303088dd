"""Credit assigns: from paid groups to one advantage per action token, and targets for the critic where there is one.

A ``Credit`` rule sees all groups of an update (group statistics and batch statistics are its business); a ``Modifier`` rescales finished
advantages. Rules that work per turn spread their number over the turn's tokens with ``spread`` and nowhere else. Computation is
in float64 numpy: no torch, no sandbox, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from agentrl.types import Credited, Need, ScoredGroup


class Credit(Protocol):
    """Assigns advantages. ``needs`` names what the learner must measure first."""

    @property
    def needs(self) -> frozenset[Need]:
        """Measurements that must be present on every ``Scored``."""
        ...

    @property
    def min_group(self) -> int:
        """Smallest group the rule can work with: 2 where a group is its own baseline, else 1."""
        ...

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Return one ``Credited`` per trajectory, in the shape of ``groups``."""
        ...


class Modifier(Protocol):
    """Rescales finished advantages."""

    @property
    def needs(self) -> frozenset[Need]:
        """Measurements that must be present on every ``Scored``."""
        ...

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return the modified credit, in the same shape."""
        ...
