"""The forward pass over a micro-batch: packed rows in, log-probabilities of chosen tokens out.

Legend: ``N`` tokens of all rows of a micro-batch, end to end; ``S`` a selection of these tokens; ``A`` action
tokens; ``H`` hidden size; ``V`` vocabulary.

The rows are concatenated into one sequence ``[1, N]``, so matrix products contain no padding. Causal
attention runs row by row, without a mask: its cost is the sum of the squared row lengths, and a row's result
does not depend on the other rows. If a model does not accept our attention function (``TrainingForward``
tries it on two short rows), rows are padded on the right instead; under causal attention this needs no mask
either. Only the hidden states that predict a wanted token reach the output layer, so logits ``[N, V]`` are
never computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from agentrl.errors import ConfigError
from agentrl.types import IntArray

PACKED = "agentrl_packed"
_NEVER = -1e9
"""Logit of tokens that cannot be sampled. It is finite, so that entropies do not contain ``0 * inf``."""
_MOST_LOGITS = 2**24
"""Maximum number of logits in memory at once, 64 MiB in float32. If more are needed, the output layer runs in
chunks, which are recomputed in the backward pass.
"""


def packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend causally within each row; without ``row_lengths``, do exactly what ``sdpa`` does.

    The signature is the interface of ``transformers``, hence ``Any``.
    """
    lengths = kwargs.pop("row_lengths", None)
    if lengths is None:
        out, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return out, weights
    window = kwargs.get("sliding_window")
    rows = zip(
        torch.split(query, lengths, 2),
        torch.split(key, lengths, 2),
        torch.split(value, lengths, 2),
        lengths,
        strict=True,
    )
    outs = [
        functional.scaled_dot_product_attention(
            query_row,
            key_row,
            value_row,
            attn_mask=_window_mask(length, window, query.device) if window and length > window else None,
            is_causal=not (window and length > window),
            scale=kwargs.get("scaling"),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for query_row, key_row, value_row, length in rows
    ]
    return torch.cat(outs, 2).transpose(1, 2).contiguous(), None


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    age = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (age >= 0) & (age < window)


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)


class TrainingForward:
    """Runs a model over packed rows. Its only state is the model and which layout of rows it accepts."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        bfloat16: bool = False,
        allowed_V: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self.model = cast(Any, model)  # Any: transformers types models per architecture
        self.device = model.device
        self.bfloat16 = bfloat16
        self._banned_V = (
            None if allowed_V is None or allowed_V.all() else torch.from_numpy(~allowed_V).to(self.device)
        )
        self._backbone = self.model.get_decoder()
        self._output = self.model.get_output_embeddings()
        config = model.config.get_text_config()
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._scale = float(getattr(config, "logit_scale", 1.0)) / float(
            getattr(config, "logits_scaling", 1.0)
        )
        self.packed = False
        self._probe()

    def hidden(self, rows: Sequence[IntArray]) -> Tensor:
        """Return the last hidden states of all rows, end to end, ``[N, H]``."""
        lengths = [len(row) for row in rows]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            if self.packed:
                return self._run(
                    torch.from_numpy(np.concatenate(rows).astype(np.int64))[None],
                    position_ids=torch.cat([torch.arange(length) for length in lengths])[None].to(
                        self.device
                    ),
                    attention_mask=torch.ones(
                        1, 1, 1, 1, dtype=torch.bool, device=self.device
                    ),  # a mask with four axes is passed through, so transformers does not build one
                    row_lengths=lengths,
                )[0]
            padded = np.zeros((len(rows), max(lengths)), dtype=np.int64)
            for place, row in zip(padded, rows, strict=True):
                place[: len(row)] = row
            hidden = self._run(torch.from_numpy(padded))
            return torch.cat([states[:length] for states, length in zip(hidden, lengths, strict=True)])

    def logprobs(
        self,
        hidden_SH: Tensor,
        tokens_S: Tensor,
        *,
        temperature: float,
        sampled: bool = True,
        entropies: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return float32 log-probabilities of ``tokens_S`` at ``temperature``, and entropies if asked for.

        Entropies are in nats, over the vocabulary. ``sampled`` means that the tokens belong to actions, which
        are drawn from the allowed part of the vocabulary.
        """
        size = max(1, _MOST_LOGITS // self._output.weight.shape[0])
        if len(tokens_S) <= size:
            return self._score(hidden_SH, tokens_S, temperature, sampled, entropies)
        parts = [
            checkpoint(self._score, hidden, tokens, temperature, sampled, entropies, use_reentrant=False)
            for hidden, tokens in zip(torch.split(hidden_SH, size), torch.split(tokens_S, size), strict=True)
        ]
        logprobs_S = torch.cat([part[0] for part in parts])
        return logprobs_S, torch.cat([part[1] for part in parts]) if entropies else None

    def _run(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        states: Tensor = self._backbone(
            input_ids=tokens.to(self.device), use_cache=False, **kwargs
        ).last_hidden_state
        return states

    def _score(
        self, hidden_SH: Tensor, tokens_S: Tensor, temperature: float, sampled: bool, entropies: bool
    ) -> tuple[Tensor, Tensor | None]:
        logits_SV = self._logits(hidden_SH) / temperature if temperature != 1.0 else self._logits(hidden_SH)
        if sampled and self._banned_V is not None:
            logits_SV = logits_SV.masked_fill(self._banned_V, _NEVER)
        if not entropies:
            return -functional.cross_entropy(logits_SV, tokens_S, reduction="none"), None
        logprobs_SV = logits_SV.log_softmax(-1)
        return logprobs_SV.gather(-1, tokens_S[:, None])[:, 0], -(logprobs_SV.exp() * logprobs_SV).sum(-1)

    def _logits(self, hidden_SH: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits_SV: Tensor = self._output(hidden_SH).float()
        if self._scale != 1.0:
            logits_SV = logits_SV * self._scale
        return logits_SV if self._softcap is None else self._softcap * torch.tanh(logits_SV / self._softcap)

    @torch.no_grad()
    def _probe(self) -> None:
        """Choose the layout that reproduces the model's own logits on two short rows.

        The layouts are rows end to end, and rows padded on the right.

        Raises:
            ConfigError: neither layout does, because the model computes its logits in an unknown way.
        """
        bfloat16, self.bfloat16 = self.bfloat16, False
        rows = [np.arange(length, dtype=np.int32) % self._output.weight.shape[0] for length in (7, 4)]
        wanted = torch.cat(
            [
                self.model(torch.from_numpy(row.astype(np.int64))[None].to(self.device)).logits[0]
                for row in rows
            ]
        ).float()
        near = (1e-3 if self._output.weight.dtype == torch.float32 else 0.1) * max(
            1.0, float(wanted.abs().max())
        )
        own = self.model.config._attn_implementation
        for packed in (True, False) if self.model._supports_attention_backend else (False,):
            self.packed = packed
            self.model.set_attn_implementation(PACKED if packed else own)
            if float((self._logits(self.hidden(rows)) - wanted).abs().max()) < near:
                self.bfloat16 = bfloat16
                return
        raise ConfigError(
            f"the logits of {type(self.model).__name__} are not its output layer applied to its last hidden "
            "states; this architecture is not supported, choose another model"
        )
