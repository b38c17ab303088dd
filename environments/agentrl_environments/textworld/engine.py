"""The TextWorld engine without its text: a game as a graph of states, explored once per process.

`GameGraph` plays a game's logic with the package's own rules (``State.apply``, ``all_applicable_actions``)
and the end conditions of the compiled game: failing a quest is checked before winning it, a won quest stays
won, and a game that can no longer be won continues until its turn limit. The package's own player of
``.json`` files, ``TextWorldEnv``, differs from the compiled game in two points: it ends such a game as lost,
and its ``prepare meal`` needs only one ingredient, in any state (see `recipe_met`).

The successors, admissible commands and text of a state depend only on the state, so they are cached: the
episodes of a group, and of later updates, visit the same few states, and a step that was taken before costs
one dictionary lookup. Episodes of the compiled game follow the same graph, guided by the actions that the
interpreter reports.
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
from textworld.generator.world import World
from textworld.logic import Action, State

from agentrl_environments.textworld.brief import Scene, structure_key
from agentrl_environments.textworld.interpreter import Interpreters


@functools.lru_cache(maxsize=16)
def _knowledge(text: str) -> KnowledgeBase:
    return KnowledgeBase.deserialize(json.loads(text))


def load(data: Mapping[str, Any]) -> Game:
    """Return a game, given the JSON value of its ``.json`` file.

    The result is that of ``Game.deserialize``, except that all games of a family share one knowledge base.
    """
    game = Game(World.deserialize(data["world"], kb=_knowledge(json.dumps(data["KB"], sort_keys=True))))
    game.grammar_options = GrammarOptions(data["grammar"])
    game.quests = tuple(Quest.deserialize(quest) for quest in data["quests"])
    game._infos = {thing: EntityInfo.deserialize(info) for thing, info in data["infos"]}
    game.metadata = data["metadata"]
    game._objective = data["objective"]
    return game


def labels(game: Game) -> dict[str, str]:
    """Return the name under which commands refer to each thing, by the thing's id."""
    return {thing: info.name or "" for thing, info in game.infos.items()}


def structure(game: Game) -> str:
    """Return the structural key of a game (see `brief.structure_key`)."""
    return structure_key(game.world.facts, labels(game), game.metadata["walkthrough"])


