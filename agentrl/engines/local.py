"""The local engine: a model in this process that serves many episodes in one running batch.

Each step of the engine feeds all pending tokens: one for each action under way, and the new part of the
context for each action that begins. A step is one forward pass, or several if many tokens are pending.
Actions join and leave at any step. Keys and values stay in their slot between turns, so only the delta of a
turn is computed. A context that lost its slot is computed again, with the same bits (``cache`` explains why).
A context with which several actions begin in the same step, as in a group, is computed once and copied.

Everything runs in the event loop, one step per iteration of the loop: no thread, no process, and ``pdb``
works. The tokens and log-probabilities of an action are a function of (weights, context, sampling, seed)
alone, to the last bit.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import torch

from agentrl.engines.cache import Feed
from agentrl.engines.forward import forward_for
from agentrl.engines.sampling import draw, log_distribution, uniforms
from agentrl.engines.slots import Slots, digest
from agentrl.errors import AgentRLError, ConfigError, ContextFull, EngineError, boundary
from agentrl.policy import Policy, Sampling
from agentrl.render import Prompt, Renderer, check_drift, context
from agentrl.types import Action, IntArray, Observation, Turn, floats, ints

MAX_FED = 8192
"""Maximum number of tokens of one step; further tokens wait for the next step."""
PASS = 512
"""Maximum number of tokens of one forward pass, unless they are of a single context: intermediate results
should fit into a processor's cache."""


