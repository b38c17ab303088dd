"""The loss of an update, one micro-batch at a time.

Legend: ``N`` tokens of a micro-batch, ``A`` its action tokens, ``S`` tokens that are not part of an action;
``H`` hidden size.

Every denominator is taken over the whole minibatch before it is divided into micro-batches. So the sum of
their gradients is the gradient of the minibatch, whatever the token budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from agentrl.learner.batch import Batch, Micro, offsets
from agentrl.learner.forward import TrainingForward
from agentrl.learner.meter import Meter
from agentrl.losses import LossInputs
from agentrl.losses.objective import Objective
from agentrl.losses.tis import weight_metrics


@dataclass(frozen=True, slots=True)
class _Totals:
    """Numbers by which the sums over a minibatch are divided.

    ``targets`` is its number of tokens with a value target, ``observed`` that of tokens outside actions.
    """

    targets: int
    observed: int


@dataclass(slots=True)
class UpdateLoss:
    """The loss of one update; ``meter`` collects what is measured on the way."""

    forward: TrainingForward
    value_head: nn.Linear | None
    objective: Objective
    temperature: float
    frozen: bool
    """Whether the value head alone is trained."""
    meter: Meter

    def backward(self, part: Batch, token_budget: int) -> Tensor:
        """Accumulate a minibatch's gradient over its micro-batches; return its loss, without gradient."""
        device = self.forward.device
        weights = [aggregate(part.turn_lengths) for aggregate in self.objective.aggregations]
        lengths = [sum(turns) for turns in part.turn_lengths]
        starts = offsets(lengths)
        rows = [row for sequence in part.sequences for row in sequence.rows]
        totals = _Totals(
            targets=sum(int((~np.isnan(row.targets_A)).sum()) for row in rows),
            observed=sum(len(row.tokens_L) - 1 - len(row.positions_A) for row in rows),
        )
        loss = torch.zeros((), device=device)
        for pack in part.packs(token_budget, whole_groups=self.objective.whole_groups):
            micro = Micro.lay([part.sequences[index] for index in pack], device)
            chosen = [
                np.concatenate([weights_A[starts[i] : starts[i] + lengths[i]] for i in pack])
                for weights_A in weights
            ]
            on_device = [torch.from_numpy(weights_A).to(device, torch.float32) for weights_A in chosen]
            piece = self._loss(micro, on_device, totals)
            if piece is not None:
                piece.backward()  # type: ignore[no-untyped-call]
                loss += piece.detach()
        return loss

    def _loss(self, micro: Micro, weights: Sequence[Tensor], totals: _Totals) -> Tensor | None:
        """Return the micro-batch's share of the minibatch's loss; ``None`` if it has nothing to train on."""
        with torch.set_grad_enabled(not self.frozen):
            hidden_NH = self.forward.hidden(micro.rows)
        hidden_AH = hidden_NH[micro.predicts_A]
        pieces = []
        if not self.frozen and len(micro.tokens_A):
            wants = "entropies" in self.objective.needs
            logprobs_A, entropies_A = self.forward.logprobs(
                hidden_AH, micro.tokens_A, temperature=self.temperature, entropies=wants
            )
            pieces.append(self._policy_loss(micro, weights, logprobs_A, entropies_A))
        if self.objective.value is not None and self.value_head is not None and totals.targets:
            values_A = self.value_head(hidden_AH.float())[:, 0]
            old_A = values_A.detach() if micro.measured.values is None else micro.measured.values
            value_loss = self.objective.value(values_A, old_A, micro.targets_A).sum() / totals.targets
            self.meter.steps("value_loss", value_loss)
            pieces.append(value_loss)
        if not self.frozen and self.objective.observation_weight and totals.observed:
            logprobs_S, _ = self.forward.logprobs(
                hidden_NH[micro.observes_S], micro.observed_S, temperature=self.temperature, sampled=False
            )
            observed = -logprobs_S.sum() / totals.observed
            self.meter.steps("observation_nll", observed)
            pieces.append(self.objective.observation_weight * observed)
        return torch.stack(pieces).sum() if pieces else None

    def _policy_loss(
        self, micro: Micro, weights: Sequence[Tensor], logprobs_A: Tensor, entropies_A: Tensor | None
    ) -> Tensor:
        """Return the sum over action tokens of weight times loss, with the regularisers of the objective.

        ``weights`` holds one array ``[A]`` for each of ``Objective.aggregations``, in the same order.
        """
        self.meter.gap((logprobs_A.detach() - micro.behaviour_A).masked_fill(micro.given_A, 0.0))
        inputs = LossInputs(
            logprobs_A=logprobs_A,
            old_logprobs_A=micro.behaviour_A
            if micro.measured.old_logprobs is None
            else micro.measured.old_logprobs,
            behaviour_logprobs_A=micro.behaviour_A,
            advantages_A=micro.advantages_A,
            sequence_A=micro.sequence_A,
            turn_A=micro.turn_A,
            entropies_A=entropies_A,
            ref_logprobs_A=micro.measured.ref_logprobs,
            group_A=micro.group_A,
            given_A=micro.given_A,
        )
        loss_A, measured = self.objective.loss(inputs)
        self.meter.tokens(measured)
        if self.objective.off_policy is not None:
            off_policy_A = (
                self.objective.off_policy(inputs.old_logprobs_A, micro.behaviour_A, micro.sequence_A)
                .detach()
                .masked_fill(micro.given_A, 1.0)
            )
            self.meter.tokens(weight_metrics(self.objective.off_policy, off_policy_A))
            loss_A = off_policy_A * loss_A
        loss = (weights[0] * loss_A).sum()
        for regulariser, weights_A in zip(self.objective.regularisers, weights[1:], strict=True):
            extra_A, measured = regulariser(inputs)
            self.meter.tokens(measured)
            loss = loss + (weights_A * extra_A).sum()
        return loss
