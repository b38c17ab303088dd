"""The critic's loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def value_loss(
    values_A: Tensor, old_values_A: Tensor, targets_A: Tensor, *, clip: float | None = None
) -> Tensor:
    """Return ``(V - target)**2 / 2`` per token for the critic's value ``V``; 0 if the target is NaN.

    With ``clip``, return the larger of this error and the same error of ``V`` limited to within ``clip`` of
    ``old_values_A`` (as in the PPO release, Dhariwal et al. 2017). To average, divide by the number of tokens
    *with* a target in the whole batch.
    """
    import torch

    has_A = ~torch.isnan(targets_A)
    targets_A = torch.where(has_A, targets_A, values_A.detach())
    error_A = (values_A - targets_A).square()
    if clip is not None:
        held_A = old_values_A + (values_A - old_values_A).clamp(-clip, clip)
        error_A = torch.maximum(error_A, (held_A - targets_A).square())
    return torch.where(has_A, 0.5 * error_A, torch.zeros_like(error_A))


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """The critic's loss, ``coef * value_loss``.

    ``clip`` (usually 0.2 or 0.5) bounds how far a value moves within an update.
    """

    coef: float = 0.5
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"the value clip must be positive; found {self.clip}; use None for no clip")

    def __call__(self, values_A: Tensor, old_values_A: Tensor, targets_A: Tensor) -> Tensor:
        """Return the critic's loss of each action token, times ``coef``."""
        return self.coef * value_loss(values_A, old_values_A, targets_A, clip=self.clip)
