"""Gated accumulation: a reward counts only if every reward of higher priority is good enough.

G-RA (Sun et al. 2025, "Stabilizing long-term multi-turn reinforcement learning with gated rewards"; formula
from descriptions that agree, details reconstructed): with levels ordered from the most important down,

    R = sum_i R_i * prod_{j above i} 1[R_j >= threshold_j]

where ``R_j`` is what the whole episode is paid at level ``j``. A reward that misses its own threshold is
still counted; only the rewards below it are not. Without gates (a plain sum) the total can rise while the
outcome falls: agents learn to collect small rewards.

Hierarchical rewards (ChatShopBuddy's HRM) are the same rule with a threshold at each level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from agentrl.errors import ConfigError
from agentrl.rewards import Transform
from agentrl.types import End, Ledger, Trajectory, floats


@dataclass(frozen=True, slots=True)
class Level:
    """Components that are gated together, and the total that opens the levels below."""

    components: tuple[str, ...]
    threshold: float = -math.inf
    """Minimum total that opens the levels below. By default the gate is always open."""


@dataclass(frozen=True, slots=True)
class Gates(Transform):
    """Sets every component below a level that missed its threshold to zero.

    ``levels`` start with the most important one. If ``inclusive``, a total equal to the threshold passes;
    with outcomes in {-1, 0, 1} and a threshold of 0, this decides whether a failed attempt earns its step
    rewards. An episode that a limit truncated has no outcome, so its first gate is shut, unless
    ``truncated_passes`` is set. Components that no level names are unchanged.

    >>> gates = Gates((Level(("outcome",), 0.0), Level(("tool",), 0.3), Level(("format",))))
    >>> gates.components == {"outcome", "tool", "format"}
    True
    """

    levels: tuple[Level, ...]
    inclusive: bool = True
    truncated_passes: bool = False

    def __post_init__(self) -> None:
        names = [name for level in self.levels for name in level.components]
        if not names or len(set(names)) < len(names):
            raise ConfigError(
                "gates need levels that name each component once; "
                f"found {[level.components for level in self.levels]}"
            )

    @property
    def components(self) -> frozenset[str]:
        """Components of the ledger that the levels name."""
        return frozenset(name for level in self.levels for name in level.components)

    def __call__(self, trajectory: Trajectory, ledger: Ledger) -> Ledger:
        """Return the ledger with zeros below each shut gate.

        Raises:
            ConfigError: the ledger lacks a component that a level names.
        """
        gated, open_ = dict(ledger), True
        for level, passed in zip(self.levels, self._passed(trajectory, ledger), strict=True):
            if not open_:
                gated |= {name: floats(np.zeros(len(trajectory.turns))) for name in level.components}
            open_ = open_ and passed
        return gated

    def gauge(self, trajectory: Trajectory, ledger: Ledger) -> Mapping[str, float]:
        """Return for each gate 1 if it was open in this episode, else 0, as ``gate/<first component>``.

        The mean over episodes is the share of episodes in which the gate was open.
        """
        found, open_ = {}, True
        for level, passed in list(zip(self.levels, self._passed(trajectory, ledger), strict=True))[:-1]:
            open_ = open_ and passed
            found[f"gate/{level.components[0]}"] = float(open_)
        return found

    def _passed(self, trajectory: Trajectory, ledger: Ledger) -> list[bool]:
        """Return whether each level reached its own threshold."""
        if unknown := sorted(self.components - set(ledger)):
            raise ConfigError(
                f"gates name {', '.join(unknown)}, which nothing pays; "
                f"the ledger has {', '.join(sorted(ledger))}"
            )
        totals = [
            sum(float(ledger[name].sum(dtype=np.float64)) for name in level.components)
            for level in self.levels
        ]
        passed = [
            total >= level.threshold
            if self.inclusive
            else total > level.threshold or level.threshold == -math.inf
            for total, level in zip(totals, self.levels, strict=True)
        ]
        if (
            trajectory.end is End.TRUNCATED
            and not self.truncated_passes
            and self.levels[0].threshold > -math.inf
        ):
            passed[0] = False
        return passed


def hierarchy(*levels: tuple[str, float]) -> Gates:
    """Return gates of one component each, from pairs of component and threshold: HRM's form.

    For example ``hierarchy(("correct", 1.0), ("depth", 0.5), ("short", 0.0))``. The paper's own thresholds
    were not available.
    """
    return Gates(tuple(Level((name,), threshold) for name, threshold in levels))
