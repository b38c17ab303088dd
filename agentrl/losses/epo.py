"""Entropy within a band: entropy-regularised policy optimisation for many turns (EPO, Xu et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import ClassVar, cast

from agentrl.errors import ConfigError
from agentrl.losses import Aggregation, Loss, LossInputs, Terms
from agentrl.losses.aggregation import nested_mean
from agentrl.types import Json, Need


@dataclass(slots=True)
class EPO(Loss):
    """``-coef * (L_H - phase_k * L_smooth)``: an entropy bonus minus a penalty outside a band.

    ``L_H`` and ``L_smooth`` are nested means (over a turn's tokens, then turns, then trajectories) of the
    entropy ``H_t`` and of ``alpha * ([low * mean(W) - H_t]_+ + [H_t - high * mean(W)]_+)``, with ``W`` the
    mean entropies of the stage's updates so far; in the first update there is no band. The phase in update
    ``k``, ``1 + exp(-gamma * k / floor(K / 2))`` falls from 2 towards 1 over the ``K = updates`` updates of
    the stage.

    With ``release`` the loss has the form of the published code, where the penalty outside the band,
    including its edges, is the constant ``alpha`` (so it has no gradient) and the phase is piecewise. In both
    forms the history has one entropy for each whole update.
    """

    updates: int
    coef: float = 0.001
    low: float = 0.5
    high: float = 1.5
    alpha: float = 0.1
    gamma: float = 3.0
    release: bool = False
    history: list[float] = field(default_factory=list)
    aggregate: ClassVar[Aggregation] = staticmethod(nested_mean)
    needs: ClassVar[frozenset[Need]] = frozenset({"entropies"})
    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.updates < 1 or not 0.0 <= self.low <= self.high:
            raise ConfigError(
                "EPO needs the stage's number of updates and a band 0 <= low <= high; "
                f"found {self.updates} updates and {self.low} to {self.high}"
            )

    def phase(self, update: int) -> float:
        """Return the weight of the penalty ``L_smooth`` in the update with the number ``update``.

        >>> [round(EPO(150).phase(k), 6) for k in (0, 30, 150)]
        [2.0, 1.301194, 1.002479]
        """
        if not self.release:
            return 1.0 + math.exp(-self.gamma * update / max(self.updates // 2, 1))
        half = max(self.updates // 2, 1)
        if update <= half:
            return 1.0 - 0.2 * (1.0 - math.exp(-2.0 * update / half))
        return 0.8 * math.exp(-3.0 * (update - half) / half)

    def __call__(self, x: LossInputs) -> Terms:
        """Return the loss; measured: ``entropy`` and ``outside_band`` (share of tokens outside the band)."""
        import torch

        assert x.entropies_A is not None, "entropies were not measured"
        entropies_A = x.entropies_A
        if not self.history:
            return -self.coef * entropies_A, {
                "entropy": entropies_A.detach(),
                "outside_band": torch.zeros_like(entropies_A),
            }
        mean = fmean(self.history)
        beyond_A = (self.low * mean - entropies_A).clamp(min=0.0) + (entropies_A - self.high * mean).clamp(
            min=0.0
        )
        on_edge_A = (entropies_A == self.low * mean) | (entropies_A == self.high * mean)
        outside_A = ((beyond_A > 0) | (on_edge_A & self.release)).to(entropies_A.dtype)
        penalty_A = self.alpha * (outside_A if self.release else beyond_A)
        term_A = -self.coef * (entropies_A - self.phase(len(self.history)) * penalty_A)
        return term_A, {"entropy": entropies_A.detach(), "outside_band": outside_A}

    def observe(self, means: Mapping[str, float]) -> None:
        """Add the mean entropy of the update to the history."""
        if "entropy" in means:
            self.history.append(means["entropy"])

    def state_dict(self) -> Mapping[str, Json]:
        """Return the history of mean entropies."""
        return {"history": list(self.history)}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Restore the history of mean entropies."""
        self.history = list(cast("list[float]", state["history"]))
