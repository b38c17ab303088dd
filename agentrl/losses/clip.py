"""The clipped surrogate of PPO, with its asymmetric and its dual variant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from agentrl.errors import ConfigError
from agentrl.losses import MAX_LOG_RATIO, Loss, LossInputs, Terms
from agentrl.types import Need


@dataclass(frozen=True, slots=True)
class Clip(Loss):
    """PPO's loss ``max(-rho A, -clip(rho, 1 - low, 1 + high) A)`` with ``rho = pi / pi_old``.

    Schulman et al. 2017, eq. 7; ``A`` is the advantage of the token. ``high > low`` is DAPO's clip-higher (Yu
    et al. 2025). With ``dual``, the loss of a negative advantage is at most ``-dual * A`` (Ye et al. 2020).
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        if not (0.0 <= self.low <= 1.0 and self.high >= 0.0):
            raise ConfigError(
                "the clip range needs 0 <= low <= 1 and high >= 0; "
                f"found low={self.low}, high={self.high}; 0.2 is usual for both"
            )
        if self.dual is not None and self.dual <= 1.0:
            raise ConfigError(
                "the dual clip must be above 1, or it would cut the loss of unchanged policies; "
                f"found {self.dual}; 3 is usual"
            )

    def __call__(self, x: LossInputs) -> Terms:
        """Return the surrogate loss.

        Measured: ``ratio`` (``rho``), ``clip_fraction`` (share of tokens without gradient) and ``approx_kl``
        (from the old to the new policy, nats).
        """
        import torch

        log_ratio_A = (x.logprobs_A - x.old_logprobs_A).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        ratio_A = log_ratio_A.exp()
        free_A = -ratio_A * x.advantages_A
        bound_A = -ratio_A.clamp(1.0 - self.low, 1.0 + self.high) * x.advantages_A
        loss_A = torch.maximum(free_A, bound_A)
        clipped_A = bound_A > free_A
        if self.dual is not None:
            ceiling_A = -self.dual * x.advantages_A
            cut_A = (x.advantages_A < 0) & (loss_A > ceiling_A)
            loss_A = torch.where(cut_A, ceiling_A, loss_A)
            clipped_A = clipped_A | cut_A
        with torch.no_grad():
            measured = {
                "ratio": ratio_A.detach(),
                "clip_fraction": clipped_A.to(ratio_A.dtype),
                "approx_kl": ratio_A - 1.0 - log_ratio_A,
            }
        return loss_A, measured
