"""Forward passes over the tokens of a step, laid out flat: no padding, and attention only through slots.

``LlamaForward`` is written by hand for models of Llama's shape (Llama, Qwen2, Qwen3). ``GenericForward`` runs
any causal language model of transformers whose attention can be replaced. ``forward_for`` chooses the first
if it agrees with the model's own forward, else the second; if neither agrees, the model cannot be served.

Axes: ``M`` tokens of a step, ``R`` rows whose logits are wanted, ``V`` vocabulary, ``H`` hidden, ``D``
dimension of a head.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from agentrl.engines.cache import ROWS, EngineStep, Feed, SlotAttention
from agentrl.errors import ConfigError
from agentrl.types import ints

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest accepted difference of our log-probabilities from those of the model's own forward, by dtype."""
HALF_TOLERANCE = 0.25
"""Largest accepted difference of log-probabilities for every other dtype, which is half precision."""

# transformers models are typed as Any: their attributes differ from architecture to architecture


class SlotForward(Protocol):
    """A forward pass that keeps keys and values in slots."""

    attention: SlotAttention

    def __call__(self, step: EngineStep) -> Tensor:
        """Return the logits of the step's last tokens, ``[R, V]``, and store all keys and values."""
        ...

    def refresh(self) -> None:
        """Adopt the model's current weights."""
        ...


class LlamaForward:
    """The forward pass of Llama, Qwen2 and Qwen3, with the weights of several layers fused into one matrix.

    A layer takes about seven matrix products and no other large operation. The model's own parameters become
    views of the fused weights.
    """

    def __init__(self, model: Any, *, num_slots: int, max_context: int) -> None:
        config, body = model.config, model.model
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._embed, self._head, self._norm = body.embed_tokens.weight, model.lm_head, _Norm(body.norm)
        self._layers = [_FusedLayer(layer) for layer in body.layers]
        self.attention = SlotAttention(
            num_layers=len(self._layers),
            num_slots=num_slots,
            max_context=max_context,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            like=self._embed.detach(),
        )
        places = torch.arange(self.attention.limit, device=self._embed.device)[None]
        cos, sin = body.rotary_emb(self._embed.detach()[:1], places)
        half = head_dim // 2
        self._cos, self._sin = cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous()

    def refresh(self) -> None:
        """Adopt the model's current weights."""
        for layer in self._layers:
            for product in (layer.qkv, layer.out, layer.gate_up, layer.down):
                product.refresh()

    @staticmethod
    def suits(model: Any) -> bool:
        """Return whether the model has the shape this class is written for."""
        config = model.config
        rope = getattr(config, "rope_parameters", None) or {}
        return (
            config.model_type in ("llama", "qwen2", "qwen3")
            and config.hidden_act == "silu"
            and rope.get("rope_type", "default") in ("default", "linear", "llama3")
            and not getattr(model.lm_head, "bias", None)
            and all(
                type(module) is nn.Linear
                for module in model.model.layers.modules()
                if isinstance(module, nn.Linear)
            )
        )

    def __call__(self, step: EngineStep) -> Tensor:
        """Return the logits of the step's last tokens, ``[R, V]``."""
        attention = self.attention
        num_kv, num_heads, dim = attention.num_kv_heads, attention.num_heads, attention.head_dim
        cos, sin = self._cos[step.positions_M], self._sin[step.positions_M]
        hidden = functional.embedding(step.tokens_M, self._embed)
        for index, layer in enumerate(self._layers):
            projected = layer.qkv(layer.norm_in(hidden)).view(len(hidden), -1, dim)
            queries_keys, values = projected[:, : num_heads + num_kv], projected[:, num_heads + num_kv :]
            if layer.norm_q is not None and layer.norm_k is not None:  # qwen3
                queries_keys = torch.cat(
                    [layer.norm_q(queries_keys[:, :num_heads]), layer.norm_k(queries_keys[:, num_heads:])],
                    dim=1,
                )
            turned = _rotate(queries_keys, cos, sin)
            attention.write(index, step, turned[:, num_heads:], values)
            vectors, queries = turned[:, :num_heads].view(-1, num_kv, attention.group, dim), step.queries
            if index == len(self._layers) - 1:  # only the last tokens of the last layer are used
                hidden, vectors, queries = hidden[step.last_R], vectors[step.last_R], step.last_queries
            seen = attention.attend(index, queries, vectors, scale=layer.scale)
            hidden = hidden + layer.out(seen)
            gate, value = layer.gate_up(layer.norm_mlp(hidden)).chunk(2, dim=-1)
            hidden = hidden + layer.down(functional.silu(gate).mul_(value))
        logits: Tensor = self._head(self._norm(hidden))
        return logits


