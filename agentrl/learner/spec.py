"""What learns, as values: models, tokenizers and teachers. A recipe holds them; nothing here loads weights or imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from agentrl.errors import ConfigError
from agentrl.types import Json, Trajectory

PAD, ACT, END = "<pad>", "<act>", "<end>"
"""Padding, the start of an action, the end of an action: the special tokens of tokenizers that we train."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A causal language model by its numbers; ``extra`` are further fields of the architecture's ``transformers`` config."""

    architecture: str = "qwen2"
    """A ``model_type`` that ``transformers`` has a causal language model for."""
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 384
    max_context: int = 1024
    tied: bool = True
    """Whether input and output embeddings are one matrix."""
    extra: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRA:
    """Train low-rank adapters ``W + alpha / rank * B A`` (Hu et al. 2021) instead of all weights; needs ``peft``."""

    rank: int = 16
    alpha: int = 32
    targets: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedTokenizer:
    """A byte-level BPE tokenizer trained on the run's own text. The 256 bytes are always in: no text is out of vocabulary."""

    vocab_size: int = 512
    """Most entries, of which 256 are bytes; fewer where the text has no more merges."""
    special: tuple[str, ...] = (PAD, ACT, END)
    """The first entries, in this order; the first one pads, the last one ends a text."""
    num_episodes: int = 200
    """Episodes whose text it is trained on, at most; fewer where they are dear."""

    def __post_init__(self) -> None:
        least = 256 + len(self.special)
        if self.vocab_size < least:
            raise ConfigError(
                f"vocab_size {self.vocab_size} has no room for 256 bytes and {len(self.special)} special tokens; give {least} or more"
            )
        if self.num_episodes < 1:
            raise ConfigError(
                f"a tokenizer is trained on at least 1 episode; num_episodes is {self.num_episodes}"
            )
        if not self.special or len(set(self.special)) < len(self.special):
            raise ConfigError(f"special tokens must be different, at least one; found {self.special}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Which model: exactly one of ``folder`` (pretrained weights) and ``shape`` (random weights)."""

    folder: str = ""
    shape: Shape | None = None
    tokenizer: str | TrainedTokenizer = ""
    """A folder, or how to train one; empty: the model folder's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the stored weights. Trained weights belong in float32 (the learner computes in bfloat16 on request); frozen ones need not."""
    lora: LoRA | None = None
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more time, a fraction of the memory."""

    def __post_init__(self) -> None:
        if bool(self.folder) == (self.shape is not None):
            found = "both" if self.folder else "neither"
            raise ConfigError(
                f"a model is a folder or a shape; found {found}; give exactly one of ModelSpec.folder and ModelSpec.shape"
            )
        if not self.folder and not self.tokenizer:
            raise ConfigError(
                "a model with random weights brings no tokenizer; set tokenizer to a folder or TrainedTokenizer(...)"
            )
        if self.dtype == "bfloat16" and self.lora is None:
            raise ConfigError(
                "weights stored in bfloat16 lose small updates; keep ModelSpec.dtype at float32 and compute in bfloat16, or train with LoRA"
            )


Information = Callable[[Trajectory], str]
"""What the teacher is told about an episode; empty: nothing."""


def expert_plan(trajectory: Trajectory) -> str:
    """Tell the plan that an expert had before the first action: the most useful kind of information, where environments know it."""
    plan = trajectory.turns[0].observation.plan if trajectory.turns else ()
    return "plan: " + "; ".join(plan) + "\n" if plan else ""


def first_action(trajectory: Trajectory) -> str:
    """Tell only how an expert would begin."""
    plan = trajectory.turns[0].observation.plan if trajectory.turns else ()
    return f"hint: {plan[0]}\n" if plan else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """What the teacher is told, and who it is: ``model`` names another one of the same tokenizer, ``None`` is the policy itself."""

    information: Information = expert_plan
    model: ModelSpec | None = None
