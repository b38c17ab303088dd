"""A bonus for entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from agentrl.losses import Loss, LossInputs, Terms
from agentrl.types import Need


@dataclass(frozen=True, slots=True)
class EntropyBonus(Loss):
    """``-coef * H`` per token, ``H`` in nats over the whole vocabulary (Williams & Peng 1991)."""

    coef: float = 0.001
    needs: ClassVar[frozenset[Need]] = frozenset({"entropies"})

    def __call__(self, x: LossInputs) -> Terms:
        """Return the negative bonus, as a loss; measured: ``entropy`` (nats per token)."""
        assert x.entropies_A is not None, "entropies were not measured"
        return -self.coef * x.entropies_A, {"entropy": x.entropies_A.detach()}
