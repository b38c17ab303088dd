"""What a loss is given, for tests: tokens of one sequence unless a test says otherwise."""

from collections.abc import Sequence

import numpy as np
import torch

from agentrl.losses import LossInputs


def tensor(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def inputs(
    logprobs, *, old=None, behaviour=None, advantages=None, sequence=None, entropies=None, reference=None
) -> LossInputs:
    logprobs = logprobs if isinstance(logprobs, torch.Tensor) else tensor(logprobs)
    old = logprobs.detach() if old is None else tensor(old)
    sequence = torch.tensor([0] * len(logprobs) if sequence is None else sequence)
    return LossInputs(
        logprobs,
        old,
        old if behaviour is None else tensor(behaviour),
        torch.ones_like(old) if advantages is None else tensor(advantages),
        sequence,
        sequence,
        entropies_A=None if entropies is None else tensor(entropies),
        ref_logprobs_A=None if reference is None else tensor(reference),
    )


def gradient(loss, x: LossInputs) -> np.ndarray:
    logprobs = x.logprobs_A.clone().requires_grad_()
    values, _ = loss(
        LossInputs(
            logprobs,
            x.old_logprobs_A,
            x.behaviour_logprobs_A,
            x.advantages_A,
            x.sequence_A,
            x.turn_A,
            ref_logprobs_A=x.ref_logprobs_A,
        )
    )
    return torch.autograd.grad(values.sum(), logprobs)[0].numpy()
