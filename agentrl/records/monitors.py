"""Monitors: functions of a run's metrics that detect a run going wrong while it can still be stopped.

A monitor is a pure function of a stage's records so far, so a resumed run gets its warnings, or is stopped,
at the same updates as an uninterrupted one. A warning is printed once, when it begins; the metric
``monitor/<name>`` is 1 for as long as it holds. A monitor with ``stop=True`` ends the run after the update
has been committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from agentrl.errors import ConfigError

Records = Sequence[Mapping[str, float]]
"""Metrics of one stage, one record per update, in order. Metrics that were not measured are missing."""


class Monitor(Protocol):
    """A check of a stage's records."""

    @property
    def name(self) -> str:
        """Name in the metric ``monitor/<name>``."""
        ...

    @property
    def stop(self) -> bool:
        """Whether a problem that this monitor finds ends the run."""
        ...

    def __call__(self, records: Records) -> str:
        """Return what is wrong as of the last record, with numbers, or an empty text if nothing is."""
        ...


@dataclass(frozen=True, slots=True)
class Limit:
    """Reports that ``metric`` was beyond ``value`` for ``updates`` updates in a row.

    ``side`` says whether ``below`` or ``above`` the value is reported.

    ``means`` explains what that means for the run.

    >>> monitor = Limit("gate", "gate/outcome", "below", 0.01, updates=2, means="nothing opens the gate")
    >>> monitor([{"gate/outcome": 0.0}] * 2)
    'gate/outcome was below 0.01 for 2 updates (now 0): nothing opens the gate'
    """

    name: str
    metric: str
    side: Literal["below", "above"]
    value: float
    updates: int = 5
    means: str = ""
    stop: bool = False

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise ConfigError(f"monitor {self.name!r} needs at least 1 update; found {self.updates}")

    def __call__(self, records: Records) -> str:
        """Check the last ``updates`` records that have the metric."""
        values = _last(records, self.metric, self.updates)
        beyond = [value < self.value if self.side == "below" else value > self.value for value in values]
        if len(values) < self.updates or not all(beyond):
            return ""
        why = f": {self.means}" if self.means else ""
        updates = f"for {self.updates} updates (now {values[-1]:.3g})"
        return f"{self.metric} was {self.side} {self.value:g} {updates}{why}"


@dataclass(frozen=True, slots=True)
class Fallen:
    """Reports that ``metric`` fell below ``share`` of its best value so far.

    The mean over the last ``updates`` updates is compared with the largest mean over ``updates`` consecutive
    updates before them.
    """

    name: str
    metric: str
    share: float = 0.5
    updates: int = 10
    least: float = 0.1
    """Minimum of the best mean; as long as it is lower, nothing is reported."""
    means: str = ""
    stop: bool = False

    def __call__(self, records: Records) -> str:
        """Compare the last window of updates with the best window before it."""
        values = [record[self.metric] for record in records if self.metric in record]
        if len(values) < 2 * self.updates:
            return ""
        means = np.convolve(values, np.ones(self.updates) / self.updates, mode="valid")
        best, now = float(means[: -self.updates].max()), float(means[-1])
        if best < self.least or now >= self.share * best:
            return ""
        why = f": {self.means}" if self.means else ""
        return f"{self.metric} fell from {best:.3g} to {now:.3g}, means over {self.updates} updates{why}"


@dataclass(frozen=True, slots=True)
class ProxyRises:
    """Reports that ``proxy``, the reward, rose while ``outcome`` fell: the policy games the reward.

    The means over the last ``updates`` updates are compared with those over the same number before; each mean
    must have moved by more than ``margin`` standard errors.
    """

    name: str = "proxy"
    proxy: str = "reward/return"
    outcome: str = "rollout/success"
    updates: int = 10
    margin: float = 2.0
    stop: bool = False

    def __call__(self, records: Records) -> str:
        """Compare the last two windows of both metrics."""
        moved = [
            _moved([record[name] for record in records if name in record], self.updates)
            for name in (self.proxy, self.outcome)
        ]
        if any(one is None for one in moved):
            return ""
        (paid, paid_error), (wanted, wanted_error) = (one for one in moved if one is not None)
        if paid <= self.margin * paid_error or wanted >= -self.margin * wanted_error:
            return ""
        return (
            f"{self.proxy} rose by {paid:.3g} while {self.outcome} fell by {-wanted:.3g}, "
            f"over {self.updates} updates: "
            "the reward pays for something other than success"
        )


def default_monitors() -> tuple[Monitor, ...]:
    """Return the monitors that a recipe has by default; none of them stops the run."""
    return (
        Limit(
            "invalid",
            "rollout/invalid",
            "above",
            0.9,
            means="the environment refuses nearly every action; look at what is said",
        ),
        Limit(
            "zero_variance",
            "credit/zero_variance",
            "above",
            0.95,
            means="groups are paid the same and teach nothing",
        ),
        Limit(
            "entropy",
            "rollout/entropy",
            "below",
            0.01,
            means="the policy says the same whatever it sees; it explores nothing",
        ),
        Limit(
            "repetition", "rollout/repetition", "above", 0.8, means="episodes say one thing again and again"
        ),
        Limit(
            "gate",
            "gate/outcome",
            "below",
            0.005,
            updates=10,
            means="nothing opens the gate, so no step reward is ever paid",
        ),
        Fallen("success", "rollout/success", means="what was learned is being lost"),
        ProxyRises(),
    )


def _last(records: Records, metric: str, count: int) -> list[float]:
    return [record[metric] for record in records if metric in record][-count:]


def _moved(values: Sequence[float], updates: int) -> tuple[float, float] | None:
    """Return how much the mean of the last ``updates`` values exceeds that of as many before, and its error.

    The error is the standard error of the difference. Without enough values, return ``None``.
    """
    if len(values) < 2 * updates:
        return None
    before, after = np.array(values[-2 * updates : -updates]), np.array(values[-updates:])
    error = float(np.sqrt((before.var(ddof=1) + after.var(ddof=1)) / updates)) if updates > 1 else 0.0
    return float(after.mean() - before.mean()), error
