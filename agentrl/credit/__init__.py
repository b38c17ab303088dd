"""Credit rules: they compute one advantage per action token, and the critic's targets, from rewards.

A ``Credit`` rule sees all groups of an update, so it may use statistics of each group and of the whole batch;
a ``Modifier`` rescales finished advantages. A rule that works per turn copies a turn's number to the turn's
tokens with ``spread`` and nowhere else. Targets are returned only by rules that use a critic. Computation is
in float64 numpy: no torch, no sandbox, no model.

Implementations inherit from these protocols: what a class does not define has the default given here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

from agentrl.types import Credited, Need, ScoredGroup


class Credit(Protocol):
    """Assigns advantages to action tokens. ``needs`` names what the learner must measure first."""

    __slots__ = ()

    @property
    @abstractmethod
    def needs(self) -> frozenset[Need]:
        """Measurements that must be present on every ``Scored``."""

    @property
    @abstractmethod
    def min_group(self) -> int:
        """Minimum group size that the rule can work with: 2 if a group is its own baseline, else 1."""

    @abstractmethod
    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Return one ``Credited`` per trajectory, in the shape of ``groups``."""

    @property
    def handles_given(self) -> bool:
        """Whether given groups (``Trajectory.given``) are credited differently from played ones."""
        return False


class Modifier(Protocol):
    """Rescales finished advantages."""

    __slots__ = ()

    @property
    @abstractmethod
    def needs(self) -> frozenset[Need]:
        """Measurements that must be present on every ``Scored``."""

    @abstractmethod
    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return the modified credit, in the shape of ``credited``."""
