"""The interpreter of compiled games: their real text, and which actions happened in them.

The package plays a ``.z8`` through wrappers that load the game's ``.json`` for each episode and derive all admissible commands anew after
each action. Here the interpreter is only asked what nobody else knows: the text, the score that it tells, and the names of the actions that
succeeded (the traces that the package's own wrapper switches on, read with the package's own function). What an action leads to, and what
is admissible there, stands in `World`'s graph.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

from jericho import FrotzEnv
from jericho.jericho import UnsupportedGameWarning
from textworld.envs.wrappers.tw_inform7 import _detect_i7_events_debug_tags

_TOLD = {what: re.compile(rf"<{what}>\n(.*)</{what}>", re.DOTALL) for what in ("moves", "score")}
"""What the game tells about itself after every text, once it is asked to."""
_SEED = 1
"""Of the interpreter's dice; the package's own default would change with time."""
_MAX_IDLE = 64
"""Interpreters that wait for their next episode; each holds less than 2 MiB."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the game answered: its text without traces, the actions that happened, and the score where it was told."""

    text: str
    events: list[str]
    score: int | None


class Interpreter:
    """One compiled game, ready to be played any number of times."""

    def __init__(self, path: str) -> None:
        self.path = path
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UnsupportedGameWarning
            )  # it knows no score of these games; they tell it themselves
            self._frotz = FrotzEnv(path, _SEED)
        self._opening: str = self._frotz.reset()[0]
        for what in _TOLD:
            self._frotz.step(f"tw-extra-infos {what}")
        self._frotz.step("tw-trace-actions")
        self._start = self._frotz.get_state()

    def restart(self) -> str:
        """Put the game back to its start, which takes a hundredth of starting it, and return its opening text."""
        self._frotz.set_state(self._start)
        return self._opening

    def play(self, command: str) -> Reply:
        """Type one command."""
        text, told = self._frotz.step(command)[0], None
        for pattern in _TOLD.values():  # the score is last
            if told := pattern.search(text):
                text = text[: told.start()] + text[told.end() :]
        events, text = _detect_i7_events_debug_tags(text)
        return Reply(text, events, int(told[1].strip().split("\n", 1)[0]) if told else None)


class Interpreters:
    """The interpreters of one process, lent to its episodes; of those that idle, the ones used longest ago go first."""

    def __init__(self) -> None:
        self._idle: list[Interpreter] = []

    def lend(self, path: str) -> Interpreter:
        """Return an interpreter of a game that nobody else has."""
        for interpreter in reversed(self._idle):
            if interpreter.path == path:
                self._idle.remove(interpreter)
                return interpreter
        return Interpreter(path)

    def take_back(self, interpreter: Interpreter) -> None:
        """Keep an interpreter for a later episode. One whose episode broke must not come back: nobody knows its state."""
        self._idle.append(interpreter)
        del self._idle[:-_MAX_IDLE]
