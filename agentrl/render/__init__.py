"""Renderers: from the episode so far to token ids, as increments.

A renderer determines the context tokens before the next action. With ``history=None`` the context only grows:
the renderer returns the *delta* since the last action's tokens, so sampled tokens are never recreated from
text. With ``history=k`` the policy sees only the last ``k`` turns; every action then starts a new segment
(``Action.fresh``), and its prompt is the whole context.

``TagRenderer`` is for models trained from scratch, with two tags. ``agentrl.render.chat.ChatRenderer`` is for
pretrained models, with their chat template. Text from environments is never parsed for special tokens: an
observation that contains the text ``<end>`` does not end anything.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from agentrl.errors import ConfigError, TokenDrift
from agentrl.types import Action, IntArray, Observation, Trajectory, Turn, floats, ints


class Tokenizer(Protocol):
    """The part of ``transformers.PreTrainedTokenizerFast`` that a renderer uses."""

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the special tokens, which represent no text."""
        ...

    def __len__(self) -> int:
        """Return the number of ids that the tokenizer defines."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every token."""
        ...

    # transformers accepts more keywords, which change between versions; renderers pass only these
    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> Any:
        """Return the ids of ``text``; with ``split_special_tokens`` no part of it becomes a special token."""
        ...

    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> Any:
        """Return the text of the tokens ``token_ids``."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """Context tokens to add before the next action; if ``fresh``, the whole context of a new segment."""

    tokens: IntArray
    fresh: bool = False


class Renderer(Protocol):
    """Turns episodes into tokens and back, without a state, like a policy."""

    def allowed(self, vocab_size: int) -> npt.NDArray[np.bool_]:
        """Return which of a model's ``vocab_size`` ids may be sampled, ``[V]``.

        Padding, tags of the context and undefined ids may not. They are not part of the sampled distribution,
        so code that recomputes log-probabilities of actions must exclude them from the normalisation, too.
        """
        ...

    def prompt(self, turns: Sequence[Turn], observation: Observation) -> Prompt:
        """Return the tokens to add before the next action; turns without tokens are rendered as text."""
        ...

    def encode(self, text: str) -> IntArray:
        """Return the tokens of an action, including its end token."""
        ...

    def decode(self, tokens: Sequence[int] | IntArray) -> str:
        """Return the text of an action's tokens, without its end token."""
        ...

    def ended(self, tokens: Sequence[int]) -> bool:
        """Return whether an action is complete: it ends with an end token or contains a stop string."""
        ...

    def tokenise(self, trajectory: Trajectory) -> Trajectory:
        """Add tokens, with log-probability 0 and version -1, to actions that have only text."""
        ...


def context(turns: Sequence[Turn]) -> IntArray:
    """Return the context so far: prompts and tokens of all turns since the last ``fresh`` one."""
    first = max((index for index, turn in enumerate(turns) if turn.action.fresh), default=0)
    parts = [part for turn in turns[first:] for part in (turn.action.prompt, turn.action.tokens)]
    return np.concatenate(parts) if parts else ints()


def tokenise(trajectory: Trajectory, renderer: Renderer) -> Trajectory:
    """Implement ``Renderer.tokenise``; actions that have tokens stay unchanged."""
    turns: list[Turn] = []
    for turn in trajectory.turns:
        if not len(turn.action.tokens):
            prompt, tokens = renderer.prompt(turns, turn.observation), renderer.encode(turn.action.text)
            action = Action(
                turn.action.text, prompt.tokens, tokens, floats(np.zeros(len(tokens))), -1, prompt.fresh
            )
            turn = replace(turn, action=action)
        turns.append(turn)
    return replace(trajectory, turns=tuple(turns))


def check_drift(turns: Sequence[Turn], renderer: Renderer, *, first: int = 0) -> None:
    """Check every stored prompt and action, from turn ``first`` on, against what the renderer makes of it.

    Raises:
        TokenDrift: one differs; the message names the turn.
    """
    for index in range(max(first, 0), len(turns)):
        turn, action = turns[index], turns[index].action
        if not len(action.tokens):
            continue
        prompt = renderer.prompt(turns[:index], turn.observation)
        if prompt.fresh != action.fresh or not np.array_equal(prompt.tokens, action.prompt):
            raise TokenDrift(
                f"turn {index} stores a prompt of {len(action.prompt)} tokens, but its observation renders "
                f"to {len(prompt.tokens)} others; the episode was played with another renderer, tokenizer or "
                "history"
            )
        if (text := renderer.decode(action.tokens)) != action.text:
            raise TokenDrift(
                f"turn {index} stores the action {action.text!r}, but its tokens read {text!r}; actions must "
                "not be edited"
            )