class _FusedLayer:
    """One decoder layer's weights: one matrix for queries, keys and values, one for gate and up."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = _Product(attention.q_proj, attention.k_proj, attention.v_proj)
        self.gate_up = _Product(mlp.gate_proj, mlp.up_proj)
        self.out, self.down = _Product(attention.o_proj), _Product(mlp.down_proj)
        self.norm_in, self.norm_mlp = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self.norm_q, self.norm_k = (
            _Norm(getattr(attention, name)) if hasattr(attention, name) else None
            for name in ("q_norm", "k_norm")
        )
        self.scale = float(attention.scaling)


class _Product:
    """Linear layers that share an input, computed as one matrix product.

    Their weights are stacked into one matrix, of which the layers' own parameters become views. The matrix is
    ``[in, out]``, so that a product with few rows reads it in the order of memory. On CPUs with AVX-512 a
    second copy is kept in oneDNN's layout: its product is a tenth faster than MKL's, and the result of a row
    has the same bits among 2 to 2,048 rows, on one thread and on two.
    """

    def __init__(self, *linears: nn.Linear) -> None:
        self._weight = torch.cat([linear.weight.detach() for linear in linears]).t().contiguous()
        self._bias = (
            torch.cat([linear.bias.detach() for linear in linears]) if linears[0].bias is not None else None
        )
        first = 0
        for linear in linears:
            rows = slice(first, first := first + linear.out_features)
            linear.weight.data = self._weight[:, rows].t()
            if self._bias is not None:
                linear.bias.data = self._bias[rows]
        packs = (
            self._weight.device.type == "cpu"
            and self._weight.dtype == torch.float32
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        )
        self._packs = packs and torch.backends.cpu.get_cpu_capability() == "AVX512"
        self.refresh()

    def refresh(self) -> None:
        """Copy the current weights into oneDNN's layout again, if such a copy is kept."""
        self._packed = (
            torch.ops.mkldnn._reorder_linear_weight(self._weight.t().contiguous(), ROWS)
            if self._packs
            else None
        )

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed is not None:
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
            return product
        return x @ self._weight if self._bias is None else torch.addmm(self._bias, x, self._weight)


class _Norm:
    """The root mean square norm of a module of the model, computed with one call of torch."""

    def __init__(self, module: Any) -> None:
        self._weight, self._epsilon = module.weight, float(module.variance_epsilon)

    def __call__(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self._weight.shape, self._weight, self._epsilon)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary position embedding (Su et al. 2021) in the halves convention of transformers.

    ``cos`` and ``sin`` are ``[M, 1, D / 2]``.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


_NAME = "agentrl_slots"
_current: ContextVar[tuple[SlotAttention, EngineStep]] = ContextVar("current step")


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
    **_: object,  # dropout, positions and the like, which inference does not use
) -> tuple[Tensor, None]:
    """Implement the attention function of transformers with slots.

    ``query``, ``key`` and ``value`` are ``[1, heads, M, D]``, with ``K`` heads in the last two; the result is
    ``[1, M, heads, D]``.
    """
    attention, step = _current.get()
    if (
        softcap is not None
        or s_aux is not None
        or (sliding_window is not None and sliding_window < attention.limit)
    ):
        raise ConfigError(
            f"{type(module).__name__} uses a sliding window, soft caps or sinks, which slots cannot hold; "
            "serve it with another engine"
        )
    layer = module.layer_idx
    attention.write(layer, step, key[0].transpose(0, 1), value[0].transpose(0, 1))
    vectors = (
        query[0].transpose(0, 1).reshape(-1, attention.num_kv_heads, attention.group, attention.head_dim)
    )
    seen = attention.attend(
        layer, step.queries, vectors, scale=attention.head_dim**-0.5 if scaling is None else scaling
    )
    return seen.view(1, len(vectors), attention.num_heads, attention.head_dim), None


AttentionInterface.register(_NAME, _slot_attention)


class GenericForward:
    """The model's own forward, on one flat row of tokens with their positions.

    A decoder processes each token separately, except in attention, which is replaced permanently through the
    attention interface of transformers. No cache class of the model is needed, and rows of any length share a
    pass.
    """

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

    def refresh(self) -> None:
        """Do nothing: the model itself runs, with its current weights."""

    def __call__(self, step: EngineStep) -> Tensor:
        """Return the logits of the step's last tokens, ``[R, V]``."""
        token = _current.set((self.attention, step))
        try:
            # the model passes a mask of four dimensions on unchanged and makes none itself
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


@torch.no_grad()  # not inference mode: the fused weights stay ordinary tensors, which can be replaced later
def forward_for(model: Any, *, num_slots: int, max_context: int) -> SlotForward:
    """Return the fastest forward pass that agrees with the model's own.

    Raises:
        ConfigError: no forward pass agrees, because the model has an attention or a state that slots cannot
            hold.
    """
    vocab_size = model.get_input_embeddings().weight.shape[0]
    probe = torch.arange(24, device=model.device) * 7 % vocab_size
    wanted = torch.log_softmax(model(input_ids=probe[None]).logits[0].float(), dim=-1)
    tolerance = TOLERANCE.get(model.dtype, HALF_TOLERANCE)
    found: dict[str, float] = {}
    for kind in ([LlamaForward] if LlamaForward.suits(model) else []) + [GenericForward]:
        forward: SlotForward = kind(model, num_slots=num_slots, max_context=max_context)
        found[kind.__name__] = _difference(forward, probe, wanted)
        if found[kind.__name__] <= tolerance:
            return forward
    raise ConfigError(
        f"a model of type {model.config.model_type!r} cannot be served by this engine: its log-probabilities "
        f"are off by {', '.join(f'{off:.2g} ({name})' for name, off in found.items())}, and at most "
        f"{tolerance:g} is accepted. Serve it with another engine"
    )


def _difference(forward: SlotForward, probe: Tensor, wanted: Tensor) -> float:
    """Return the largest difference between the log-probabilities of ``forward`` and those in ``wanted``.

    The prompt ``probe`` is fed in three pieces, and compared after the last token of each.
    """
    tokens, worst, start = ints(probe.tolist()), 0.0, 0
    for size in (16, 7, 1):
        logits = forward(forward.attention.plan([Feed(0, start, tokens[start : start + size])]))
        start += size
        worst = max(
            worst, float((torch.log_softmax(logits[0].float(), dim=-1) - wanted[start - 1]).abs().max())
        )
    return worst
