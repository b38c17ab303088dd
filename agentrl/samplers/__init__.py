"""Samplers choose tasks; filters choose groups.

A sampler is asked with the number of a draw, so a resumed run asks the same question and gets the same
answer; a sampler that learns keeps its state in ``state_dict``. A filter sees groups with their rewards
before credit is assigned; the groups that a filter drops are counted.

Implementations inherit from these protocols: what a class does not define has the default given here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from agentrl.types import Json, ScoredGroup, Task


@dataclass(frozen=True, slots=True)
class Draw:
    """A request to play ``num_episodes`` episodes of ``task``.

    ``first_sample`` is the number of the first episode; numbers are unique for the task within a stage.
    ``prefix`` holds actions that are replayed first; they are part of the context and of the record, and
    nothing is learned from them. ``preamble`` is text that is put before the first observation.
    """

    task: Task
    num_episodes: int
    first_sample: int
    prefix: tuple[str, ...] = ()
    preamble: str = ""


class Sampler(Protocol):
    """Chooses which tasks to play, and with how many episodes."""

    __slots__ = ()

    @abstractmethod
    def draw(
        self, tasks: Sequence[Task], *, draw_index: int, num_groups: int, group_size: int, seed: int
    ) -> list[Draw]:
        """Return the draws to play next.

        ``draw_index`` counts the draws of a stage from 0. An update takes one draw, and one more for each
        refill that ``Rollouts`` allows, so the index is the update's number if there are no refills. The same
        index must give the same draws.
        """

    def observe(self, groups: Sequence[ScoredGroup]) -> None:
        """Learn from the groups that were played, including those that a filter will drop.

        Most samplers do not learn.
        """
        return

    def state_dict(self) -> Mapping[str, Json]:
        """Return what must survive a resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Restore what ``state_dict`` returned."""
        return


class Filter(Protocol):
    """Chooses the groups that an update trains on."""

    __slots__ = ()

    @property
    @abstractmethod
    def components(self) -> frozenset[str]:
        """Components of the ledger that the filter looks at."""

    @abstractmethod
    def __call__(self, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Return the groups to keep, in the order of ``groups``."""
