"""The optimiser of a stage, the comparison of stored tensors with a model's, and the number of threads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from agentrl.errors import ConfigError
from agentrl.learner.optimiser import Optimisation


def use_threads(threads: int) -> None:
    """Use ``threads`` threads on the CPU from now on; 0 leaves the choice to torch."""
    if threads:
        torch.set_num_threads(threads)


def make_adamw(
    trained: Mapping[str, Tensor], value_head: nn.Linear | None, optimisation: Optimisation
) -> torch.optim.AdamW:
    """Return a stage's AdamW: weight decay for matrices only, another learning rate for the value head."""
    lr, decay = optimisation.lr, optimisation.weight_decay
    groups = [
        {
            "params": [weight for weight in trained.values() if weight.ndim >= 2],
            "base_lr": lr,
            "weight_decay": decay,
        },
        {
            "params": [weight for weight in trained.values() if weight.ndim < 2],
            "base_lr": lr,
            "weight_decay": 0.0,
        },
    ]
    if value_head is not None:
        groups.append(
            {
                "params": list(value_head.parameters()),
                "base_lr": lr if optimisation.value_lr is None else optimisation.value_lr,
                "weight_decay": 0.0,
            }
        )
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=lr,
        betas=optimisation.betas,
        eps=optimisation.eps,
        fused=True,
    )


def check_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Raise ``ConfigError`` unless ``found`` and ``wanted`` have the same names and shapes of tensors."""
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    own = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    differing = sorted(name for name in shapes.keys() | own.keys() if shapes.get(name) != own.get(name))
    if differing:
        name = differing[0]
        raise ConfigError(
            f"the stored {what} is not this one's: {len(differing)} tensors differ, first {name}: "
            f"stored {shapes.get(name, 'none')}, wanted {own.get(name, 'none')}; use the recipe it was made "
            "with"
        )
