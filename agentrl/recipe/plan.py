"""What a recipe will take, known before any work: memory, tokens, arithmetic; and whether its model and tokenizer can serve it.

All numbers of tokens are upper bounds: every episode fills its context. How long episodes really are, nobody knows before they are played.
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

_FIRST_ROOM = 512
"""Tokens that the local engine makes room for in each slot when it starts; longer contexts make it grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """A stage in numbers; ``None`` where its source does not tell before it plays."""

    name: str
    source: str
    updates: int
    steps: int
    episodes: int | None
    """Episodes that are played, over all updates."""
    tokens: int | None
    """Most tokens of one update's batch."""
    flops: float
    """Most floating-point operations, playing and learning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will take."""

    parameters: int
    vocab_size: int
    """An upper bound where the tokenizer is still to be trained."""
    max_context: int
    memory_mib: Mapping[str, float]
    """By purpose, and ``total``, when the run starts."""
    grown_mib: float
    """The total when all contexts are as long as they can be."""
    stages: tuple[StagePlan, ...]

    @property
    def flops(self) -> float:
        """Most floating-point operations of all stages."""
        return sum(stage.flops for stage in self.stages)


def make_plan(recipe: Recipe) -> Plan:
    """Return what ``recipe`` will take; reads configs and a tokenizer, never weights.

    Raises:
        ConfigError: the model or tokenizer folder is missing, unreadable or unfit, or the renderer cannot use the tokenizer.
        MissingExtra: a package that the recipe asks for is not installed.
    """
    vocab_size = _vocab_size(recipe)
    if recipe.model.lora is not None and importlib.util.find_spec("peft") is None:
        raise MissingExtra("LoRA needs peft, which is not installed; pip install '.[train]'")
    longest = int(model_config(recipe.model, vocab_size).max_position_embeddings)
    max_context = min(recipe.engine.max_context or longest, longest)
    num_slots = recipe.engine.num_slots
    sizes, grown = (
        memory_mib(
            recipe.model,
            vocab_size,
            token_budget=recipe.compute.token_budget,
            kv_tokens=num_slots * room,
            device=recipe.compute.device,
            reference=any("ref_logprobs" in stage.needs for stage in recipe.stages),
        )
        for room in (_FIRST_ROOM, max(_FIRST_ROOM, max_context))
    )
    parameters = round(sizes["weights"] * 2**20 / (4 if recipe.model.dtype == "float32" else 2))
    return Plan(
        parameters=parameters,
        vocab_size=vocab_size,
        max_context=max_context,
        memory_mib=sizes,
        grown_mib=grown["total"],
        stages=tuple(_stages(recipe, parameters, max_context)),
    )


def check_plan(recipe: Recipe) -> Plan:
    """Return the plan of ``recipe``, which fits; raises as ``make_plan``, and ``ConfigError`` where the memory does not suffice."""
    plan = make_plan(recipe)
    check_fits(plan.memory_mib["total"], recipe.compute.device)
    return plan


def flops_per_s(seconds: float = 0.1) -> float:
    """Measure what matrix products reach on this machine's processors, in float32."""
    side = np.ones((512, 512), np.float32)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        side @ side
        count += 1
    return 2.0 * len(side) ** 3 * count / elapsed


def _vocab_size(recipe: Recipe) -> int:
    spec = recipe.model.tokenizer
    if recipe.model.folder:
        model_config(recipe.model, 0)  # a missing model is the better news than its missing tokenizer
    if isinstance(spec, TrainedTokenizer):
        return spec.vocab_size
    tokenizer = load_tokenizer(spec or recipe.model.folder)
    recipe.renderer(tokenizer)
    return len(tokenizer)


def _stages(recipe: Recipe, parameters: int, max_context: int) -> Iterator[StagePlan]:
    for stage in recipe.stages:
        expected = stage.source.expected(stage.updates)
        tokens = None if expected is None else expected.batch * max_context
        passes = len(stage.needs & {"ref_logprobs"}) + bool(stage.needs - {"ref_logprobs"})
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
