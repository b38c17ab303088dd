"""Credit for groups that were given to the agent, such as demonstrations, beside groups that it played."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agentrl.credit import Credit
from agentrl.types import Credited, Need, ScoredGroup, floats, is_given


@dataclass(frozen=True, slots=True)
class Given(Credit):
    """Credits played groups by the rule ``credit``, and every token of given groups with ``given``.

    A group is given if all its trajectories are given: demonstrations that replace episodes (HPT), or
    successes that were sampled at another temperature (AEPO). ``credit`` never sees given groups. ``given``
    is the weight of imitation relative to reinforcement.
    """

    credit: Credit
    given: float = 1.0
    handles_given: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[Need]:
        """The measurements that ``credit`` needs."""
        return self.credit.needs

    @property
    def min_group(self) -> int:
        """Same as that of ``credit``."""
        return self.credit.min_group

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Return the credit of played and given groups, in the order of ``groups``."""
        own = [group for group in groups if not is_given(group)]
        credited = iter(self.credit(own) if own else [])
        return [
            tuple(Credited(floats(np.full(scored.trajectory.num_tokens, self.given))) for scored in group)
            if is_given(group)
            else next(credited)
            for group in groups
        ]