@dataclass(frozen=True)
class TagRenderer:
    """Plain tags: an observation's text, ``<act>``, the action's text, ``<end>``.

    An action that the token limit cut has no ``<end>``; the next delta begins with it. Messages of one
    observation are joined by newlines.

    Raises:
        ConfigError: the tokenizer lacks a tag.
    """

    tokenizer: Tokenizer
    history: int | None = None
    """Number of past turns that the policy sees; with ``None`` it sees all, in a growing context."""
    act: str = "<act>"
    end: str = "<end>"
    stop_strings: tuple[str, ...] = ()
    """Strings that also end an action when its text contains one; they are not part of the action's text."""

    def __post_init__(self) -> None:
        check_history(self.history)
        vocabulary = self.tokenizer.get_vocab()
        missing = [tag for tag in (self.act, self.end) if tag not in vocabulary]
        if missing:
            special = sorted(
                token for token, index in vocabulary.items() if index in set(self.tokenizer.all_special_ids)
            )
            raise ConfigError(
                f"the tokenizer lacks the special tokens {missing}; it has {special}. Add them before the "
                "model is made, or name tags that it has: TagRenderer(tokenizer, act=..., end=...)"
            )
        set_field = object.__setattr__  # the dataclass is frozen; these are derived once
        set_field(self, "_act", vocabulary[self.act])
        set_field(self, "_end", vocabulary[self.end])
        set_field(self, "_ids", lru_cache(maxsize=8192)(self._encode))  # observations repeat within a group

    def prompt(self, turns: Sequence[Turn], observation: Observation) -> Prompt:
        """Return the tokens that are new since the last action, or, with a ``history``, the whole context."""
        if self.history is not None:
            window = turns[len(turns) - min(self.history, len(turns)) :]
            return Prompt(ints(self._past(window) + self._before_action(observation)), fresh=True)
        sampled = max((index for index, turn in enumerate(turns) if len(turn.action.tokens)), default=-1)
        delta: list[int] = [] if sampled < 0 else self._close(turns[sampled].action.tokens)
        return Prompt(ints(delta + self._past(turns[sampled + 1 :]) + self._before_action(observation)))

    def encode(self, text: str) -> IntArray:
        """Return the tokens of the text and ``<end>``."""
        return ints([*self._ids(text), self._end])

    def decode(self, tokens: Sequence[int] | IntArray) -> str:
        """Return the text up to a stop string, without special tokens and surrounding whitespace."""
        return cut(self._text(tokens), self.stop_strings).strip()

    def ended(self, tokens: Sequence[int]) -> bool:
        """Return whether the last token is ``<end>``, or the text contains a stop string."""
        return tokens[-1] == self._end or (
            bool(self.stop_strings) and cut(text := self._text(tokens), self.stop_strings) != text
        )

    def tokenise(self, trajectory: Trajectory) -> Trajectory:
        """Add tokens to actions that have only text."""
        return tokenise(trajectory, self)

    def allowed(self, vocab_size: int) -> npt.NDArray[np.bool_]:
        """Allow all defined ids except special ones; ``<end>`` is allowed."""
        return allowed_ids(
            vocab_size, defined=len(self.tokenizer), banned=set(self.tokenizer.all_special_ids) - {self._end}
        )

    def _past(self, turns: Sequence[Turn]) -> list[int]:
        """Return the tokens of whole turns: the sampled tokens if there are any, else those of the text."""
        ids: list[int] = []
        for turn in turns:
            tokens = turn.action.tokens if len(turn.action.tokens) else self.encode(turn.action.text)
            ids += [*self._before_action(turn.observation), *tokens.tolist(), *self._close(tokens)]
        return ids

    def _before_action(self, observation: Observation) -> list[int]:
        return [*self._ids("\n".join(message.content for message in observation.messages)), self._act]

    def _close(self, tokens: IntArray) -> list[int]:
        return [] if tokens[-1] == self._end else [self._end]

    def _text(self, tokens: Sequence[int] | IntArray) -> str:
        ids = [int(token) for token in tokens]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    # set in __post_init__, for the type checker
    _act: int = field(init=False, repr=False, compare=False)
    _end: int = field(init=False, repr=False, compare=False)
    _ids: Any = field(init=False, repr=False, compare=False)  # the cache around _encode


def allowed_ids(vocab_size: int, *, defined: int, banned: Collection[int]) -> npt.NDArray[np.bool_]:
    """Return a mask ``[V]`` of the ids below ``defined`` that are not ``banned``.

    Raises:
        ConfigError: the model's vocabulary is smaller than the tokenizer's.
    """
    if vocab_size < defined:
        raise ConfigError(
            f"the model has {vocab_size} token ids, but the tokenizer defines {defined}; make the model for "
            "this tokenizer"
        )
    mask = np.arange(vocab_size) < defined
    mask[list(banned)] = False
    return mask


def cut(text: str, stop_strings: Sequence[str]) -> str:
    """Return the text before the first stop string.

    >>> cut("look END more", ("STOP", "END"))
    'look '
    """
    return text[: min((at for stop in stop_strings if (at := text.find(stop)) >= 0), default=len(text))]


def check_history(history: int | None) -> None:
    """Raise ``ConfigError`` if ``history``, a number of turns, is negative."""
    if history is not None and history < 0:
        raise ConfigError(f"history must be None (all turns) or at least 0, but it is {history}")
