"""Any causal language model of transformers: its own forward, with attention that reads and writes our slots.

The model is run on one flat row of tokens with their positions. Everything in it works token by token except attention, and that is
exchanged through the attention interface of transformers. So no cache class of the model is needed, and rows of any length share a pass.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from agentrl.engines.cache import SlotAttention, Step
from agentrl.errors import ConfigError

_NAME = "agentrl_slots"
_current: ContextVar[tuple[SlotAttention, Step]] = ContextVar("current step")


def _slot_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,  # dropout, positions and the like: no part of inference
) -> tuple[Tensor, None]:
    """Attention function of transformers: ``query`` ``[1, heads, M, D]``, keys and values likewise; returns ``[1, M, heads, D]``."""
    attention, step = _current.get()
    if softcap is not None or s_aux is not None or (sliding_window is not None and sliding_window < attention.limit):
        raise ConfigError(
            f"{type(module).__name__} uses a sliding window, soft caps or sinks, which slots cannot hold; serve it with another engine"
        )
    layer = module.layer_idx
    attention.write(layer, step, _join(key, value))
    queries = query[0].transpose(0, 1).reshape(-1, attention.num_kv_heads, attention.group, attention.head_dim)
    seen = attention.attend(layer, step.blocks, queries, scale=attention.head_dim**-0.5 if scaling is None else scaling)
    return seen.view(1, len(queries), attention.num_heads, attention.head_dim), None


def _join(key: Tensor, value: Tensor) -> Tensor:
    """Return keys and values as the slots hold them, ``[M, 2 * K * D]``."""
    return torch.stack([key[0].transpose(0, 1), value[0].transpose(0, 1)], dim=1).flatten(1)


AttentionInterface.register(_NAME, _slot_attention)


class GenericForward:
    """The model's own forward over slots. The model is the engine's from here on: its attention is exchanged for good."""

    def __init__(self, model: Any, *, num_slots: int, max_context: int) -> None:
        config = model.config.get_text_config()
        num_heads = config.num_attention_heads
        self._model = model
        self.attention = SlotAttention(
            num_layers=config.num_hidden_layers,
            num_slots=num_slots,
            max_context=max_context,
            num_heads=num_heads,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // num_heads,
            like=model.get_input_embeddings().weight.detach(),
        )
        model.set_attn_implementation(_NAME)

    def __call__(self, step: Step) -> Tensor:
        """Return the logits of the step's last tokens, ``[R, V]``."""
        token = _current.set((self.attention, step))
        try:
            # a mask of four dimensions is handed on as it is, so that the model makes none
            mask = step.tokens_M.new_ones((1, 1, 1, 1), dtype=self._model.dtype)
            output = self._model(
                input_ids=step.tokens_M[None],
                position_ids=step.positions_M[None],
                attention_mask=mask,
                use_cache=False,
                logits_to_keep=step.last_R,
            )
        finally:
            _current.reset(token)
        logits: Tensor = output.logits[0]
        return logits
