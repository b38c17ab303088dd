"""Engines as values of a recipe: frozen data that opens an engine."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from agentrl.learner.spec import ModelSpec
from agentrl.policy import Engine, Sampling
from agentrl.render import Renderer


class EngineSpec(Protocol):
    """The base class of configured engines; its defaults suit an engine that computes in another process."""

    @property
    def max_context(self) -> int:
        """Maximum number of tokens of one context; 0 uses the model's own limit."""
        return 0

    @property
    def num_slots(self) -> int:
        """Number of contexts whose keys and values the engine keeps in this process."""
        return 0

    def open(
        self, model: ModelSpec, *, vocab_size: int, renderer: Renderer, sampling: Sampling, device: str
    ) -> AbstractAsyncContextManager[Engine]:
        """Open an engine for ``model``; call its ``load`` with the learner's weights before any ``act``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchEngine(EngineSpec):
    """The engine ``agentrl.engines.local.LocalEngine``: torch in this process, on the learner's device."""

    num_slots: int = 128
    """Number of contexts whose keys and values are kept; the contexts of further episodes are recomputed."""
    max_context: int = 0
    """Maximum number of tokens of one context; 0 uses the model's own limit."""

    def open(
        self, model: ModelSpec, *, vocab_size: int, renderer: Renderer, sampling: Sampling, device: str
    ) -> AbstractAsyncContextManager[Engine]:
        """Open an engine that owns a separate copy of the model, for sampling."""
        return self._open(model, vocab_size, renderer, sampling, device)

    @asynccontextmanager
    async def _open(
        self, spec: ModelSpec, vocab_size: int, renderer: Renderer, sampling: Sampling, device: str
    ) -> AsyncIterator[Engine]:
        # here: naming an engine in a recipe must not load torch
        from agentrl.engines.local import LocalEngine
        from agentrl.learner.model import build_model

        plain = dataclasses.replace(spec, lora=None, gradient_checkpointing=False, dtype="float32")
        model = build_model(plain, vocab_size, 0, device)
        limit = self.max_context or int(model.config.max_position_embeddings)
        async with LocalEngine(
            model, renderer, sampling, num_slots=self.num_slots, max_context=limit
        ) as engine:
            yield engine
