"""Measurements of an update: they are summed on the device and read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class Meter:
    """Collects the measurements of one update on the device; they are read once, at its end."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    largest_gap: Tensor | None = None
    num_steps: int = 0

    def tokens(self, measured: Mapping[str, Tensor]) -> None:
        """Add measurements with one number per action token, ``[A]``; they are averaged over tokens."""
        for name, values_A in measured.items():
            self._add(name, values_A.detach().sum(), len(values_A))

    def steps(self, name: str, value: Tensor) -> None:
        """Add a measurement that is summed over the micro-batches of a step, and averaged over steps."""
        self._add(name, value.detach(), 0)

    def gap(self, difference_A: Tensor) -> None:
        """Keep the largest absolute difference of log-probabilities before the first optimiser step.

        ``difference_A`` is, for each action token, the learner's log-probability minus the sampler's; it is
        NaN, and ignored, if the sampler's is unknown.
        """
        if self.num_steps == 0 and len(difference_A):
            gap = difference_A.abs().nan_to_num(0.0).max()
            self.largest_gap = gap if self.largest_gap is None else torch.maximum(self.largest_gap, gap)

    def means(self) -> dict[str, float]:
        """Return the average of each measurement by name, and the largest gap as ``logprob_gap``."""
        found = {
            name: float(total) / (self.counts[name] or max(1, self.num_steps))
            for name, total in self.sums.items()
        }
        return found if self.largest_gap is None else found | {"logprob_gap": float(self.largest_gap)}

    def _add(self, name: str, value: Tensor, count: int) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts.get(name, 0) + count
