"""Rubrics: how a judge is asked, and how its answer is read.

Rubrics are pure functions of text. An answer is read as a number in [0, 1], or as ``None`` if it contains
none. A rubric asks about a whole episode, about each of its turns, or about two episodes of one task compared
with each other.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from agentrl.errors import ConfigError
from agentrl.types import Group, Trajectory

Scope = Literal["episode", "turn", "pair"]


class Rubric(Protocol):
    """A way to ask a judge."""

    __slots__ = ()

    @property
    @abstractmethod
    def scope(self) -> Scope:
        """What one question is about: an episode, a turn, or a pair of episodes."""

    @abstractmethod
    def question(self, shown: Sequence[str]) -> str:
        """Return the question about one episode's text in ``shown``, or two if the scope is ``pair``."""

    @abstractmethod
    def read(self, answer: str) -> float | None:
        """Return the answer's number in [0, 1], or ``None`` if it contains none.

        For a pair, 1 means that the first episode is better.
        """


@dataclass(frozen=True, slots=True)
class Pointwise(Rubric):
    r"""Asks for one score between ``low`` and ``high``, on the last line as ``SCORE: n``.

    >>> Pointwise("Was it polite?").read("It was.\nSCORE: 9")
    0.9
    """

    criterion: str
    low: float = 0.0
    high: float = 10.0
    scope: Scope = "episode"

    def __post_init__(self) -> None:
        if not self.low < self.high or self.scope == "pair":
            raise ConfigError(
                "a score needs low < high, and the scope 'episode' or 'turn'; "
                f"found {self.low:g} to {self.high:g}, scope {self.scope!r}"
            )

    def question(self, shown: Sequence[str]) -> str:
        """Return the text for the judge: what ``shown`` holds, then the question about it."""
        what = "the agent's last action" if self.scope == "turn" else "the agent's episode"
        return (
            f"{shown[0]}\n\nJudge {what} by this criterion: {self.criterion}\nReason briefly. "
            "End with one line: SCORE: n, where n is a number "
            f"from {self.low:g} (worst) to {self.high:g} (best)."
        )

    def read(self, answer: str) -> float | None:
        """Return the answer's last score, scaled to [0, 1].

        Return ``None`` if the answer has no score, or one below ``low`` or above ``high``.
        """
        found = re.findall(r"SCORE:\s*\**\s*(-?\d+(?:\.\d+)?)", answer, re.IGNORECASE)
        if not found or not self.low <= (score := float(found[-1])) <= self.high:
            return None
        return (score - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Checklist(Rubric):
    r"""Asks for yes or no to each item; the answer's number is the share of yes.

    >>> Checklist(("asked first", "said thanks")).read("1. yes\n2. No, it did not")
    0.5
    """

    items: tuple[str, ...]
    scope: Scope = "episode"

    def __post_init__(self) -> None:
        if not self.items or self.scope == "pair":
            raise ConfigError(
                "a checklist needs items, and the scope 'episode' or 'turn'; "
                f"found {len(self.items)} items, scope {self.scope!r}"
            )

    def question(self, shown: Sequence[str]) -> str:
        """Return the text for the judge: what ``shown`` holds, then the question about it."""
        listed = "\n".join(f"{number}. {item}" for number, item in enumerate(self.items, start=1))
        what = "the agent's last action" if self.scope == "turn" else "the agent's episode"
        return (
            f"{shown[0]}\n\nFor {what}, answer each of these with yes or no, one numbered line each:\n"
            f"{listed}"
        )

    def read(self, answer: str) -> float | None:
        """Return the share of items with the answer yes; ``None`` if an item has no answer."""
        found: list[tuple[str, str]] = re.findall(
            r"^\W*(\d+)\W+(yes|no)\b", answer, re.IGNORECASE | re.MULTILINE
        )
        said = {int(number): word.lower() == "yes" for number, word in found}
        wanted = range(1, len(self.items) + 1)
        return (
            sum(said[number] for number in wanted) / len(self.items) if said.keys() >= set(wanted) else None
        )


@dataclass(frozen=True, slots=True)
class Pairwise(Rubric):
    r"""Asks which of two episodes of a task is better: A, B or TIE.

    An episode's number is the mean of its results against all others of its group. Each pair is asked once,
    in an order that depends on the episodes' content, because judges favour a position.

    >>> Pairwise("Which is kinder?").read("Hm.\nVERDICT: B")
    0.0
    """

    criterion: str
    scope: Scope = "pair"

    def question(self, shown: Sequence[str]) -> str:
        """Return the text for the judge: what ``shown`` holds, then the question about it."""
        return (
            f"Two agents were given the same task.\n\n=== A ===\n{shown[0]}\n\n=== B ===\n{shown[1]}\n\n"
            f"Compare them by this criterion: {self.criterion}\nReason briefly. "
            "End with one line: VERDICT: A, VERDICT: B or VERDICT: TIE."
        )

    def read(self, answer: str) -> float | None:
        """Return 1 for A, 0 for B and 0.5 for a tie; ``None`` if the answer has no verdict."""
        found: list[str] = re.findall(r"VERDICT:\s*\**\s*(A|B|TIE)\b", answer, re.IGNORECASE)
        return {"A": 1.0, "B": 0.0, "TIE": 0.5}[found[-1].upper()] if found else None


def transcript(trajectory: Trajectory, *, until: int | None = None, max_chars: int = 24_000) -> str:
    """Return an episode as text, up to and including turn ``until``.

    If the text is longer than ``max_chars``, its middle is replaced with a note of how much was left out. The
    agent's text is marked and fenced, so that it cannot pass for instructions to the judge.
    """
    turns = trajectory.turns if until is None else trajectory.turns[: until + 1]
    parts = []
    for turn in turns:
        parts += [
            f"<{message.role}>\n{message.content}\n</{message.role}>" for message in turn.observation.messages
        ]
        parts.append(f"<agent>\n{turn.action.text}\n</agent>")
    if until is None and trajectory.final is not None:
        parts += [
            f"<{message.role}>\n{message.content}\n</{message.role}>" for message in trajectory.final.messages
        ]
    text = "\n".join(parts)
    if len(text) > max_chars:
        cut = len(text) - max_chars
        text = (
            f"{text[: max_chars // 2]}\n[{cut} characters left out]\n{text[-(max_chars - max_chars // 2) :]}"
        )
    return text


def pairs(group: Group) -> list[tuple[int, int]]:
    """Return every pair of members once, in an order that depends on their content and not on their index."""
    said = [transcript(one) for one in group]
    return [
        (i, j) if said[i] <= said[j] else (j, i) for i in range(len(group)) for j in range(i + 1, len(group))
    ]
