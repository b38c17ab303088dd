"""Mixing weights that are learned: a component's weight depends on what earlier updates were paid.

``Lagrangian`` and ``Hypervolume`` multiply components by numbers that are the same for all episodes of an
update. They learn after the whole update has been paid, from what its episodes were paid on average before
the transform. Their state is kept in checkpoints. A credit rule that divides by the group's deviation
(``GRPO``, ``GDPO``) cancels a factor that all compared rewards have in common.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast

import numpy as np

from agentrl.errors import ConfigError
from agentrl.rewards import Transform
from agentrl.rewards.refine import component_of
from agentrl.types import Json, Ledger, Trajectory, floats

Point = Sequence[float]


@dataclass(slots=True)
class Lagrangian(Transform):
    """Constrained rewards: ``(N - sum_i w_i) * objective + sum_i w_i * component_i``.

    Moskovitz et al. 2024, with ``w_i = sigmoid(mu_i)``. ``constraints`` maps each of the N components to
    ``theta_i``, the return that an episode should have from it. After an update ``mu_i`` takes a step of
    gradient descent on ``w_i * (J_i - theta_i)``, where ``J_i`` is the mean return from the component: the
    weight of a component below its threshold rises, that of a component above its threshold falls. Components
    in ``equalities`` have ``w_i = tanh(mu_i)``, which becomes negative if their return is too high. All
    ``mu_i`` start at 0; published code starts them near 0, at random.

    Published code normalises the advantages of each component before it mixes them. Here rewards are mixed
    without normalisation, so components should have about the same scale.
    """

    objective: str
    constraints: Mapping[str, float]
    equalities: tuple[str, ...] = ()
    lr: float = 0.01
    momentum: float = 0.1
    multipliers: dict[str, float] = field(init=False)
    velocities: dict[str, float] = field(init=False)
    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        unknown = sorted(set(self.equalities) - set(self.constraints))
        if not self.constraints or self.objective in self.constraints or unknown:
            raise ConfigError(
                "a Lagrangian needs constraints on other components than its objective, and equalities among "
                f"the constraints; found the objective {self.objective!r}, constraints on "
                f"{', '.join(self.constraints) or 'nothing'}, and equalities {self.equalities}"
            )
        if not (self.lr > 0.0 and 0.0 <= self.momentum < 1.0):
            raise ConfigError(
                f"a Lagrangian needs lr > 0 and 0 <= momentum < 1; found {self.lr} and {self.momentum}; "
                "0.01 and 0.1 are usual"
            )
        self.multipliers = dict.fromkeys(self.constraints, 0.0)
        self.velocities = dict.fromkeys(self.constraints, 0.0)

    @property
    def weights(self) -> dict[str, float]:
        """The current weight of each component, including the objective."""
        weights = {name: self._weight(name)[0] for name in self.constraints}
        return {self.objective: len(weights) - sum(weights.values()), **weights}

    def __call__(self, trajectory: Trajectory, ledger: Ledger) -> Ledger:
        """Return the ledger with its components multiplied by ``weights``; others are unchanged.

        Raises:
            ConfigError: nothing pays the objective or a constrained component.
        """
        weighed = {
            name: floats(weight * component_of(ledger, name).astype(np.float64))
            for name, weight in self.weights.items()
        }
        return {**ledger, **weighed}

    def gauge(self, trajectory: Trajectory, ledger: Ledger) -> Mapping[str, float]:
        """Return the current weights, and the episode's return from each constrained component."""
        weights = {f"lagrangian/{name}": weight for name, weight in self.weights.items()}
        return weights | {f"lagrangian/{name}_return": _total(ledger, name) for name in self.constraints}

    def observe(self, means: Mapping[str, float]) -> None:
        """Move each multiplier ``mu_i`` by one step; an update without episodes changes nothing."""
        for name, threshold in self.constraints.items():
            if f"lagrangian/{name}_return" in means:
                slope = self._weight(name)[1] * (means[f"lagrangian/{name}_return"] - threshold)
                self.velocities[name] = self.momentum * self.velocities[name] + slope
                self.multipliers[name] -= self.lr * self.velocities[name]

    def state_dict(self) -> Mapping[str, Json]:
        """Return the multipliers ``mu_i`` and the velocities of their momentum."""
        return {"multipliers": dict(self.multipliers), "velocities": dict(self.velocities)}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Restore the multipliers ``mu_i`` and the velocities of their momentum."""
        self.multipliers = dict(cast("Mapping[str, float]", state["multipliers"]))
        self.velocities = dict(cast("Mapping[str, float]", state["velocities"]))

    def _weight(self, name: str) -> tuple[float, float]:
        """Return a component's weight and its derivative with respect to the multiplier."""
        if name in self.equalities:
            weight = math.tanh(self.multipliers[name])
            return weight, 1.0 - weight**2
        weight = 0.5 * (1.0 + math.tanh(self.multipliers[name] / 2.0))  # the sigmoid, without overflow
        return weight, weight * (1.0 - weight)


