"""The TextWorld engine without its text: a game as a graph of states, explored once per process.

`World` plays a game's logic with the package's own rules (``State.apply``, ``all_applicable_actions``) and the end conditions of the
compiled game: a quest fails before it is won, a won one stays won, and a game that can no longer be won goes on until its limit. The
package's own player of ``.json`` files, ``TextWorldEnv``, differs from the compiled game in two things: it ends such a game as lost, and
``prepare meal`` takes one ingredient, in whatever state (`recipe_met`).

A state's successors, admissible commands and text depend on nothing but the state, so they are kept: the episodes of a group, and of later
updates, walk the same few rooms, and a step that was taken once costs a dictionary lookup. The compiled game walks the same graph, led by
what its interpreter says has happened.
"""

from __future__ import annotations

import functools
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from textworld.generator.data import KnowledgeBase
from textworld.generator.game import EntityInfo, Game, GameProgression, Quest, QuestProgression
from textworld.generator.inform7 import Inform7Game
from textworld.generator.text_grammar import GrammarOptions
from textworld.generator.world import World as Map
from textworld.logic import Action, State

from agentrl_environments.textworld.brief import Scene, structure_key
from agentrl_environments.textworld.interpreter import Interpreters


@functools.lru_cache(maxsize=16)
def _knowledge(text: str) -> KnowledgeBase:
    return KnowledgeBase.deserialize(json.loads(text))


def load(data: Mapping[str, Any]) -> Game:
    """Return the game of a ``.json`` file's value: ``Game.deserialize`` with one knowledge base for all games of a family."""
    game = Game(Map.deserialize(data["world"], kb=_knowledge(json.dumps(data["KB"], sort_keys=True))))
    game.grammar_options = GrammarOptions(data["grammar"])
    game.quests = tuple(Quest.deserialize(quest) for quest in data["quests"])
    game._infos = {thing: EntityInfo.deserialize(info) for thing, info in data["infos"]}
    game.metadata = data["metadata"]
    game._objective = data["objective"]
    return game


def labels(game: Game) -> dict[str, str]:
    """Return the name of each thing, as commands use it."""
    return {thing: info.name or "" for thing, info in game.infos.items()}


def structure(game: Game) -> str:
    """Return the structural key of a game."""
    return structure_key(game.world.facts, labels(game), game.metadata["walkthrough"])


class Place:
    """One state of a game. ``quests``: which are complete; ``next``: command -> place, ``heard``: event -> command, as far as explored."""

    __slots__ = (
        "_text",
        "_typed",
        "actions",
        "commands",
        "heard",
        "lost",
        "next",
        "quests",
        "score",
        "state",
        "won",
    )

    def __init__(
        self,
        state: State,
        quests: tuple[bool, ...],
        score: int,
        won: bool,
        lost: bool,
        actions: dict[str, Action],
    ) -> None:
        self.state, self.quests, self.score, self.won, self.lost, self.actions = (
            state,
            quests,
            score,
            won,
            lost,
            actions,
        )
        self.commands = tuple(sorted(actions))
        self.next: dict[str, Place] = {}
        self.heard: dict[str, str | None] = {}
        self._text = ""
        self._typed: dict[str, str] = {}

    def understand(self, action: str) -> str | None:
        """Return the admissible command that ``action`` is, whatever its case and spaces, or ``None``."""
        if action in self.actions:
            return action
        if not self._typed:
            self._typed = {command.lower(): command for command in self.commands}
        return self._typed.get(" ".join(action.lower().split()))

    def text(self, names: Mapping[str, str]) -> str:
        """Return the brief observation."""
        if not self._text:
            self._text = Scene(self.state.facts, names).render()
        return self._text


