"""Samplers choose tasks; filters choose groups.

A sampler answers for an update number, so that a resumed run asks the same question and gets the same answer; one that learns keeps
its state in ``state_dict``. A filter sees paid groups before credit is assigned, and what it drops is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from agentrl.types import Json, ScoredGroup, Task


@dataclass(frozen=True, slots=True)
class Draw:
    """Play ``num_episodes`` episodes of ``task``; ``first_sample`` numbers them, unique for the task within the run.

    ``prefix``: actions that are replayed first. They are part of the context and of the record, and are not learned from. ``told``: text
    that the first observation begins with.
    """

    task: Task
    num_episodes: int
    first_sample: int
    prefix: tuple[str, ...] = ()
    told: str = ""


class Sampler(Protocol):
    """Chooses what to play."""

    def draw(
        self, tasks: Sequence[Task], *, update: int, num_groups: int, group_size: int, seed: int
    ) -> list[Draw]:
        """Return the draws of an update."""
        ...

    def observe(self, groups: Sequence[ScoredGroup]) -> None:
        """Learn from the groups that were played, those that a filter will drop included; most samplers do not."""
        ...

    def state_dict(self) -> Mapping[str, Json]:
        """Return what must survive a resume."""
        ...

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Take it back."""
        ...


class Filter(Protocol):
    """Chooses which groups are trained on."""

    @property
    def components(self) -> frozenset[str]:
        """Components of the ledger that it looks at."""
        ...

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Return the groups to keep, in order."""
        ...
