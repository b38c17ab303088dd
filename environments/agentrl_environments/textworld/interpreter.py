"""The interpreter of compiled games: it provides their text, and the actions that happened in them.

The package plays a ``.z8`` file through wrappers that load the game's ``.json`` in every episode and derive
all admissible commands again after every action. Here the interpreter provides only what is known nowhere
else: the text, the score that it reports, and the names of the actions that succeeded (the package's own
debugging output, parsed with the package's own function). Successor states and admissible commands come from
`engine.GameGraph`.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

from jericho import FrotzEnv
from jericho.jericho import UnsupportedGameWarning
from textworld.envs.wrappers.tw_inform7 import _detect_i7_events_debug_tags

_REPORTS = {what: re.compile(rf"<{what}>\n(.*)</{what}>", re.DOTALL) for what in ("moves", "score")}
"""Patterns of the reports that a compiled game appends to every text once they have been switched on."""
_SEED = 1
"""Seed of the interpreter's random numbers; the package's default depends on the time."""
_MAX_IDLE = 64
"""Maximum number of idle interpreters to keep; each takes less than 2 MiB of memory."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The compiled game's answer to a command.

    ``text`` has no debugging output, ``events`` are the actions that happened, and ``score`` is the score, or
    ``None`` if the game did not report it.
    """

    text: str
    events: list[str]
    score: int | None


class Interpreter:
    """One compiled game that can be played any number of times."""

    def __init__(self, path: str) -> None:
        self.path = path
        with warnings.catch_warnings():
            # The warning says that it cannot track the score of these games; they report it themselves.
            warnings.simplefilter("ignore", UnsupportedGameWarning)
            self._frotz = FrotzEnv(path, _SEED)
        self._opening: str = self._frotz.reset()[0]
        for what in _REPORTS:
            self._frotz.step(f"tw-extra-infos {what}")
        self._frotz.step("tw-trace-actions")
        self._start = self._frotz.get_state()

    def restart(self) -> str:
        """Restore the initial state (100 times faster than starting the game); return the opening text."""
        self._frotz.set_state(self._start)
        return self._opening

    def play(self, command: str) -> Reply:
        """Enter one command, and return the game's answer."""
        text, report = self._frotz.step(command)[0], None
        for pattern in _REPORTS.values():  # after the loop, `report` is the last one: the score
            if report := pattern.search(text):
                text = text[: report.start()] + text[report.end() :]
        events, text = _detect_i7_events_debug_tags(text)
        return Reply(text, events, int(report[1].strip().split("\n", 1)[0]) if report else None)


class Interpreters:
    """The interpreters of one process, which are lent to its episodes.

    If too many interpreters are idle, the least recently used of them is dropped.
    """

    def __init__(self) -> None:
        self._idle: list[Interpreter] = []

    def lend(self, path: str) -> Interpreter:
        """Return an interpreter that no other episode uses, of the compiled game in the file ``path``."""
        for interpreter in reversed(self._idle):
            if interpreter.path == path:
                self._idle.remove(interpreter)
                return interpreter
        return Interpreter(path)

    def take_back(self, interpreter: Interpreter) -> None:
        """Keep an interpreter for a later episode.

        Do not give back an interpreter whose episode raised an error: its state is unknown.
        """
        self._idle.append(interpreter)
        del self._idle[:-_MAX_IDLE]