class World:
    """A loaded game and the part of its state graph that has been seen."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.labels = labels(game)
        self.plan: tuple[str, ...] = tuple(game.metadata.get("walkthrough", ()))
        self.notes = _notes(game)
        self._inform7 = Inform7Game(game)
        self._places: dict[object, Place] = {}
        quests = tuple(False for _ in game.quests)
        self.start = self._place(game.world.state.copy(), quests, 0)

    def __len__(self) -> int:
        return len(self._places)

    def step(self, place: Place, command: str) -> Place:
        """Return the place that an admissible command leads to.

        Raises:
            KeyError: the command is not admissible.
        """
        found = place.next.get(command)
        if found is None:
            action = place.actions[command]
            if action.name.startswith("make/recipe") and not recipe_met(place.state):
                found = place
            else:
                state = place.state.copy()
                state.apply(action)
                found = self._place(state, place.quests, place.score)
            place.next[command] = found
        return found

    def command_of(self, place: Place, event: str) -> str | None:
        """Return the admissible command that the compiled game's ``event`` tells of, such as ``taking the key``, or ``None``."""
        if event not in place.heard:
            action = self._inform7.detect_action(event, place.actions.values())
            place.heard[event] = next(
                (command for command, known in place.actions.items() if known is action), None
            )
        return place.heard[event]

    def play(self, commands: Sequence[str]) -> tuple[list[str], Place]:
        """Return those of ``commands`` that are accepted when played in order, and the place they lead to."""
        accepted, place = [], self.start
        for command in commands:
            if command in place.actions and not (place.won or place.lost):
                accepted.append(command)
                place = self.step(place, command)
        return accepted, place

    def _place(self, state: State, before: tuple[bool, ...], score: int) -> Place:
        quests, score, lost = self._judge(state, before, score)
        key = (frozenset(state.facts), quests, score)
        place = self._places.get(key)
        if place is None:
            needed = [
                done
                for done, quest in zip(quests, self.game.quests, strict=True)
                if quest.win_events and not quest.optional
            ]
            place = Place(
                state, quests, score, bool(needed) and all(needed) and not lost, lost, self._actions(state)
            )
            self._places[key] = place
        return place

    def _judge(
        self, state: State, before: tuple[bool, ...], score: int
    ) -> tuple[tuple[bool, ...], int, bool]:
        """Apply each quest's rule of the compiled game: complete -> nothing; fails -> lost; won -> its reward, complete."""
        after = list(before)
        lost = False
        for number, quest in enumerate(self.game.quests):
            if after[number]:
                continue
            if quest.is_failing(state):
                lost = True
            elif quest.is_winning(state):
                score += quest.reward
                after[number] = not quest.repeatable
        return tuple(after), score, lost

    def _actions(self, state: State) -> dict[str, Action]:
        """Return admissible commands and what they do; of two readings, the one that asks most, as in the compiled game."""
        kb = self.game.kb
        actions: dict[str, Action] = {}
        for action in state.all_applicable_actions(kb.rules.values(), kb.types.constants_mapping):
            command = action.format_command(
                {thing.name: self.labels[thing.name] for thing in action.variables}
            )
            known = actions.get(command)
            if known is None or len(action.preconditions) > len(known.preconditions):
                actions[command] = action
        return actions


_COOKED, _CUT = (
    frozenset(["raw", "fried", "roasted", "grilled"]),
    frozenset(["uncut", "chopped", "sliced", "diced"]),
)


def recipe_met(state: State) -> bool:
    """Return whether the compiled cooking game would prepare the meal: each ingredient carried, cooked and cut as the recipe says.

    The game's logic lists ``prepare meal`` as soon as one ingredient is carried; the compiled game then answers that something is missing.
    """
    marks: dict[str, set[str]] = {}
    bases: list[tuple[str, str]] = []
    carried = set()
    for fact in state.facts:
        if fact.name == "base":
            bases.append((fact.names[0], fact.names[1]))
        elif fact.name == "in" and fact.names[1] == "I":
            carried.add(fact.names[0])
        elif len(fact.names) == 1:
            marks.setdefault(fact.names[0], set()).add(fact.name)

    def prepared(thing: str) -> tuple[set[str], set[str]]:
        has = marks.get(thing, set())
        return has & _COOKED or {"raw"}, has & _CUT

    return all(food in carried and prepared(food) == prepared(wanted) for food, wanted in bases)


class PlanTracker:
    """Follows the length of the shortest known plan, as the package's ``intermediate_reward`` does."""

    def __init__(self, game: Game, state: State) -> None:
        self._progress: GameProgression = GameProgression.__new__(
            GameProgression
        )  # its constructor derives all valid actions again
        self._progress.game, self._progress.state = game, state
        self._progress.quest_progressions = [QuestProgression(quest, game.kb) for quest in game.quests]
        for quest in self._progress.quest_progressions:
            quest.update(action=None, state=state)
        self._left = self._length()
        self._moved = False

    def follow(self, action: Action, place: Place) -> None:
        """Take note of an action and the place it led to."""
        for quest in self._progress.quest_progressions:
            quest.update(action, place.state)
        self._moved = True

    def change(self) -> float:
        """Return 1 where the plan became shorter since the last call, -1 where it became longer or was lost, else 0."""
        if not self._moved:
            return 0.0
        self._moved = False
        before, self._left = self._left, self._length()
        if before is None or self._left is None:
            return 0.0 if before is None else -1.0
        return float(self._left < before) - float(self._left > before)

    def _length(self) -> int | None:
        policy = self._progress.winning_policy
        return None if policy is None else len(policy)


class Library:
    """Loaded games of one process, the most recently played first to stay. ``max_places`` bounds memory (a place takes 5 to 30 KiB).

    ``interpreters``: those of its compiled games.
    """

    def __init__(self, max_places: int = 20_000) -> None:
        self.interpreters = Interpreters()
        self._worlds: OrderedDict[str, World] = OrderedDict()
        self._max_places = max_places

    def get(self, key: str) -> World | None:
        """Return the game, if it is here."""
        world = self._worlds.get(key)
        if world is not None:
            self._worlds.move_to_end(key)
        return world

    def add(self, key: str, world: World) -> None:
        """Put a game in; the games played longest ago go when the library is full."""
        total = sum(map(len, self._worlds.values()))
        while self._worlds and total >= self._max_places:
            total -= len(self._worlds.popitem(last=False)[1])
        self._worlds[key] = world


def _notes(game: Game) -> dict[str, str]:
    """Return what examining tells that no fact holds: a cookbook's recipe."""
    ingredients = game.metadata.get("recipe", "").partition("Directions:")[2].split("\n")
    return (
        {"examine cookbook": "recipe " + " , ".join(filter(None, map(str.strip, ingredients)))}
        if "recipe" in game.metadata
        else {}
    )
