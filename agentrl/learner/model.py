"""Builds models and tokenizers: from a pretrained folder, or from a shape with seeded random weights.

Nothing here uses the network. A model from scratch is described by its ``Shape``, and its tokenizer is
trained on the environment's own text. Both depend on their arguments alone: the same seed and texts give the
same weights and the same vocabulary in every process.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from agentrl.errors import ConfigError, MissingExtra, boundary
from agentrl.learner.spec import LoRA, ModelSpec, TrainedTokenizer

_MIB = 2**20
_CausalLM: Any = AutoModelForCausalLM  # Any: transformers declares a wrong type for it


def train_tokenizer(texts: Iterable[str], spec: TrainedTokenizer | None = None) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on ``texts``. The result is deterministic.

    >>> tokenizer = train_tokenizer(["go east", "go west"])
    >>> tokenizer.decode(tokenizer.encode("<act>go north<end>"))
    '<act>go north<end>'
    """
    spec = spec or TrainedTokenizer()
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        special_tokens=list(spec.special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, pad_token=spec.special[0], eos_token=spec.special[-1]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(spec.special[1:-1])})
    return tokenizer


def load_tokenizer(folder: str | Path, *, required: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer, which must have each of ``required`` as a single token.

    Raises:
        ConfigError: the folder is missing or unreadable, or the tokenizer lacks a required token.
    """
    _check_folder(folder, "tokenizer")
    with boundary(ConfigError, f"reading the tokenizer in {folder}"):
        tokenizer = _tokenizer_class(Path(folder)).from_pretrained(str(folder), local_files_only=True)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(
            f"the tokenizer in {folder} has no tokenizer.json (found {type(tokenizer).__name__}); "
            "convert it to a fast tokenizer"
        )
    check_tokens(tokenizer, required)
    return tokenizer


def _tokenizer_class(folder: Path) -> Any:  # Any: transformers does not type its factories
    """Return the class that reads the tokenizer in ``folder`` exactly as it was written.

    If a tokenizer names no class of its own, ``AutoTokenizer`` chooses one by the model in the same folder,
    and a tokenizer that we trained would gain a token.
    """
    config = folder / "tokenizer_config.json"
    named = json.loads(config.read_text()).get("tokenizer_class") if config.is_file() else None
    return (
        PreTrainedTokenizerFast
        if named in ("TokenizersBackend", "PreTrainedTokenizerFast")
        else AutoTokenizer
    )


def check_tokens(tokenizer: PreTrainedTokenizerFast, required: Sequence[str]) -> None:
    """Raise ``ConfigError`` unless each of ``required`` is a single token."""
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in required if token not in vocabulary]
    if missing:
        raise ConfigError(
            f"the tokenizer lacks the special tokens {', '.join(missing)} "
            f"(it has {', '.join(tokenizer.all_special_tokens) or 'none'}); "
            "add them to the tokenizer and resize the model, choose a renderer that needs none, "
            "or train a tokenizer"
        )


def model_config(spec: ModelSpec, vocab_size: int) -> Any:  # Any: transformers types configs per architecture
    """Return the ``transformers`` config of ``spec``.

    Raises:
        ConfigError: the folder or shape does not describe a causal language model, or it is too small for the
            vocabulary.
    """
    if spec.shape is None:
        _check_folder(spec.folder, "model")
        with boundary(ConfigError, f"reading the model config in {spec.folder}"):
            config = AutoConfig.from_pretrained(spec.folder, local_files_only=True)
        if config.vocab_size < vocab_size:
            raise ConfigError(
                f"the tokenizer has {vocab_size} tokens, the model in {spec.folder} only "
                f"{config.vocab_size}; "
                "use the model's own tokenizer"
            )
        return config
    shape = spec.shape
    fields: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.mlp,
        "max_position_embeddings": shape.max_context,
        "tie_word_embeddings": shape.tied,
        "vocab_size": vocab_size,
        **shape.extra,
    }
    small = [
        name
        for name, value in fields.items()
        if isinstance(value, int) and not isinstance(value, bool) and value < 1
    ]
    if small and not shape.extra:
        raise ConfigError(
            f"the model's shape has {small[0]} = {fields[small[0]]}; every size must be at least 1"
        )
    if shape.hidden % shape.heads or shape.heads % shape.kv_heads:
        raise ConfigError(
            "hidden must be a multiple of heads, and heads a multiple of kv_heads; "
            f"found hidden={shape.hidden}, heads={shape.heads}, kv_heads={shape.kv_heads}"
        )
    with boundary(ConfigError, f"a config of architecture {shape.architecture!r}"):
        return AutoConfig.for_model(shape.architecture, **fields)


def build_model(
    spec: ModelSpec, vocab_size: int, seed: int, device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """Build the model of ``spec`` on ``device``, in training mode.

    Dropout is off, so that the policy that is trained is the one that samples. Random weights and adapters
    depend on ``seed`` alone and are drawn on the CPU, so every device starts from the same numbers. With
    ``spec.lora`` the adapters are injected in place and all other weights are frozen.

    Raises:
        ConfigError: the folder or shape is not a causal language model, or the folder lacks weights.
        MissingExtra: the spec asks for LoRA, and ``peft`` is not installed.
    """
    config = model_config(spec, vocab_size)
    dtype = getattr(torch, spec.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if spec.folder:
            model = _load_weights(spec.folder, dtype)
        else:
            with boundary(ConfigError, f"building a model of architecture {config.model_type!r}"):
                model = _CausalLM.from_config(config, dtype=dtype)
        if spec.lora is not None:
            _add_adapters(model, spec.lora)
    if spec.gradient_checkpointing:
        # transformers renamed this method in 5.2x and warns about the old name
        enable = (
            getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        )
        enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    model.train()
    with boundary(ConfigError, f"moving the model to {device}"):
        model.to(device)
    return cast("PreTrainedModel", model)


def memory_mib(
    spec: ModelSpec,
    vocab_size: int,
    *,
    token_budget: int,
    kv_tokens: int = 0,
    reference: bool = False,
    engine: bool = True,
    device: str = "cpu",
) -> dict[str, float]:
    """Estimate the memory of a run, in MiB, by purpose and in total.

    Counted are weights, gradients, Adam's moments, the activations of a micro-batch, and the engine's weights
    and cache. ``kv_tokens`` is the number of context tokens that the engine caches at once, over all
    episodes. The engine has its own float32 weights; on a CPU they count twice, once as the model stores them
    and once in the layout that the processor multiplies. The size of the activations is fitted to measured
    models (24 hidden + 6 mlp floats per token and layer), with an error of about a quarter. Logits at action
    positions are bounded elsewhere.
    """
    config = model_config(spec, vocab_size)
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in _CausalLM.from_config(config).parameters())
    hidden, layers = config.hidden_size, config.num_hidden_layers
    heads = config.num_attention_heads
    kv_width = getattr(config, "num_key_value_heads", None) or heads
    kv_width *= getattr(config, "head_dim", None) or hidden // heads
    mlp = getattr(config, "intermediate_size", None) or 4 * hidden
    trained = (
        parameters
        if spec.lora is None
        else min(parameters, 2 * spec.lora.rank * layers * (6 * hidden + 3 * mlp))
    )
    stored = 4 if spec.dtype == "float32" else 2
    per_layer = 24 * hidden + 6 * mlp
    floats = per_layer + layers * hidden if spec.gradient_checkpointing else layers * per_layer
    sizes = {
        "weights": parameters * stored,
        "gradients": trained * 4,
        "adam": trained * 8,
        "reference": trained * 4 * reference,
        "activations": token_budget * floats * 4,
        "engine_weights": parameters * 4 * (2 if device == "cpu" else 1) * engine,
        "kv_cache": kv_tokens * layers * 2 * kv_width * stored,
    }
    return {name: size / _MIB for name, size in sizes.items()} | {"total": sum(sizes.values()) / _MIB}


def check_fits(needed_mib: float, device: str | torch.device) -> None:
    """Raise ``ConfigError`` if ``device`` does not exist or has less free memory than ``needed_mib``."""
    with boundary(ConfigError, f"device {str(device)!r}"):
        kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {str(device)!r}: torch cannot use a GPU here; set compute.device=cpu, "
            "or run agentrl doctor"
        )
    free_mib = (
        torch.cuda.mem_get_info(device)[0] if kind == "cuda" else psutil.virtual_memory().available
    ) / _MIB
    if needed_mib > free_mib:
        raise ConfigError(
            f"the model does not fit: it needs about {needed_mib:,.0f} MiB and {device} has "
            f"{free_mib:,.0f} MiB free; choose a smaller model or token budget, or set "
            "gradient_checkpointing or lora in the ModelSpec"
        )


@contextmanager
def no_bars() -> Iterator[None]:
    """Hide the progress bars of ``transformers`` while the block runs."""
    bars: Any = logging  # Any: its functions have no types
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _check_folder(folder: str | Path, what: str) -> None:
    if not Path(folder).is_dir():
        raise ConfigError(
            f"the {what} folder does not exist: {folder}; "
            "give a folder on this machine (nothing is downloaded)"
        )


def _load_weights(folder: str, dtype: torch.dtype) -> Any:  # Any: transformers types models per architecture
    with boundary(ConfigError, f"reading the model in {folder}"), no_bars():
        model, report = _CausalLM.from_pretrained(
            folder, local_files_only=True, dtype=dtype, output_loading_info=True
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ConfigError(
            f"the model in {folder} lacks {len(missing)} weights, first {missing[0]}; "
            "copy the whole folder again"
        )
    return model


def _add_adapters(model: Any, lora: LoRA) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as problem:
        raise MissingExtra("LoRA needs peft; install agentrl with the extra 'train'") from problem
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    with boundary(ConfigError, f"LoRA on {lora.targets}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, model)
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name)
        if "lora_" in name:
            weight.data = weight.data.float()