@dataclass(slots=True)
class Hypervolume(Transform):
    """Pays more while there is progress: all rewards times ``low + span * tanh(gain)``.

    Lu et al. 2025, "dynamic reward weighting". An update is a point: its mean return from each of
    ``components``. The first point is the reference. ``gain`` is by how much the last point enlarged the
    volume that all points dominate above the reference; it is 0 if the last point is no improvement.
    Published code takes points from validation; here they come from the episodes that are paid, with their
    noise.
    """

    components: tuple[str, ...]
    low: float = 0.5
    span: float = 1.5
    reference: list[float] = field(default_factory=list, init=False)
    front: list[list[float]] = field(default_factory=list, init=False)
    """Points above the reference that no other point dominates."""
    gain: float = field(default=0.0, init=False)
    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.components or len(set(self.components)) < len(self.components):
            raise ConfigError(
                "a hypervolume needs the names of different components; "
                f"found {', '.join(self.components) or 'none'}"
            )
        if not (self.low > 0.0 and self.span >= 0.0):
            raise ConfigError(
                f"a hypervolume needs low > 0 and span >= 0; found {self.low} and {self.span}; "
                "0.5 and 1.5 are usual"
            )

    @property
    def weight(self) -> float:
        """The current factor of all components, ``low + span * tanh(gain)``."""
        return self.low + self.span * math.tanh(self.gain)

    def __call__(self, trajectory: Trajectory, ledger: Ledger) -> Ledger:
        """Return the ledger with every component multiplied by the weight."""
        return {name: floats(self.weight * paid_N.astype(np.float64)) for name, paid_N in ledger.items()}

    def gauge(self, trajectory: Trajectory, ledger: Ledger) -> Mapping[str, float]:
        """Return the weight, and the episode's return from each of ``components``.

        Raises:
            ConfigError: nothing pays one of ``components``.
        """
        return {"hypervolume/weight": self.weight} | {
            f"hypervolume/{name}_return": _total(ledger, name) for name in self.components
        }

    def observe(self, means: Mapping[str, float]) -> None:
        """Add the point of the update and compute ``gain``; an update without episodes has no point."""
        names = [f"hypervolume/{name}_return" for name in self.components]
        if not all(name in means for name in names):
            return
        point = [means[name] for name in names]
        if not self.reference:
            self.reference = point
            return
        self.gain = max(
            hypervolume([*self.front, point], self.reference) - hypervolume(self.front, self.reference), 0.0
        )
        if self.gain > 0.0:
            self.front = [*(other for other in self.front if not all(map(operator.ge, point, other))), point]

    def state_dict(self) -> Mapping[str, Json]:
        """Return the reference, the front and the last gain."""
        return {
            "reference": list(self.reference),
            "front": [list(point) for point in self.front],
            "gain": self.gain,
        }

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Restore the reference, the front and the last gain."""
        self.reference = list(cast("list[float]", state["reference"]))
        self.front = [list(point) for point in cast("list[list[float]]", state["front"])]
        self.gain = float(cast("float", state["gain"]))


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Return the volume that ``points`` dominate above ``reference``; in each coordinate more is better.

    The volume is exact: it is added up from slices along the last axis.

    >>> round(hypervolume([(0.6, 0.4), (0.4, 0.7)], (0.2, 0.2)), 12)
    0.14
    """
    above = sorted(
        (point for point in points if all(map(operator.gt, point, reference))), key=lambda point: -point[-1]
    )
    if len(reference) == 1 or not above:
        return above[0][0] - reference[0] if above else 0.0
    ends = [*(point[-1] for point in above[1:]), reference[-1]]
    return sum(
        (point[-1] - end) * hypervolume([other[:-1] for other in above[: place + 1]], reference[:-1])
        for place, (point, end) in enumerate(zip(above, ends, strict=True))
        if point[-1] > end
    )


def _total(ledger: Ledger, name: str) -> float:
    return float(component_of(ledger, name).sum(dtype=np.float64))
