"""Monitors: what a run going wrong looks like in its metrics, said while it can still be stopped.

A monitor is a pure function of a stage's records so far, so a resumed run is warned, or stopped, at the same update as one that was never
killed. A warning is printed once when it begins and counted in ``monitor/<name>`` for as long as it holds; one that is told to ``stop``
ends the run after the update was committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from agentrl.errors import ConfigError

Records = Sequence[Mapping[str, float]]
"""Metrics of one stage, an update each, in order; an update that did not measure something lacks it."""


class Monitor(Protocol):
    """Looks at a stage's records, the last one included."""

    @property
    def name(self) -> str:
        """What the metric ``monitor/<name>`` is called by."""
        ...

    @property
    def stop(self) -> bool:
        """Whether the run is to end when it sounds."""
        ...

    def __call__(self, records: Records) -> str:
        """Return what is wrong, with numbers; empty where nothing is."""
        ...


@dataclass(frozen=True, slots=True)
class Limit:
    """Sounds where ``metric`` was ``side`` its ``value`` for ``updates`` updates in a row.

    >>> Limit("gate", "gate/outcome", "below", 0.01, updates=2, means="nothing opens the gate")([{"gate/outcome": 0.0}] * 2)
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
        """Look at the last records that measured the metric."""
        values = _last(records, self.metric, self.updates)
        beyond = [value < self.value if self.side == "below" else value > self.value for value in values]
        if len(values) < self.updates or not all(beyond):
            return ""
        why = f": {self.means}" if self.means else ""
        return f"{self.metric} was {self.side} {self.value:g} for {self.updates} updates (now {values[-1]:.3g}){why}"


@dataclass(frozen=True, slots=True)
class Fallen:
    """Sounds where the mean of ``metric`` over the last ``updates`` is less than ``share`` of its best mean over so many before."""

    name: str
    metric: str
    share: float = 0.5
    updates: int = 10
    least: float = 0.1
    """A best mean that never reached this is no height to fall from."""
    means: str = ""
    stop: bool = False

    def __call__(self, records: Records) -> str:
        """Compare windows."""
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
    """Sounds where what is paid rises while what is wanted falls: the reward is being gamed.

    Both are compared between the last ``updates`` and the ones before; ``margin`` is how many standard errors each must have moved.
    """

    name: str = "proxy"
    proxy: str = "reward/return"
    outcome: str = "rollout/success"
    updates: int = 10
    margin: float = 2.0
    stop: bool = False

    def __call__(self, records: Records) -> str:
        """Compare windows of both."""
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
            f"{self.proxy} rose by {paid:.3g} while {self.outcome} fell by {-wanted:.3g}, over {self.updates} updates: "
            "the reward pays for something else than success"
        )


def usual() -> tuple[Monitor, ...]:
    """Return the monitors that every run has unless its recipe says otherwise; none of them stops it."""
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
    """Return by how much the mean of the last window differs from the one before, and the standard error of that."""
    if len(values) < 2 * updates:
        return None
    before, after = np.array(values[-2 * updates : -updates]), np.array(values[-updates:])
    error = float(np.sqrt((before.var(ddof=1) + after.var(ddof=1)) / updates)) if updates > 1 else 0.0
    return float(after.mean() - before.mean()), error
