"""One episode of a text game, on either back end."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agentrl.types import Observation, Step
from agentrl_environments.textworld.engine import PlanTracker, World
from agentrl_environments.textworld.interpreter import Interpreter

_REFUSED = "xyzzy"
"""What the interpreter is told in place of a text that it must not see: no verb of any game."""
_ALIASES = frozenset(["n", "s", "e", "w", "north", "south", "east", "west", "l", "x", "i", "get", "pick"])


@dataclass(frozen=True)
class View:
    """How an episode shows and measures itself: the options of `TextWorld` that matter while playing."""

    brief: bool
    show_actions: bool
    intermediate: bool
    max_turns: int

    def observation(
        self, text: str, commands: tuple[str, ...], *, plan: tuple[str, ...] = (), over: bool = False
    ) -> Observation:
        """Return what is shown; a game that is over lists no commands."""
        if over:
            commands = ()
        if self.show_actions and commands:
            text += (" ; can " if self.brief else "\n\nYou can: ") + " , ".join(commands)
        return Observation.text(text, actions=commands, plan=plan)


class _Episode:
    """What both back ends share: the walk through the game's graph, the turn limit and the signals."""

    def __init__(self, world: World, view: View) -> None:
        self.world, self.view = world, view
        self.place = world.start
        self._tracker = PlanTracker(world.game, world.start.state) if view.intermediate else None
        self._turns = 0
        self._score = 0.0

    def first(self, text: str) -> Observation:
        """Return the first observation: the goal, the start, and the expert's plan."""
        if self.view.brief:
            text = f"goal {self.world.plan[-1]} ; {text}"
        return self.view.observation(text, self.place.commands, plan=self.world.plan)

    def go(self, command: str) -> None:
        """Follow an admissible command to the place that it leads to."""
        before, self.place = self.place, self.world.step(self.place, command)
        if self._tracker and self.place is not before:
            self._tracker.follow(before.actions[command], self.place)

    def tell(self, command: str | None, won: bool, lost: bool) -> str:
        """Return the brief text, with what just happened before it; ``command`` is ``None`` where it was refused."""
        text = self.place.text(self.world.labels)
        if won or lost:
            return f"{'won' if won else 'lost'} ; {text}"
        if command is None:
            return f"invalid ; {text}"
        note = self.world.notes.get(command) if self.world.notes else None
        return f"{note} ; {text}" if note else text

    def result(self, text: str, *, score: float, won: bool, lost: bool, valid: bool) -> Step:
        """Return a step. The reward is the score that this turn gained."""
        self._turns += 1
        gained, self._score = score - self._score, score
        info = {"success": float(won), "valid": float(valid), "score": gained, "lost": float(lost)}
        over = won or lost
        if self._tracker:
            change = self._tracker.change()
            info["intermediate"] = (1.0 if won else -1.0) if over else change
        observation = self.view.observation(text, self.place.commands, over=over)
        return Step(
            observation,
            gained,
            terminated=over,
            truncated=not over and self._turns >= self.view.max_turns,
            info=info,
        )


class FactsEpisode(_Episode):
    """Plays the game's logic; the text is the brief one."""

    async def reset(self) -> Observation:
        """Return the first observation."""
        return self.first(self.place.text(self.world.labels))

    async def step(self, action: str) -> Step:
        """Play one command."""
        command = self.place.understand(action)
        if command is not None:
            self.go(command)
        place = self.place
        text = self.tell(command, place.won, place.lost)
        return self.result(text, score=place.score, won=place.won, lost=place.lost, valid=command is not None)


class CompiledEpisode(_Episode):
    """Plays the compiled game, which has the last word on what happened, on the score and on the end."""

    def __init__(self, world: World, view: View, game: Interpreter) -> None:
        super().__init__(world, view)
        self._game = game
        self._verbs = frozenset(world.game.verbs) | _ALIASES

    async def reset(self) -> Observation:
        """Return the first observation."""
        opening = self._game.restart()
        return self.first(
            self.place.text(self.world.labels)
            if self.view.brief
            else clean(opening, self.world.game.objective)
        )

    async def step(self, action: str) -> Step:
        """Play one command."""
        typed = " ".join(action.split())
        command = self.place.understand(typed)
        reply = self._game.play(command or (typed if self._typable(typed) else _REFUSED))
        understood = command is not None
        for event in reply.events:
            happened = self.world.command_of(self.place, event)
            if happened is not None:
                self.go(happened)
                understood = True
        won, lost = "*** The End ***" in reply.text, "*** You lost! ***" in reply.text
        text = (
            self.tell((command or typed) if understood else None, won, lost)
            if self.view.brief
            else clean(reply.text)
        )
        return self.result(
            text,
            score=self._score if reply.score is None else reply.score,
            won=won,
            lost=lost,
            valid=understood,
        )

    def _typable(self, typed: str) -> bool:
        """Return whether the interpreter may see ``typed``: plain short text that begins with a verb of the game.

        It hangs on some texts that no player types, and has commands of its own (``restart``, ``undo``, ``save`` to a file) that the
        package's tracking does not follow.
        """
        plain = typed.isascii() and typed.isprintable() and len(typed) <= 100
        return plain and typed.lower().partition(" ")[0] in self._verbs


def clean(feedback: str, objective: str = "") -> str:
    """Return the compiled game's text without banner, prompt and status line; the banner ends where ``objective`` begins."""
    text = re.split(r"\n>", feedback, maxsplit=1)[0]
    if objective:
        start = text.find(objective.strip().split("\n", 1)[0][:40])
        text = text[max(0, start) :]
    return re.sub(r"\n{3,}", "\n\n", text).strip()
