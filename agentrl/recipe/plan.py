"""What a recipe will cost, estimated before any work: memory, tokens, arithmetic.

Making the plan also checks that the recipe's model and tokenizer can be used. All numbers of tokens are upper
bounds: they assume that every episode fills its context, because the length of episodes is not known before
they are played.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from agentrl.errors import MissingExtra
from agentrl.learner.model import check_fits, load_tokenizer, memory_mib, model_config
from agentrl.learner.spec import TrainedTokenizer
from agentrl.recipe import Recipe

_INITIAL_SLOT_TOKENS = 512
"""Tokens for which the local engine reserves memory in each slot when it starts; longer contexts make it
grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """A stage in numbers; a number is ``None`` if the source does not know it before it plays."""

    name: str
    source: str
    """Name of the source's class."""
    updates: int
    steps: int
    """Number of optimiser steps in all updates of the stage."""
    episodes: int | None
    """Number of episodes that are played for all updates of the stage."""
    tokens: int | None
    """Maximum number of tokens in one update's batch."""
    flops: float
    """Maximum number of floating-point operations, for playing and learning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will cost."""

    parameters: int
    """Number of parameters of the model."""
    vocab_size: int
    """Number of tokens in the vocabulary; an upper bound if the tokenizer is still to be trained."""
    max_context: int
    """Maximum number of tokens in a context."""
    memory_mib: Mapping[str, float]
    """Memory that the run needs when it starts, in MiB, by purpose, and the sum as ``total``."""
    grown_mib: float
    """Total memory in MiB that the run needs if all contexts reach ``max_context``."""
    stages: tuple[StagePlan, ...]

    @property
    def flops(self) -> float:
        """Maximum number of floating-point operations in all stages together."""
        return sum(stage.flops for stage in self.stages)


def make_plan(recipe: Recipe) -> Plan:
    """Return what ``recipe`` will cost. Reads the model's config and tokenizer, never its weights.

    Raises:
        ConfigError: the model or tokenizer folder is missing, unreadable or unfit, or the renderer cannot use
            the tokenizer.
        MissingExtra: a package that the recipe asks for is not installed.
    """
    vocab_size = _vocab_size(recipe)
    if recipe.model.lora is not None and importlib.util.find_spec("peft") is None:
        raise MissingExtra("LoRA needs peft, which is not installed; pip install '.[train]'")
    longest = int(model_config(recipe.model, vocab_size).max_position_embeddings)
    max_context = min(recipe.engine.max_context or longest, longest)
    num_slots = recipe.engine.num_slots

    def memory(slot_tokens: int) -> dict[str, float]:
        return memory_mib(
            recipe.model,
            vocab_size,
            token_budget=recipe.compute.token_budget,
            kv_tokens=num_slots * slot_tokens,
            device=recipe.compute.device,
            reference=any("ref_logprobs" in stage.needs for stage in recipe.stages),
        )

    sizes = memory(_INITIAL_SLOT_TOKENS)
    grown = memory(max(_INITIAL_SLOT_TOKENS, max_context))
    bytes_per_weight = 4 if recipe.model.dtype == "float32" else 2
    parameters = round(sizes["weights"] * 2**20 / bytes_per_weight)
    return Plan(
        parameters=parameters,
        vocab_size=vocab_size,
        max_context=max_context,
        memory_mib=sizes,
        grown_mib=grown["total"],
        stages=tuple(_stages(recipe, parameters, max_context)),
    )


def check_plan(recipe: Recipe) -> Plan:
    """Return the plan of ``recipe``, after checking that its memory fits.

    Raises:
        ConfigError: the device has too little memory, or ``make_plan`` raises it.
        MissingExtra: ``make_plan`` raises it.
    """
    plan = make_plan(recipe)
    check_fits(plan.memory_mib["total"], recipe.compute.device)
    return plan


def flops_per_s(seconds: float = 0.1) -> float:
    """Measure how many operations per second float32 matrix products reach on this machine's processors.

    The measurement takes ``seconds``.
    """
    matrix = np.ones((512, 512), np.float32)
    count, elapsed = 0, 0.0
    start = time.perf_counter()
    while elapsed < seconds:
        matrix @ matrix
        count += 1
        elapsed = time.perf_counter() - start
    return 2.0 * len(matrix) ** 3 * count / elapsed


def _vocab_size(recipe: Recipe) -> int:
    spec = recipe.model.tokenizer
    if recipe.model.folder:
        model_config(recipe.model, 0)  # report a missing model, rather than its missing tokenizer
    if isinstance(spec, TrainedTokenizer):
        return spec.vocab_size
    tokenizer = load_tokenizer(spec or recipe.model.folder)
    recipe.renderer(tokenizer)
    return len(tokenizer)


def _stages(recipe: Recipe, parameters: int, max_context: int) -> Iterator[StagePlan]:
    for stage in recipe.stages:
        expected = stage.source.expected(stage.updates)
        tokens = None if expected is None else expected.batch * max_context
        reference_passes = 1 if "ref_logprobs" in stage.needs else 0
        policy_passes = 1 if stage.needs - {"ref_logprobs"} else 0
        passes = reference_passes + policy_passes
        learning = 2 * parameters * (3 * stage.epochs + passes) * (tokens or 0) * stage.updates
        playing = 2 * parameters * max_context * (0 if expected is None else expected.acted)
        yield StagePlan(
            name=stage.name,
            source=type(stage.source).__name__,
            updates=stage.updates,
            steps=stage.updates * stage.epochs * stage.minibatches,
            episodes=None if expected is None else expected.episodes,
            tokens=tokens,
            flops=float(learning + playing),
        )
