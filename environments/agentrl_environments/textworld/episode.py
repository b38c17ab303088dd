"""One episode of a text game, on either back end."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agentrl.types import Observation, Step
from agentrl_environments.textworld.engine import GameGraph, PlanTracker
from agentrl_environments.textworld.interpreter import Interpreter

_REFUSED = "xyzzy"
"""Text sent to the interpreter in place of a text that it must not see. It is not a verb of any game."""
_ALIASES = frozenset(["n", "s", "e", "w", "north", "south", "east", "west", "l", "x", "i", "get", "pick"])


@dataclass(frozen=True)
class View:
    """The options of `TextWorld` that matter while an episode is played."""

    brief: bool
    show_actions: bool
    intermediate: bool
    max_turns: int

    def observation(
        self, text: str, commands: tuple[str, ...], *, plan: tuple[str, ...] = (), over: bool = False
    ) -> Observation:
        """Return an observation with the admissible commands, or with none if the game is ``over``."""
        if over:
            commands = ()
        if self.show_actions and commands:
            text += (" ; can " if self.brief else "\n\nYou can: ") + " , ".join(commands)
        return Observation.text(text, actions=commands, plan=plan)


class _GameEpisode:
    """What the episodes of both back ends share: the position in the game's graph, turn limit and signals."""

    def __init__(self, graph: GameGraph, view: View) -> None:
        self.graph, self.view = graph, view
        self.node = graph.start
        self._tracker = PlanTracker(graph.game, graph.start.state) if view.intermediate else None
        self._turns = 0
        self._score = 0.0

    def first(self, text: str) -> Observation:
        """Return the first observation: the goal, the text of the start, and the expert's plan."""
        if self.view.brief:
            text = f"goal {self.graph.plan[-1]} ; {text}"
        return self.view.observation(text, self.node.commands, plan=self.graph.plan)

    def move(self, command: str) -> None:
        """Move to the node that an admissible command leads to."""
        before, self.node = self.node, self.graph.step(self.node, command)
        if self._tracker and self.node is not before:
            self._tracker.follow(before.actions[command], self.node)

    def brief_text(self, command: str | None, won: bool, lost: bool) -> str:
        """Return the brief text of the current node, after a prefix that says what the command did.

        ``command`` is ``None`` if it was refused.
        """
        text = self.node.text(self.graph.labels)
        if won or lost:
            return f"{'won' if won else 'lost'} ; {text}"
        if command is None:
            return f"invalid ; {text}"
        note = self.graph.notes.get(command)
        return f"{note} ; {text}" if note else text

    def result(self, text: str, *, score: float, won: bool, lost: bool, valid: bool) -> Step:
        """Return the step that ends this turn. Its reward is the score gained on this turn.

        ``score`` is the game's score so far, and ``valid`` says whether the command was understood.
        """
        self._turns += 1
        gained, self._score = score - self._score, score
        info = {"success": float(won), "valid": float(valid), "score": gained, "lost": float(lost)}
        over = won or lost
        if self._tracker:
            change = self._tracker.change()
            info["intermediate"] = (1.0 if won else -1.0) if over else change
        observation = self.view.observation(text, self.node.commands, over=over)
        return Step(
            observation,
            gained,
            terminated=over,
            truncated=not over and self._turns >= self.view.max_turns,
            info=info,
        )


class FactsEpisode(_GameEpisode):
    """An episode on the game's logic (back end ``facts``), with brief texts."""

    async def reset(self) -> Observation:
        """Return the first observation of the game."""
        return self.first(self.node.text(self.graph.labels))

    async def step(self, action: str) -> Step:
        """Play one command, and return what happened."""
        command = self.node.understand(action)
        if command is not None:
            self.move(command)
        node = self.node
        text = self.brief_text(command, node.won, node.lost)
        return self.result(text, score=node.score, won=node.won, lost=node.lost, valid=command is not None)


class CompiledEpisode(_GameEpisode):
    """An episode on the compiled game (back end ``z8``), which decides events, score and end."""

    def __init__(self, graph: GameGraph, view: View, game: Interpreter) -> None:
        super().__init__(graph, view)
        self._game = game
        self._verbs = frozenset(graph.game.verbs) | _ALIASES

    async def reset(self) -> Observation:
        """Return the first observation of the game."""
        opening = self._game.restart()
        if self.view.brief:
            return self.first(self.node.text(self.graph.labels))
        return self.first(clean(opening, self.graph.game.objective))

    async def step(self, action: str) -> Step:
        """Play one command, and return what happened."""
        typed = " ".join(action.split())
        command = self.node.understand(typed)
        reply = self._game.play(command or (typed if self._typable(typed) else _REFUSED))
        understood = command is not None
        for event in reply.events:
            happened = self.graph.command_of(self.node, event)
            if happened is not None:
                self.move(happened)
                understood = True
        won, lost = "*** The End ***" in reply.text, "*** You lost! ***" in reply.text
        if self.view.brief:
            text = self.brief_text((command or typed) if understood else None, won, lost)
        else:
            text = clean(reply.text)
        return self.result(
            text,
            score=self._score if reply.score is None else reply.score,
            won=won,
            lost=lost,
            valid=understood,
        )

    def _typable(self, typed: str) -> bool:
        """Return whether ``typed`` may be sent to the interpreter.

        It must be a short plain text that begins with a verb of the game.

        The interpreter hangs on some texts that no player types, and it has commands (``restart``, ``undo``,
        ``save`` to a file) that the package's tracking does not follow.
        """
        plain = typed.isascii() and typed.isprintable() and len(typed) <= 100
        return plain and typed.lower().partition(" ")[0] in self._verbs


def clean(feedback: str, objective: str = "") -> str:
    """Return the compiled game's text without banner, prompt and status line.

    The banner ends where ``objective`` begins.
    """
    text = re.split(r"\n>", feedback, maxsplit=1)[0]
    if objective:
        start = text.find(objective.strip().split("\n", 1)[0][:40])
        text = text[max(0, start) :]
    return re.sub(r"\n{3,}", "\n\n", text).strip()
