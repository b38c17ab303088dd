"""The learner of this package: a model in this process, its optimiser, and the update.

Legend: ``N`` tokens of a micro-batch, ``A`` its action tokens, sequence after sequence, in order of time;
``H`` hidden size.

The token at position ``t`` is predicted by the hidden state at ``t - 1``: that shift happens in
``batch.Micro.lay`` and nowhere else. Training computes what sampling computed: dropout is off, and
log-probabilities are those at the sampling temperature.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from agentrl.errors import ConfigError, Diverged
from agentrl.learner.batch import Batch, Micro, make_batch, offsets
from agentrl.learner.contract import Learner, Weights
from agentrl.learner.forward import TrainingForward
from agentrl.learner.loss import UpdateLoss
from agentrl.learner.meter import Meter
from agentrl.learner.model import build_model, no_bars
from agentrl.learner.optimiser import Compute, Optimisation
from agentrl.learner.spec import ModelSpec
from agentrl.learner.torch_parts import check_same, make_adamw
from agentrl.losses.objective import Objective
from agentrl.render import Renderer
from agentrl.types import Json, Need, Scored, ScoredGroup, floats, seed_of


class TorchLearner:
    """Holds the weights, the value head and the optimiser. One call of ``update`` is one update.

    ``allowed_V`` marks the ids of the vocabulary (size ``V``) that an action may consist of
    (``Renderer.allowed``). The sampler gives all other ids probability 0, and so does the learner when it
    computes log-probabilities of actions.

    Raises:
        ConfigError: the model's logits are not its output layer applied to its last hidden states.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        compute: Compute | None = None,
        *,
        value_head: bool = False,
        allowed_V: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self.model = model
        self.compute = compute or Compute()
        self.num_updates = 0
        """Number of updates made since the last call of ``start``."""
        self._forward = TrainingForward(
            model, bfloat16=self.compute.precision == "bfloat16", allowed_V=allowed_V
        )
        self._device = model.device
        self._value_head: nn.Linear | None = None
        if value_head:
            head = nn.Linear(model.config.get_text_config().hidden_size, 1, dtype=torch.float32)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            self._value_head = head.to(self._device)
        self._trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._reference: dict[str, Tensor] = {}
        self._optimisation: Optimisation | None = None
        self._optimiser: torch.optim.AdamW | None = None
        self._total_updates = 0

    def start(self, optimisation: Optimisation, total_updates: int) -> None:
        """Begin a stage: make a new optimiser, and take the policy's present weights as the reference."""
        self._optimisation = optimisation
        self._total_updates = total_updates
        self._optimiser = make_adamw(self._trained, self._value_head, optimisation)
        self._reference = {}
        self.num_updates = 0

    def annotate(
        self, groups: Sequence[ScoredGroup], needs: frozenset[Need], temperature: float = 1.0
    ) -> list[ScoredGroup]:
        """Return the groups with exactly the measurements that ``needs`` names.

        This takes one pass of the policy, and one of the reference if it is needed.

        Raises:
            ConfigError: values are needed and there is no value head, or the reference is first needed after
                the stage's first update.
        """
        flat = [scored for group in groups for scored in group]
        own = needs - {"ref_logprobs"}
        if own:
            flat = self._measure(flat, own, temperature)
        if "ref_logprobs" in needs:
            with self._as_reference():
                flat = self._measure(flat, frozenset({"ref_logprobs"}), temperature)
        following = iter(flat)
        return [tuple(next(following) for _ in group) for group in groups]

    def update(
        self,
        batch: Batch,
        objective: Objective,
        *,
        epochs: int = 1,
        minibatches: int = 1,
        seed: int = 0,
        temperature: float = 1.0,
    ) -> dict[str, float]:
        """Take ``epochs * minibatches`` optimiser steps on ``batch``; return measurements averaged over them.

        ``logprob_gap`` is the largest difference between a token's log-probability here and the one that the
        sampler stored, on the first minibatch before any step. It is a rounding error if learner and engine
        hold the same weights and tokens; it is large if tokens and log-probabilities are out of step.

        Raises:
            ConfigError: the objective needs what the batch or the learner does not have.
            Diverged: a loss or gradient is not finite; that minibatch made no optimiser step.
        """
        optimisation, optimiser = self._started()
        self._check(batch, objective)
        began = time.perf_counter()
        frozen = self.num_updates < optimisation.freeze_policy_updates
        meter = Meter()
        loss_of = UpdateLoss(self._forward, self._value_head, objective, temperature, frozen, meter)
        whole = objective.whole_groups
        parts = [
            part
            for epoch in range(epochs)
            for part in batch.minibatches(minibatches, seed_of(seed, epoch), whole_groups=whole)
        ]
        for index, part in enumerate(parts):
            width = 1.0 / len(parts)
            factor = optimisation.factor(self.num_updates + index * width, self._total_updates, width)
            for group in optimiser.param_groups:
                group["lr"] = group["base_lr"] * factor
            self._step(part, loss_of)
            meter.steps("lr", torch.tensor(optimisation.lr * factor))
        self.num_updates += 1
        means = meter.means()
        for regulariser in objective.remembering:
            regulariser.observe(means)
        tokens = float(batch.num_tokens)
        took_s = time.perf_counter() - began
        return {
            **means,
            "tokens": tokens,
            "action_tokens": float(batch.num_action_tokens),
            "tokens_per_s": tokens * epochs / took_s,
        }

    @property
    def packed(self) -> bool:
        """Whether rows are laid end to end; they are padded instead if the model cannot use our attention."""
        return self._forward.packed

    @property
    def trained_names(self) -> frozenset[str]:
        """Names of the weights that learn, as in the model's ``named_parameters``."""
        return frozenset(self._trained)

    def weights(self) -> dict[str, Tensor]:
        """Return the weights by their names in the model's ``state_dict``, adapters merged in.

        Without LoRA they are the live tensors: copy what must outlast the next update.
        """
        adapted = {
            name: module for name, module in self.model.named_modules() if hasattr(module, "get_delta_weight")
        }
        merged: dict[str, Tensor] = {}
        for name, weight in self.model.state_dict().items():
            if "lora_" in name:
                continue
            owner, _, field = name.rpartition(".base_layer.")
            if owner in adapted and field == "weight":
                weight = weight + adapted[owner].get_delta_weight("default").to(weight.dtype)
            merged[name.replace(".base_layer.", ".")] = weight.detach()
        return merged

    def load_weights(self, weights: Weights) -> None:
        """Replace all weights, named as ``weights()`` names them; works only for a model without adapters."""
        self.model.load_state_dict(dict(weights))

    def save_model(self, folder: Path) -> None:
        """Write the model, adapters merged in, as a folder that ``transformers`` loads."""
        model: Any = self.model  # Any: transformers types models per architecture
        with no_bars():
            model.save_pretrained(folder, state_dict=self.weights())

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Return what decides the next update: trained weights, value head, moments, reference, counts."""
        tensors = {f"model.{name}": weight.detach() for name, weight in self._trained.items()}
        tensors |= {f"reference.{name}": weight for name, weight in self._reference.items()}
        if self._value_head is not None:
            tensors |= {
                f"value_head.{name}": weight for name, weight in self._value_head.state_dict().items()
            }
        if self._optimiser is not None:
            for index, state in self._optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items()}
        return tensors, {"num_updates": self.num_updates, "total_updates": self._total_updates}

    def load_state_dict(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Json]) -> None:
        """Restore the state that ``state_dict`` returned.

        If the state was taken within a stage, call ``start`` with the stage's settings first.

        Raises:
            ConfigError: weights are missing, or differ in shape: they are of another model.
        """
        parts: dict[str, dict[str, Tensor]] = {
            "model": {},
            "reference": {},
            "value_head": {},
            "optimiser": {},
        }
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        own = {**self._trained}
        check_same(parts["model"], own, "model")
        if parts["reference"]:
            check_same(parts["reference"], own, "reference")
        check_same(
            parts["value_head"],
            {} if self._value_head is None else self._value_head.state_dict(),
            "value head",
        )
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(parts["model"][name])
        if self._value_head is not None:
            self._value_head.load_state_dict(parts["value_head"])
        self._reference = {
            name: tensor.to(self._device, copy=True) for name, tensor in parts["reference"].items()
        }
        if self._optimiser is not None:
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in parts["optimiser"].items():
                index, _, moment = name.partition(".")
                state.setdefault(int(index), {})[moment] = tensor.clone()
            self._optimiser.load_state_dict(
                {"state": state, "param_groups": self._optimiser.state_dict()["param_groups"]}
            )
        self.num_updates = int(numbers["num_updates"])  # type: ignore[arg-type]
        self._total_updates = int(numbers["total_updates"])  # type: ignore[arg-type]

    def _started(self) -> tuple[Optimisation, torch.optim.AdamW]:
        if self._optimisation is None or self._optimiser is None:
            raise ConfigError("the learner has no optimiser yet; call Learner.start first")
        return self._optimisation, self._optimiser

    def _check(self, batch: Batch, objective: Objective) -> None:
        frozen = (
            self._optimisation is not None and self.num_updates < self._optimisation.freeze_policy_updates
        )
        if frozen and objective.value is None:
            raise ConfigError(
                "freeze_policy_updates trains the value head alone, and the objective has no value loss; set "
                "Objective.value"
            )
        if objective.value is not None and self._value_head is None:
            raise ConfigError(
                "the objective has a value loss, but the learner has no value head; make it with "
                "value_head=True"
            )
        rows = [row for sequence in batch.sequences for row in sequence.rows]
        for need in sorted(objective.needs & {"old_logprobs", "ref_logprobs"}):
            if any(row.measured.get(need) is None for row in rows):
                raise ConfigError(
                    f"the objective needs {need}, and the batch has none; annotate with the objective's "
                    "needs first"
                )
        if any(not np.isfinite(row.advantages_A).all() for row in rows):
            raise ConfigError("an advantage is not a finite number; look at the rewards and the credit rule")

    def _step(self, part: Batch, loss_of: UpdateLoss) -> None:
        """Take one optimiser step on a minibatch."""
        optimisation, optimiser = self._started()
        loss = loss_of.backward(part, self.compute.token_budget)
        trained = [
            weight
            for group in optimiser.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        norm = float(nn.utils.clip_grad_norm_(trained, optimisation.grad_clip)) if trained else 0.0
        if not (math.isfinite(norm) and math.isfinite(float(loss))):
            raise Diverged(
                f"update {self.num_updates} of the stage: loss {float(loss)}, gradient norm {norm}; no step "
                "was "
                "taken. Lower the learning rate, or look at the advantages and log-probabilities of this "
                "update"
            )
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        loss_of.meter.steps("loss", loss)
        loss_of.meter.steps("grad_norm", torch.tensor(norm))
        loss_of.meter.num_steps += 1

    @torch.no_grad()
    def _measure(self, flat: Sequence[Scored], needs: frozenset[Need], temperature: float) -> list[Scored]:
        """Return ``flat`` with ``needs`` measured by the present weights.

        A trajectory without action tokens gets empty arrays.
        """
        if "values" in needs and self._value_head is None:
            raise ConfigError(
                "values are needed, but the learner has no value head; make it with value_head=True"
            )
        speaking = [index for index, scored in enumerate(flat) if scored.trajectory.num_tokens]
        batch = make_batch([tuple(flat[index] for index in speaking)])
        measured = [dict.fromkeys(needs, floats()) for _ in flat]
        for pack in batch.packs(self.compute.token_budget):
            micro = Micro.lay([batch.sequences[index] for index in pack], self._device)
            hidden_AH = self._forward.hidden(micro.rows)[micro.predicts_A]
            found: dict[str, Tensor] = {}
            if needs - {"values"}:
                entropies = "entropies" in needs
                logprobs_A, entropies_A = self._forward.logprobs(
                    hidden_AH, micro.tokens_A, temperature=temperature, entropies=entropies
                )
                found = {"old_logprobs": logprobs_A, "ref_logprobs": logprobs_A}
                if entropies_A is not None:
                    found["entropies"] = entropies_A
            if self._value_head is not None:
                found["values"] = self._value_head(hidden_AH.float())[:, 0]
            lengths = [sum(batch.sequences[index].turn_lengths) for index in pack]
            for need in needs:
                array_A = found[need].cpu().numpy()
                for index, start, length in zip(pack, offsets(lengths), lengths, strict=True):
                    measured[speaking[index]][need] = floats(array_A[start : start + length])
        return [scored.with_measured(**arrays) for scored, arrays in zip(flat, measured, strict=True)]

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        """Use the reference policy's weights in the block; put the trained ones back after it."""
        if not self._reference:
            if self.num_updates:
                raise ConfigError(
                    "the reference policy is the one at a stage's start; ask for ref_logprobs from its first "
                    "update on"
                )
            self._reference = {name: weight.detach().clone() for name, weight in self._trained.items()}
        own = {name: weight.data for name, weight in self._trained.items()}
        try:
            for name, weight in self._trained.items():
                weight.data = self._reference[name]
            yield
        finally:
            for name, weight in self._trained.items():
                weight.data = own[name]


def make_learner(
    model: ModelSpec,
    compute: Compute,
    *,
    vocab_size: int,
    renderer: Renderer,
    seed: int,
    value_head: bool = False,
) -> Learner:
    """Build a learner in this process; the ``MakeLearner`` of every run.

    Raises:
        ConfigError: the model cannot be built, or its logits are not its output layer applied to its last
            hidden states.
        MissingExtra: ``model`` asks for LoRA, and ``peft`` is not installed.
    """
    built = build_model(model, vocab_size, seed, compute.device)
    allowed_V = renderer.allowed(built.config.get_text_config().vocab_size)
    return TorchLearner(built, compute, value_head=value_head, allowed_V=allowed_V)
