"""Settings of the learner: where it computes, AdamW's hyperparameters, and learning-rate schedules.

A schedule is a function from progress (0 at a stage's first update, 1 after its last) to a factor of the
learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from agentrl.errors import ConfigError

Schedule = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Constant:
    """The same learning rate throughout."""

    def __call__(self, progress: float) -> float:
        """Return 1, the factor of the learning rate at any ``progress``."""
        return 1.0


@dataclass(frozen=True, slots=True)
class Linear:
    """A learning rate that falls on a straight line from 1 to ``floor`` times ``lr``.

    >>> Linear(floor=0.1)(0.5)
    0.55
    """

    floor: float = 0.0

    def __call__(self, progress: float) -> float:
        """Return the factor of the learning rate at ``progress``, which is between 0 and 1."""
        return 1.0 - (1.0 - self.floor) * progress


@dataclass(frozen=True, slots=True)
class Cosine:
    """A learning rate that falls on half a cosine from 1 to ``floor`` times ``lr``.

    Source: Loshchilov & Hutter 2017, eq. 5.
    """

    floor: float = 0.0

    def __call__(self, progress: float) -> float:
        """Return the factor of the learning rate at ``progress``, which is between 0 and 1."""
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """Where and how the learner computes."""

    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of matrix products. Weights, optimiser, log-probabilities and losses stay in float32."""
    token_budget: int = 1024
    """Maximum number of tokens in a micro-batch. A larger budget needs more memory, and has less overhead
    because there are fewer micro-batches: it is faster on a GPU, but hardly on a CPU.
    """
    threads: int = 0
    """Number of CPU threads; with 0 torch chooses it. A run repeats exactly only with the same number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimisation:
    """AdamW (Loshchilov & Hutter 2019) and its schedule, for one stage.

    Time is counted in updates (calls of ``Learner.update``), and the schedule advances with each optimiser
    step of an update.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.0
    """AdamW's weight decay; it applies to matrices only, never to norms, biases or the value head."""
    grad_clip: float = 1.0
    """Norm of the gradient, over all trained weights, above which it is scaled down; ``inf``: never."""
    warmup_updates: int = 0
    """Number of updates in which the learning rate rises to ``lr``; the schedule begins after them."""
    schedule: Schedule = field(default_factory=Constant)
    value_lr: float | None = None
    """Learning rate of the value head; ``None`` uses ``lr``."""
    freeze_policy_updates: int = 0
    """Number of updates at the start of a stage that train the value head alone."""

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "grad_clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"Optimisation.{name} must be positive; found {getattr(self, name)}")
        for name in ("warmup_updates", "freeze_policy_updates", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"Optimisation.{name} must not be negative; found {getattr(self, name)}")

    def factor(self, position: float, total_updates: int, step: float = 1.0) -> float:
        """Return the factor of the learning rate for an optimiser step.

        ``position`` is the number of updates made so far, including the finished fraction of the current one;
        ``step`` is the fraction of an update that this step makes up.

        >>> rates = Optimisation(warmup_updates=2, schedule=Linear())
        >>> [rates.factor(update, 6) for update in range(6)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
        """
        if position < self.warmup_updates:
            return min(1.0, (position + step) / self.warmup_updates)
        return self.schedule(
            min(1.0, (position - self.warmup_updates) / max(1, total_updates - self.warmup_updates))
        )
