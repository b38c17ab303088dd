"""Chat templates as increments, for pretrained models.

A template renders whole conversations. The increment of a turn is found by rendering it after a fixed base
conversation and removing the base, so every increment is the template's own text, and sampled tokens are
never rendered again. This is exact only for templates that never rewrite earlier messages, which is tested
when the renderer is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from agentrl.errors import ConfigError, boundary
from agentrl.render import Prompt, Tokenizer, allowed_ids, check_history, cut, tokenise
from agentrl.types import IntArray, Message, Observation, Trajectory, Turn, ints

_ASKED, _SAID, _THOUGHT = (
    Message("user", "first probe"),
    "second probe",
    "<think>\nthird probe\n</think>\n\nsecond probe",
)

_MEND = (
    "Give the renderer a history (each action then has a separate context), or a template that leaves "
    "earlier messages unchanged"
)


class ChatTokenizer(Tokenizer, Protocol):
    """A tokenizer with a chat template."""

    @property
    def all_special_tokens(self) -> list[str]:
        """Names of the special tokens."""
        ...

    @property
    def eos_token_id(self) -> Any:
        """Id of the token that ends a text, or ``None``."""
        ...

    @property
    def pad_token_id(self) -> Any:
        """Id of the padding token, or ``None``."""
        ...

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        add_generation_prompt: bool,
        tokenize: bool,
        **options: Any,
    ) -> Any:
        """Return the text of a conversation."""
        ...


@dataclass(frozen=True)
class ChatRenderer:
    """Renders episodes with the chat template of a tokenizer.

    A special token that is spelled out in a message is broken by a space, so that it remains text. With a
    ``history``, the template renders the visible turns as a whole for every action; system messages of the
    first turn stay visible.

    Raises:
        ConfigError: there is no template, it rewrites earlier messages, or it ends answers without a special
            token.
    """

    tokenizer: ChatTokenizer
    history: int | None = None
    """Number of past turns that the policy sees; with ``None`` it sees all, in a growing context."""
    stop_strings: tuple[str, ...] = ()
    """Strings that also end an action when its text contains one; they are not part of the action's text."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the template, such as ``enable_thinking``."""

    def __post_init__(self) -> None:
        check_history(self.history)
        special = sorted(self.tokenizer.all_special_tokens, key=len, reverse=True)
        set_field = object.__setattr__  # the dataclass is frozen; these are derived once
        set_field(self, "_special", re.compile("|".join(map(re.escape, special)) or r"(?!)"))
        asked = self._text([_ASKED], ask=True)
        answered = self._text([_ASKED, Message("assistant", _SAID)], ask=False)
        at = answered.rfind(_SAID) + len(_SAID)
        after = self._ids(answered[at:])
        if not after or after[0] not in self.tokenizer.all_special_ids:
            raise ConfigError(
                f"the chat template ends an answer with {answered[at:]!r}, which does not begin with a "
                "special token, so that an action would have no end; use a template that closes answers "
                "with one"
            )
        end_text = self.tokenizer.decode(
            [after[0]], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        set_field(self, "_end", after[0])
        set_field(self, "_base", asked + _SAID + end_text)
        if self.history is None:
            self._check_increments(asked, end_text)

    def prompt(self, turns: Sequence[Turn], observation: Observation) -> Prompt:
        """Return the tokens that are new since the last action, or, with a ``history``, the whole context."""
        if self.history is not None:
            shown = len(turns) - min(self.history, len(turns))
            system = [
                message
                for turn in turns[:1]
                if shown
                for message in turn.observation.messages
                if message.role == "system"
            ]
            return Prompt(
                ints(self._ids(self._text([*system, *_messages(turns[shown:], observation)], ask=True))),
                fresh=True,
            )
        sampled = max((index for index, turn in enumerate(turns) if len(turn.action.tokens)), default=-1)
        messages = _messages(turns[sampled + 1 :], observation)
        if sampled < 0:
            return Prompt(ints(self._ids(self._text(messages, ask=True))))
        close = [] if turns[sampled].action.tokens[-1] == self._end else [self._end]
        return Prompt(ints(close + self._ids(self._increment(messages))))

    def encode(self, text: str) -> IntArray:
        """Return the tokens of the text and the token that ends an answer."""
        return ints(
            [*self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True), self._end]
        )

    def decode(self, tokens: Sequence[int] | IntArray) -> str:
        """Return the text up to a stop string, without special tokens and surrounding whitespace."""
        return cut(self._plain(tokens), self.stop_strings).strip()

    def ended(self, tokens: Sequence[int]) -> bool:
        """Return whether the last token ends an answer or a text, or the text contains a stop string."""
        if tokens[-1] in (self._end, self.tokenizer.eos_token_id):
            return True
        return bool(self.stop_strings) and cut(text := self._plain(tokens), self.stop_strings) != text

    def tokenise(self, trajectory: Trajectory) -> Trajectory:
        """Add tokens to actions that have only text."""
        return tokenise(trajectory, self)

    def allowed(self, vocab_size: int) -> npt.NDArray[np.bool_]:
        """Allow all defined ids except padding."""
        padding = {self.tokenizer.pad_token_id} - {None, self._end, self.tokenizer.eos_token_id}
        return allowed_ids(vocab_size, defined=len(self.tokenizer), banned=padding)

    def _check_increments(self, asked: str, end_text: str) -> None:
        """Check that whole conversations of three turns, with and without thinking, equal their increments.

        ``asked`` is the text of the first question, ``end_text`` that after an answer. A difference means
        that the template rewrites earlier messages, and raises ``ConfigError``.
        """
        for said in (_SAID, _THOUGHT):
            grown, messages = asked, [_ASKED]
            for _ in range(2):
                messages += [Message("assistant", said), _ASKED]
                grown += said + end_text + self._increment([_ASKED])
                whole = self._text(messages, ask=True)
                if whole != grown:
                    same = next(
                        (
                            at
                            for at, (one, other) in enumerate(zip(whole, grown, strict=False))
                            if one != other
                        ),
                        len(whole),
                    )
                    then, now = whole[max(same - 30, 0) : same + 40], grown[max(same - 30, 0) : same + 40]
                    raise _rewrites(then, now)

    def _increment(self, messages: Sequence[Message]) -> str:
        """Return the text that the template adds for ``messages`` between an answer and the next one."""
        whole = self._text([_ASKED, Message("assistant", _SAID), *messages], ask=True)
        if not whole.startswith(self._base):
            then, now = whole[: len(self._base)], self._base
            raise _rewrites(then, now)
        return whole[len(self._base) :]

    def _text(self, messages: Sequence[Message], *, ask: bool) -> str:
        if any(message.images for message in messages):
            raise ConfigError("the chat renderer cannot show images; use an environment that shows text")
        conversation = [
            {
                "role": message.role,
                "content": self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", message.content),
            }
            for message in messages
        ]
        with boundary(
            ConfigError,
            f"the chat template, on messages of the roles {[message.role for message in messages]},",
        ):
            return str(
                self.tokenizer.apply_chat_template(
                    conversation, add_generation_prompt=ask, tokenize=False, **self.options
                )
            )

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False))

    def _plain(self, tokens: Sequence[int] | IntArray) -> str:
        ids = [int(token) for token in tokens]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    # set in __post_init__, for the type checker
    _special: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _end: int = field(init=False, repr=False, compare=False)
    _base: str = field(init=False, repr=False, compare=False)


def _rewrites(then: str, now: str) -> ConfigError:
    return ConfigError(
        f"the chat template rewrites earlier messages: later it reads {then!r} where it had read {now!r}. "
        f"{_MEND}"
    )


def _messages(turns: Sequence[Turn], observation: Observation) -> list[Message]:
    messages: list[Message] = []
    for turn in turns:
        messages += [*turn.observation.messages, Message("assistant", turn.action.text)]
    return [*messages, *observation.messages]