class StateNode:
    """One state of a game, as a node of its `GameGraph`.

    ``quests`` says of each quest whether it is complete. ``next`` holds the nodes explored so far, by the
    command that leads to them. ``commands_of_events`` holds the commands looked up so far, by the event of
    the compiled game that they cause.
    """

    __slots__ = (
        "_lower",
        "_text",
        "actions",
        "commands",
        "commands_of_events",
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
        self.state = state
        self.quests = quests
        self.score = score
        self.won = won
        self.lost = lost
        self.actions = actions
        self.commands = tuple(sorted(actions))
        self.next: dict[str, StateNode] = {}
        self.commands_of_events: dict[str, str | None] = {}
        self._text = ""
        self._lower: dict[str, str] = {}

    def understand(self, action: str) -> str | None:
        """Return the admissible command that equals ``action`` up to case and white space.

        Return ``None`` if there is no such command.
        """
        if action in self.actions:
            return action
        if not self._lower:
            self._lower = {command.lower(): command for command in self.commands}
        return self._lower.get(" ".join(action.lower().split()))

    def text(self, names: Mapping[str, str]) -> str:
        """Return the ``brief`` observation of the state; ``names`` are the names of things, by id."""
        if not self._text:
            self._text = Scene(self.state.facts, names).render()
        return self._text


class GameGraph:
    """A loaded game and the part of its state graph that has been explored."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.labels = labels(game)
        self.plan: tuple[str, ...] = tuple(game.metadata.get("walkthrough", ()))
        self.notes = _notes(game)
        self._inform7 = Inform7Game(game)
        self._nodes: dict[object, StateNode] = {}
        quests = tuple(False for _ in game.quests)
        self.start = self._node(game.world.state.copy(), quests, 0)

    def __len__(self) -> int:
        return len(self._nodes)

    def step(self, node: StateNode, command: str) -> StateNode:
        """Return the node that an admissible command leads to.

        Raises:
            KeyError: the command is not admissible.
        """
        found = node.next.get(command)
        if found is None:
            action = node.actions[command]
            if action.name.startswith("make/recipe") and not recipe_met(node.state):
                found = node
            else:
                state = node.state.copy()
                state.apply(action)
                found = self._node(state, node.quests, node.score)
            node.next[command] = found
        return found

    def command_of(self, node: StateNode, event: str) -> str | None:
        """Return the admissible command that caused an event of the compiled game, or ``None``.

        An event is a text such as ``taking the key``.
        """
        if event not in node.commands_of_events:
            action = self._inform7.detect_action(event, node.actions.values())
            node.commands_of_events[event] = next(
                (command for command, known in node.actions.items() if known is action), None
            )
        return node.commands_of_events[event]

    def play(self, commands: Sequence[str]) -> tuple[list[str], StateNode]:
        """Play ``commands`` in order from the start, and skip those that are not admissible.

        Return the commands that were played, and the node that they lead to.
        """
        accepted, node = [], self.start
        for command in commands:
            if command in node.actions and not (node.won or node.lost):
                accepted.append(command)
                node = self.step(node, command)
        return accepted, node

    def _node(self, state: State, before: tuple[bool, ...], score: int) -> StateNode:
        """Return the node of ``state``, after judging the quests in this state.

        ``before`` says which quests were complete, and ``score`` is the number of points, before this state
        was reached.
        """
        quests, score, lost = self._judge(state, before, score)
        key = (frozenset(state.facts), quests, score)
        node = self._nodes.get(key)
        if node is None:
            needed = [
                done
                for done, quest in zip(quests, self.game.quests, strict=True)
                if quest.win_events and not quest.optional
            ]
            won = bool(needed) and all(needed) and not lost
            node = StateNode(state, quests, score, won, lost, self._actions(state))
            self._nodes[key] = node
        return node

    def _judge(
        self, state: State, before: tuple[bool, ...], score: int
    ) -> tuple[tuple[bool, ...], int, bool]:
        """Return which quests are complete in ``state``, the score, and whether the game is lost.

        ``before`` and ``score`` are the complete quests and the score before the state was reached.
        By the rules of the compiled game, a quest that is complete is skipped, one that fails loses the game,
        and one that is won pays its reward and is complete from then on, unless it is repeatable.
        """
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
        """Return the actions of the admissible commands, by command.

        If a command can mean two actions, it means the one with more preconditions, as in the compiled game.
        """
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


_COOKED = frozenset(["raw", "fried", "roasted", "grilled"])
_CUT = frozenset(["uncut", "chopped", "sliced", "diced"])


def recipe_met(state: State) -> bool:
    """Return whether the compiled cooking game would prepare the meal.

    It does so if every ingredient is carried, and is cooked and cut as the recipe says. The game's logic
    lists ``prepare meal`` as soon as one ingredient is carried; the compiled game then answers that an
    ingredient is missing.
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
    """Tracks the length of the shortest known plan, as the package's ``intermediate_reward`` does."""

    def __init__(self, game: Game, state: State) -> None:
        # The constructor is skipped, because it would derive all valid actions again.
        self._progress: GameProgression = GameProgression.__new__(GameProgression)
        self._progress.game, self._progress.state = game, state
        self._progress.quest_progressions = [QuestProgression(quest, game.kb) for quest in game.quests]
        for quest in self._progress.quest_progressions:
            quest.update(action=None, state=state)
        self._left = self._length()
        self._moved = False

    def follow(self, action: Action, node: StateNode) -> None:
        """Record an action and the node it led to."""
        for quest in self._progress.quest_progressions:
            quest.update(action, node.state)
        self._moved = True

    def change(self) -> float:
        """Return 1 if the plan became shorter since the last call, -1 if longer or impossible, else 0.

        The plan is the shortest known one.
        """
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
    """The loaded games of one process, and the interpreters of the compiled games.

    ``max_nodes`` is the total number of explored nodes from which adding a game evicts other games, the least
    recently used game first. It bounds the memory: a node takes 5 to 30 KiB.
    """

    def __init__(self, max_nodes: int = 20_000) -> None:
        self.interpreters = Interpreters()
        self._graphs: OrderedDict[str, GameGraph] = OrderedDict()
        self._max_nodes = max_nodes

    def get(self, key: str) -> GameGraph | None:
        """Return the game of a structural key, or ``None`` if it is not loaded."""
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
        return graph

    def add(self, key: str, graph: GameGraph) -> None:
        """Add a game under its structural key, after evicting games until there is room."""
        total = sum(map(len, self._graphs.values()))
        while self._graphs and total >= self._max_nodes:
            total -= len(self._graphs.popitem(last=False)[1])
        self._graphs[key] = graph


def _notes(game: Game) -> dict[str, str]:
    """Return, by command, texts that tell the player more than the facts do: the recipe in a cookbook."""
    if "recipe" not in game.metadata:
        return {}
    ingredients = game.metadata["recipe"].partition("Directions:")[2].split("\n")
    return {"examine cookbook": "recipe " + " , ".join(filter(None, map(str.strip, ingredients)))}
