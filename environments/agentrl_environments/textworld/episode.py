"""One episode of a text game, on either back end."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jericho.jericho import UnsupportedGameWarning
from textworld import EnvInfos
from textworld import start as start_compiled

from agentrl.types import Observation, Step
from agentrl_environments.textworld.brief import Scene
from agentrl_environments.textworld.engine import PlanTracker, World, sign_of_change

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

    def observation(self, text: str, commands: tuple[str, ...], *, plan: tuple[str, ...] = (), over: bool = False) -> Observation:
        """Return what is shown; a game that is over lists no commands."""
        if over:
            commands = ()
        if self.show_actions and commands:
            text += (" ; can " if self.brief else "\n\nYou can: ") + " , ".join(commands)
        return Observation.text(text, actions=commands, plan=plan)


class _Episode:
    """What both back ends share: the turn limit and the signals."""

    def __init__(self, world: World, view: View) -> None:
        self.world, self.view = world, view
        self._turns = 0
        self._score = 0.0

    def first(self, text: str, commands: tuple[str, ...]) -> Observation:
        """Return the first observation: the goal, the start, and the expert's plan."""
        if self.view.brief:
            text = f"goal {self.world.plan[-1]} ; {text}"
        return self.view.observation(text, commands, plan=self.world.plan)

    def result(self, observation: Observation, *, score: float, won: bool, lost: bool, valid: bool, intermediate: float) -> Step:
        """Return a step. The reward is the score that this turn gained."""
        self._turns += 1
        gained, self._score = score - self._score, score
        info = {"success": float(won), "valid": float(valid), "score": gained, "lost": float(lost)}
        if self.view.intermediate:
            info["intermediate"] = intermediate
        over = won or lost
        return Step(observation, gained, terminated=over, truncated=not over and self._turns >= self.view.max_turns, info=info)


class FactsEpisode(_Episode):
    """Plays the game's logic; the text is the brief one."""

    async def reset(self) -> Observation:
        """Return the first observation."""
        self._place = self.world.start
        self._tracker = PlanTracker(self.world.game, self._place.state) if self.view.intermediate else None
        return self.first(self._place.text(self.world.labels), self._place.commands)

    async def step(self, action: str) -> Step:
        """Play one command."""
        place, world = self._place, self.world
        command = place.understand(action)
        intermediate = 0.0
        if command is not None:
            before, place = place, world.step(place, command)
            if self._tracker and place is not before:
                intermediate = self._tracker.step(before.actions[command], place)
            self._place = place
        text = tell(place.text(world.labels), command, place.won, place.lost, world)
        observation = self.view.observation(text, place.commands, over=place.won or place.lost)
        return self.result(
            observation, score=place.score, won=place.won, lost=place.lost, valid=command is not None, intermediate=intermediate
        )


class CompiledEpisode(_Episode):
    """Plays the compiled game: the real text, or the brief one from the facts that the package tracks beside it."""

    def __init__(self, world: World, view: View, path: Path) -> None:
        super().__init__(world, view)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnsupportedGameWarning)  # the interpreter knows no score of these games; the package does
            # The package's own intermediate_reward fails where a plan is lost, so the plan's length is compared here.
            self._env = start_compiled(str(path), EnvInfos(admissible_commands=True, policy_commands=view.intermediate, moves=True))
        self._verbs = frozenset(world.game.verbs) | _ALIASES
        self._moves = 0
        self._plan: int | None = None

    def close(self) -> None:
        """Free the interpreter."""
        self._env.close()

    async def reset(self) -> Observation:
        """Return the first observation."""
        state = self._env.reset()
        self._plan = _plan_length(state)
        self._commands = tuple(state["admissible_commands"])
        return self.first(self._text(state, first=True), self._commands)

    async def step(self, action: str) -> Step:
        """Play one command."""
        typed = " ".join(action.split())
        command = next((known for known in self._commands if known.lower() == typed.lower()), None)
        state, score, _ = self._env.step(command or (typed if self._typable(typed) else _REFUSED))
        won, lost = bool(state["won"]), bool(state["lost"])
        understood = command is not None or state["moves"] > self._moves
        self._moves = state["moves"]
        before, self._plan = self._plan, _plan_length(state)
        self._commands = tuple(state["admissible_commands"])
        text = self._text(state)
        if self.view.brief:
            text = tell(text, (command or typed) if understood else None, won, lost, self.world)
        intermediate = (1.0 if won else -1.0) if won or lost else sign_of_change(before, self._plan)
        observation = self.view.observation(text, self._commands, over=won or lost)
        return self.result(observation, score=score, won=won, lost=lost, valid=understood, intermediate=intermediate)

    def _typable(self, typed: str) -> bool:
        """Return whether the interpreter may see ``typed``: plain short text that begins with a verb of the game.

        It hangs on some texts that no player types, and has commands of its own (``restart``, ``undo``, ``save`` to a file) that the
        package's tracking does not follow.
        """
        plain = typed.isascii() and typed.isprintable() and len(typed) <= 100
        return plain and typed.lower().partition(" ")[0] in self._verbs

    def _text(self, state: Any, *, first: bool = False) -> str:
        if self.view.brief:
            return Scene(state["_facts"], self.world.labels).render()
        return clean(state["feedback"], self.world.game.objective if first else "")


def tell(text: str, command: str | None, won: bool, lost: bool, world: World) -> str:
    """Return a brief observation with what just happened before it; ``command`` is ``None`` where it was refused."""
    if won or lost:
        return f"{'won' if won else 'lost'} ; {text}"
    if command is None:
        return f"invalid ; {text}"
    note = world.notes.get(command) if world.notes else None
    return f"{note} ; {text}" if note else text


def clean(feedback: str, objective: str = "") -> str:
    """Return the compiled game's text without banner, prompt and status line; the banner ends where ``objective`` begins."""
    text = re.split(r"\n>", feedback, maxsplit=1)[0]
    if objective:
        start = text.find(objective.strip().split("\n", 1)[0][:40])
        text = text[max(0, start) :]
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _plan_length(state: Any) -> int | None:
    policy = state["_winning_policy"]
    return None if policy is None else len(policy)
