"""Models, tokenizers and teachers as values of a recipe. Nothing here loads weights or imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from agentrl.errors import ConfigError
from agentrl.types import Json, Trajectory

PAD, ACT, END = "<pad>", "<act>", "<end>"
"""The special tokens of tokenizers that we train: padding, the start of an action, the end of an action."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of a causal language model; ``extra`` holds further fields of its ``transformers`` config."""

    architecture: str = "qwen2"
    """Name of an architecture: a ``model_type`` of ``transformers`` that has a causal language model."""
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 384
    max_context: int = 1024
    tied: bool = True
    """Whether input and output embeddings share one matrix."""
    extra: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRA:
    """Train low-rank adapters ``W + alpha / rank * B A`` instead of all weights (Hu et al. 2021).

    Needs ``peft``.
    """

    rank: int = 16
    alpha: int = 32
    targets: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedTokenizer:
    """A byte-level BPE tokenizer trained on the run's own text.

    Its vocabulary always has all 256 bytes, so it can encode any text.
    """

    vocab_size: int = 512
    """Maximum number of tokens in the vocabulary, of which 256 are bytes; there are fewer if the text offers
    no more pairs to merge.
    """
    special: tuple[str, ...] = (PAD, ACT, END)
    """The first entries of the vocabulary, in this order. The first token pads, the last one ends a text."""
    num_episodes: int = 200
    """Maximum number of episodes on whose text the tokenizer is trained; lower it if they are expensive."""

    def __post_init__(self) -> None:
        least = 256 + len(self.special)
        if self.vocab_size < least:
            raise ConfigError(
                f"vocab_size {self.vocab_size} has no room for 256 bytes and {len(self.special)} special "
                f"tokens; give {least} or more"
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
    """The folder of a tokenizer, or how to train one; if empty, the tokenizer in ``folder`` is used."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the stored weights. It must be float32 for weights that are trained (``Compute.precision`` can
    still let the learner compute in bfloat16); frozen weights, as with LoRA, may be bfloat16.
    """
    lora: LoRA | None = None
    gradient_checkpointing: bool = False
    """Whether the backward pass recomputes activations: about a third more time, a fraction of the memory."""

    def __post_init__(self) -> None:
        if bool(self.folder) == (self.shape is not None):
            found = "both" if self.folder else "neither"
            raise ConfigError(
                f"a model is a folder or a shape; found {found}; "
                "give exactly one of ModelSpec.folder and ModelSpec.shape"
            )
        if not self.folder and not self.tokenizer:
            raise ConfigError(
                "a model with random weights has no tokenizer; set tokenizer to a folder or "
                "TrainedTokenizer(...)"
            )
        if self.dtype == "bfloat16" and self.lora is None:
            raise ConfigError(
                "weights stored in bfloat16 lose small updates; keep ModelSpec.dtype at float32 and compute "
                "in bfloat16, or train with LoRA"
            )


Information = Callable[[Trajectory], str]
"""A function that returns the text that the teacher, but not the policy, sees before an episode. If the text
is empty, the teacher sees nothing more than the policy."""


def expert_plan(trajectory: Trajectory) -> str:
    """Return the expert's plan before the first action: the most useful information if there is a plan."""
    plan = trajectory.turns[0].observation.plan if trajectory.turns else ()
    return "plan: " + "; ".join(plan) + "\n" if plan else ""


def first_action(trajectory: Trajectory) -> str:
    """Return only the first action of the expert's plan."""
    plan = trajectory.turns[0].observation.plan if trajectory.turns else ()
    return f"hint: {plan[0]}\n" if plan else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A teacher: what it knows beyond the policy, and which model it is."""

    information: Information = expert_plan
    model: ModelSpec | None = None
    """The teacher's model, with the policy's tokenizer; if it is ``None``, the policy itself teaches."""
