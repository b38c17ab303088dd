"""The local engine: a model in this process, many episodes in one running batch.

Every step of the engine feeds whatever is to be fed: one token for each action under way, and the new part of the context for each
action that begins; it is one forward pass, or several where much begins at once. Actions join and leave at any step. Keys and values
stay in their slot between turns, so only the delta of a turn is computed; a context that lost its slot is computed again, with the
same bits (``cache`` says why). A context that several actions begin with at once, as in a group, is computed once and copied.

It all runs in the event loop, one step between two turns of the loop: no thread, no process, and ``pdb`` works. An action's tokens
and log-probabilities are a function of (weights, context, sampling, seed) alone, to the last bit.
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

from agentrl.engines.cache import Feed, Slots, digest
from agentrl.engines.forward import forward_for
from agentrl.engines.sampling import draw, log_distribution, uniforms
from agentrl.errors import AgentRLError, ConfigError, ContextFull, EngineError, boundary
from agentrl.policy import Policy, Sampling
from agentrl.render import Prompt, Renderer, check_drift, context
from agentrl.types import Action, IntArray, Observation, Turn, floats, ints

MAX_FED = 8192
"""Most tokens of one step: what begins beside them waits for the next."""
PASS = 512
"""Most tokens of one forward pass, unless of a single context: what lies between two products is to stay in a processor's cache."""


@dataclass(slots=True, eq=False)
class _Request:
    """An action under way."""

    turns: Sequence[Turn]
    past: IntArray
    """Context before the delta."""
    prompt: Prompt
    sampling: Sampling
    seed: int
    answer: asyncio.Future[Action]
    pending: IntArray = field(default_factory=ints)
    """Tokens that are not yet in the slot."""
    slot: int = -1
    filled: int = 0
    """Tokens in the slot."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class LocalEngine:
    """An ``Engine`` over a causal language model of transformers.

    The model is the engine's from here on: its weights are fused in place, and ``load`` alone replaces them. Give it a copy of its own.

    Args:
        model: a ``PreTrainedModel`` for causal language modelling, on its device and in its dtype.
        renderer: turns episodes into tokens.
        sampling: how tokens are drawn, unless a view made by ``using`` says otherwise.
        num_slots: contexts whose keys and values are kept. About twice the number of episodes at once: those that have ended are
            recognised only by not being used for long.
        max_context: most tokens of one context; by default what the model was made for, at most 2048.
        version: version of the weights that the model holds now.

    Raises:
        ConfigError: the model cannot be served (an attention that slots cannot hold), or does not fit the tokenizer.
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
        """Stop; actions under way are cancelled."""
        runner, self._runner = self._runner, None
        if runner is not None and not runner.done():
            runner.cancel()
            await asyncio.wait([runner])
        for request in (*self._active, *self._waiting):
            request.answer.cancel()
        self._active, self._waiting = [], deque()

    @property
    def version(self) -> int:
        """Version of the weights that act now."""
        return self._version

    def using(self, sampling: Sampling) -> Policy:
        """Return a view of this engine that samples otherwise; everything else is shared."""
        return _View(self, sampling)

    async def act(self, turns: Sequence[Turn], observation: Observation, *, seed: int) -> Action:
        """Return the next action.

        Raises:
            ContextFull: the context has no room for an action of ``max_tokens``.
            TokenDrift: stored turns are not what the renderer makes of them.
            EngineError: the forward pass broke.
        """
        return await self.act_with(turns, observation, seed=seed, sampling=self._sampling)

    async def act_with(
        self, turns: Sequence[Turn], observation: Observation, *, seed: int, sampling: Sampling
    ) -> Action:
        """``act``, with a sampling of its own."""
        check_drift(turns, self.renderer, first=len(turns) - 1)
        prompt = self.renderer.prompt(turns, observation)
        past = ints() if prompt.fresh else context(turns)
        length = len(past) + len(prompt.tokens)
        if length + sampling.max_tokens > self.max_context:
            raise ContextFull(
                f"the context holds {length} tokens on turn {len(turns)}; with {sampling.max_tokens} more for the action it passes the "
                f"limit of {self.max_context}. Raise max_context, give the renderer a history, or shorten observations"
            )
        request = _Request(turns, past, prompt, sampling, seed, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._wake()
        return await request.answer

    async def load(self, weights: Mapping[str, object], *, version: int) -> None:
        """Wait until the actions under way have ended, then copy the weights and forget every cached context.

        ``weights`` are named as in the model's ``state_dict``; tied ones may be left out.

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
        """Step while there is anything to do, and let the event loop turn between steps."""
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
        """Answer every action under way with the error; what their slots hold is unknown."""
        for request in self._active:
            if request.slot >= 0:  # else it was given back before the error
                self._slots.drop(request.slot)
            if not request.answer.done():
                request.answer.set_exception(problem)
        self._active = []

    def _admit(self) -> None:
        """Give waiting actions a slot, in their order, as long as there are slots."""
        while self._waiting and not self._loading:
            request = self._waiting[0]
            if not request.answer.done():
                taken = self._slots.take(digest(request.past) if len(request.past) else b"")
                if taken is None:
                    return
                self._place(request, *taken)
            self._waiting.popleft()

    def _place(self, request: _Request, slot: int, held: bool) -> None:
        """Begin an action in a slot that holds its past, but for the last token sampled; or else begin from nothing.

        A past that is fed again is checked again, whole; a fresh prompt feeds none of it.
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
        """Feed what is pending, and draw a token for each row that has nothing pending after it."""
        attention, room = self._forward.attention, MAX_FED
        feeds: list[Feed] = []
        ready: list[tuple[int, _Request]] = []
        begun: dict[bytes, int] = {}  # contexts that begin with this step -> their feed
        copies: defaultdict[int, list[int]] = defaultdict(
            list
        )  # a feed -> further slots that begin with its context
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
        """Answer a request that has ended, keep its slot for the next turn, and say so."""
        slot = request.slot
        if request.answer.done():  # cancelled by whoever asked
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
        request.slot = -1  # given back: an error of another request must not give it back again
        if request.prompt.fresh:
            self._slots.drop(slot)
        else:
            self._slots.keep(slot, digest(np.concatenate([request.past, action.prompt, action.tokens])))
        request.answer.set_result(action)
        return True


@dataclass(frozen=True, slots=True)
class _View:
    """An engine seen through another sampling."""

    engine: LocalEngine
    sampling: Sampling

    async def act(self, turns: Sequence[Turn], observation: Observation, *, seed: int) -> Action:
        return await self.engine.act_with(turns, observation, seed=seed, sampling=self.sampling)


def _passes(feeds: Sequence[Feed]) -> list[list[Feed]]:
    """Divide a step's feeds, in order, into forward passes of at most ``PASS`` tokens, or of one feed."""
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
            f"the weights do not fit the model: missing {missing[:3]}, unknown {unknown[:3]} (of {len(weights)} given)"
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