@dataclass(slots=True, eq=False)
class _Request:
    """A call of ``act`` that is not answered yet: what was asked, and the tokens so far."""

    turns: Sequence[Turn]
    past: IntArray
    """Tokens of the context before ``prompt``, the delta."""
    prompt: Prompt
    sampling: Sampling
    seed: int
    answer: asyncio.Future[Action]
    pending: IntArray = field(default_factory=ints)
    """Tokens that are still to be fed to the slot."""
    slot: int = -1
    filled: int = 0
    """Number of tokens in the slot."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class LocalEngine:
    """An ``Engine`` over a causal language model of transformers.

    The engine owns the model: it fuses the weights in place, and only ``load`` may replace them. Pass a copy
    that nothing else uses.

    Args:
        model: a ``PreTrainedModel`` for causal language modelling, on its device and in its dtype.
        renderer: turns episodes into tokens.
        sampling: how tokens are drawn; ``using`` returns a view that draws them differently.
        num_slots: number of contexts whose keys and values are kept. About twice the number of concurrent
            episodes is a good value: contexts of ended episodes stay until they are evicted, least recently
            used first.
        max_context: maximum number of tokens of one context; by default the limit of the model, at most 2048.
        version: version of the weights that the model holds now.

    Raises:
        ConfigError: the model cannot be served (slots cannot hold its attention), or does not fit the
            tokenizer.
    """

    def __init__(
        self,
        model: Any,
        renderer: Renderer,
        sampling: Sampling | None = None,
        *,
        num_slots: int = 128,
        max_context: int | None = None,
        version: int = 0,
    ) -> None:
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", 2048)
        if num_slots < 1 or (max_context is not None and not 1 <= max_context <= limit):
            raise ConfigError(
                f"the engine needs num_slots of at least 1 (found {num_slots}), "
                f"and max_context from 1 to the model's {limit} (found {max_context})"
            )
        self.renderer = renderer
        self.max_context = min(limit, 2048) if max_context is None else max_context
        self._model = model.eval()
        self._sampling = sampling or Sampling()
        self._version = version
        self._slots = Slots(num_slots)
        self._forward = forward_for(model, num_slots=num_slots, max_context=self.max_context)
        allowed_V = renderer.allowed(model.get_output_embeddings().weight.shape[0])
        self._banned_V = None if allowed_V.all() else torch.from_numpy(~allowed_V).to(model.device)
        self._waiting: deque[_Request] = deque()
        self._active: list[_Request] = []
        self._loading = 0
        self._drained = asyncio.Event()
        self._load_order = asyncio.Lock()
        self._runner: asyncio.Task[None] | None = None

    async def __aenter__(self) -> LocalEngine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the engine and cancel the actions that are not finished."""
        runner, self._runner = self._runner, None
        if runner is not None and not runner.done():
            runner.cancel()
            await asyncio.wait([runner])
        for request in (*self._active, *self._waiting):
            request.answer.cancel()
        self._active, self._waiting = [], deque()

    @property
    def version(self) -> int:
        """Version of the weights in use."""
        return self._version

    def using(self, sampling: Sampling) -> Policy:
        """Return a view of this engine with another sampling; everything else is shared."""
        return _View(self, sampling)

    async def act(self, turns: Sequence[Turn], observation: Observation, *, seed: int) -> Action:
        """Return the next action.

        Raises:
            ContextFull: the context has no room for an action of ``max_tokens``.
            TokenDrift: the tokens stored in ``turns`` differ from what the renderer makes of the same turns.
            EngineError: the forward pass failed.
        """
        return await self.act_with(turns, observation, seed=seed, sampling=self._sampling)

    async def act_with(
        self, turns: Sequence[Turn], observation: Observation, *, seed: int, sampling: Sampling
    ) -> Action:
        """Return the next action as ``act`` does, with the given sampling."""
        check_drift(turns, self.renderer, first=len(turns) - 1)
        prompt = self.renderer.prompt(turns, observation)
        past = ints() if prompt.fresh else context(turns)
        length = len(past) + len(prompt.tokens)
        if length + sampling.max_tokens > self.max_context:
            raise ContextFull(
                f"the context holds {length} tokens on turn {len(turns)}; with {sampling.max_tokens} more "
                f"for the action it passes the limit of {self.max_context}. Raise max_context, give the "
                "renderer a history, or shorten observations"
            )
        request = _Request(turns, past, prompt, sampling, seed, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._wake()
        return await request.answer

    async def load(self, weights: Mapping[str, object], *, version: int) -> None:
        """Wait until all actions that have begun are finished, copy the weights, and discard cached contexts.

        ``weights`` are named as in the model's ``state_dict``; tied weights may be left out.

        Raises:
            ConfigError: a name or shape differs from the model's; nothing was copied.
        """
        self._loading += 1
        try:
            async with self._load_order:
                while self._active:
                    self._drained.clear()
                    await self._drained.wait()
                _copy_weights(self._model, weights)
                self._forward.refresh()
                self._slots.clear()
                self._version = version
        finally:
            self._loading -= 1
            self._wake()

    def _wake(self) -> None:
        if self._runner is None or self._runner.done():
            self._runner = asyncio.get_running_loop().create_task(self._run(), name="local engine")

    async def _run(self) -> None:
        """Make steps while there are actions to serve; give control to the event loop between the steps."""
        while self._active or (self._waiting and not self._loading):
            try:
                with boundary(EngineError, "the engine's forward pass"):
                    self._admit()
                    if self._active:
                        self._step()
            except AgentRLError as problem:
                self._fail(problem)
            if not self._active:
                self._drained.set()
            await asyncio.sleep(0)

    def _fail(self, problem: AgentRLError) -> None:
        """Fail every action that has a slot with the error, and empty the slots: their content is unknown."""
        for request in self._active:
            if request.slot >= 0:  # a negative slot was released before the error
                self._slots.drop(request.slot)
            if not request.answer.done():
                request.answer.set_exception(problem)
        self._active = []

    def _admit(self) -> None:
        """Give slots to waiting actions, in order, until no slot is free."""
        while self._waiting and not self._loading:
            request = self._waiting[0]
            if not request.answer.done():
                taken = self._slots.take(digest(request.past) if len(request.past) else b"")
                if taken is None:
                    return
                self._place(request, *taken)
            self._waiting.popleft()

    def _place(self, request: _Request, slot: int, held: bool) -> None:
        """Begin an action in a slot.

        ``held`` says that the slot holds the action's past context, except for the last sampled token.
        Otherwise the whole past is fed again, and therefore checked again as a whole. An action with a fresh
        prompt has no past.
        """
        if not (held or request.prompt.fresh):
            try:
                with boundary(EngineError, "the renderer"):
                    check_drift(request.turns, self.renderer)
            except AgentRLError as problem:
                self._slots.drop(slot)
                request.answer.set_exception(problem)
                return
        request.slot, request.filled = slot, len(request.past) - 1 if held else 0
        request.pending = np.concatenate([request.past[request.filled :], request.prompt.tokens])
        self._active.append(request)

    @torch.inference_mode()
    def _step(self) -> None:
        """Feed the pending tokens, then draw a new token for each request that has no pending token left."""
        attention, room = self._forward.attention, MAX_FED
        feeds: list[Feed] = []
        ready: list[tuple[int, _Request]] = []
        begun: dict[bytes, int] = {}  # contexts that begin in this step -> their feed
        # a feed -> further slots whose context begins with the same tokens
        copies: defaultdict[int, list[int]] = defaultdict(list)
        for request in self._active:
            content = b"" if request.filled else request.pending.tobytes()
            if content in begun:
                row, fed = begun[content], request.pending
                copies[row].append(request.slot)
            elif len(fed := request.pending[:room]):
                row = len(feeds)
                feeds.append(Feed(request.slot, request.filled, fed))
                room -= len(fed)
                if content and len(fed) == len(request.pending):
                    begun[content] = row
            else:
                continue
            request.filled += len(fed)
            request.pending = request.pending[len(fed) :]
            if not len(request.pending):
                ready.append((row, request))
        logits = [self._forward(attention.plan(part))[: len(part)] for part in _passes(feeds)]
        logits_RV = logits[0] if len(logits) == 1 else torch.cat(logits)
        for row, slots in copies.items():
            attention.copy(feeds[row].slot, slots, length=len(feeds[row].tokens))
        if ready:
            self._draw(logits_RV[[row for row, _ in ready]], [request for _, request in ready])
        self._active = [request for request in self._active if not self._finished(request)]

    def _draw(self, logits_RV: torch.Tensor, requests: Sequence[_Request]) -> None:
        if self._banned_V is not None:
            logits_RV = logits_RV.masked_fill(self._banned_V, -torch.inf)
        seeds_R = np.array([request.seed for request in requests], np.uint64)
        counters_R = np.array([len(request.tokens) for request in requests], np.uint64)
        logprobs_RV = log_distribution(logits_RV, [request.sampling for request in requests])
        tokens_R, logprobs_R = draw(logprobs_RV, uniforms(seeds_R, counters_R))
        for request, token, logprob in zip(requests, tokens_R.tolist(), logprobs_R.tolist(), strict=True):
            request.tokens.append(token)
            request.logprobs.append(logprob)
            request.pending = ints([token])

    def _finished(self, request: _Request) -> bool:
        """Return whether the request has ended; if so, answer it, and keep or empty its slot."""
        slot = request.slot
        if request.answer.done():  # cancelled by the caller
            request.slot = -1
            self._slots.drop(slot)
            return True
        if not request.tokens:
            return False
        ended = self.renderer.ended(request.tokens)
        if not ended and len(request.tokens) < request.sampling.max_tokens:
            return False
        action = Action(
            self.renderer.decode(request.tokens),
            request.prompt.tokens,
            ints(request.tokens),
            floats(request.logprobs),
            self._version,
            request.prompt.fresh,
            clipped=not ended,
        )
        request.slot = -1  # released: a later error of another request must not release it again
        if request.prompt.fresh:
            self._slots.drop(slot)
        else:
            self._slots.keep(slot, digest(np.concatenate([request.past, action.prompt, action.tokens])))
        request.answer.set_result(action)
        return True


@dataclass(frozen=True, slots=True)
class _View:
    """A policy that samples from an engine in another way than the engine's own ``sampling``."""

    engine: LocalEngine
    sampling: Sampling

    async def act(self, turns: Sequence[Turn], observation: Observation, *, seed: int) -> Action:
        return await self.engine.act_with(turns, observation, seed=seed, sampling=self.sampling)


def _passes(feeds: Sequence[Feed]) -> list[list[Feed]]:
    """Split a step's feeds, in order, into forward passes, each of at most ``PASS`` tokens or one feed."""
    passes: list[list[Feed]] = []
    room = 0
    for feed in feeds:
        if not passes or len(feed.tokens) > room:
            passes.append([])
            room = PASS
        passes[-1].append(feed)
        room -= len(feed.tokens)
    return passes


@torch.no_grad()
def _copy_weights(model: Any, weights: Mapping[str, Any]) -> None:
    own: dict[str, torch.Tensor] = model.state_dict()
    missing = sorted({name for name, _ in model.named_parameters()} - set(weights))
    unknown = sorted(set(weights) - set(own))
    if missing or unknown:
        raise ConfigError(
            f"the weights do not fit the model: missing {missing[:3]}, unknown {unknown[:3]} "
            f"(of {len(weights)} given)"
        )
    new = {name: torch.as_tensor(value) for name, value in weights.items()}
    wrong = [
        f"{name} {tuple(value.shape)} for {tuple(own[name].shape)}"
        for name, value in new.items()
        if value.shape != own[name].shape
    ]
    if wrong:
        raise ConfigError(f"the weights do not fit the model: {', '.join(wrong[:3])}")
    for name, value in new.items():
        own[name].copy_(value)
