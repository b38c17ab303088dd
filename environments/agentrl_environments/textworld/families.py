"""Families of generated games, as values. A family's name holds all its options.

``str(family)`` returns the name of a family, and ``parse(name)`` returns the family.

| family | name | world |
|---|---|---|
| `Ladder` | ``w2-o3-q4`` | rooms, objects and steps of the quest, as made by ``tw-make custom`` |
| `CoinCollector` | ``coin-r8-q4`` | find the coin: 8 rooms in all, 4 on the path; the others are dead ends |
| `TreasureHunter` | ``treasure-l5`` | take the right one of two objects (see below for the levels) |
| `Cooking` | ``cooking-r2-t1-g6-open-cook-cut`` | find the recipe, prepare the ingredients, eat the meal |

Levels of `TreasureHunter`: 1-10 are easy, 11-20 have doors and boxes, 21-30 have locks.

The objective of every family names only the last action. ``Ladder(guided=True)`` (``w2-o3-q4-guided``) spells
out every step, which makes it a game of following instructions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from textworld import Game

_COOKING_ROOMS = (1, 6, 9, 12)


@dataclass(frozen=True)
class Ladder:
    """Worlds as made by ``tw-make custom``, from ``w2-o3-q4`` up.

    A world has ``rooms`` rooms, ``objects`` objects, and a quest of ``quest_length`` actions. With
    ``guided``, the objective spells out every action.
    """

    pattern: ClassVar[str] = r"w(?P<rooms>\d+)-o(?P<objects>\d+)-q(?P<quest_length>\d+)(?P<guided>-guided)?"
    rooms: int = 2
    objects: int = 3
    quest_length: int = 4
    guided: bool = False

    def __post_init__(self) -> None:
        _within(self, rooms=(1, 30), objects=(1, 100), quest_length=(1, 30))

    def __str__(self) -> str:
        suffix = "-guided" if self.guided else ""
        return f"w{self.rooms}-o{self.objects}-q{self.quest_length}{suffix}"

    @property
    def larger(self) -> Ladder:
        """The family with twice the rooms and objects, and the same quest length."""
        return Ladder(2 * self.rooms, 2 * self.objects, self.quest_length, self.guided)

    def make(self, seed: int) -> Game:
        """Generate the game of this family that ``seed`` determines."""
        from textworld.generator import make_game

        from agentrl_environments.textworld.maker_inputs import options_of

        options = options_of(seed, only_last_action=not self.guided)
        options.nb_rooms = self.rooms
        options.nb_objects = self.objects
        options.quest_length = self.quest_length
        options.chaining.min_breadth, options.chaining.max_breadth = 1, 5  # as tw-make custom
        return make_game(options)


@dataclass(frozen=True)
class CoinCollector:
    """A coin at the end of a path of ``quest_length`` rooms, out of ``rooms`` in all.

    Dead ends are random and can be several rooms deep; with ``simple`` they are one room deep.
    """

    pattern: ClassVar[str] = r"coin-r(?P<rooms>\d+)-q(?P<quest_length>\d+)(?P<simple>-simple)?"
    rooms: int = 8
    quest_length: int = 4
    simple: bool = False

    def __post_init__(self) -> None:
        _within(self, rooms=(1, 100), quest_length=(1, 100))
        if self.quest_length > self.rooms:
            raise ConfigError(
                f"game '{self}': the path cannot have more rooms ({self.quest_length}) "
                f"than there are in all ({self.rooms})"
            )
        if self.simple and self.rooms > 4 * self.quest_length:
            raise ConfigError(
                f"game '{self}': with simple dead ends there are at most {4 * self.quest_length} rooms, "
                f"found {self.rooms}; leave out '-simple'"
            )

    def __str__(self) -> str:
        suffix = "-simple" if self.simple else ""
        return f"coin-r{self.rooms}-q{self.quest_length}{suffix}"

    @property
    def larger(self) -> CoinCollector | None:
        """The family with 1.5 times the rooms, in all and on the path; ``None`` above the limit of 100."""
        rooms, on_path = (number + (number + 1) // 2 for number in (self.rooms, self.quest_length))
        return CoinCollector(rooms, on_path, self.simple) if rooms <= 100 else None

    def make(self, seed: int) -> Game:
        """Generate the game of this family that ``seed`` determines."""
        from textworld.challenges.tw_coin_collector import coin_collector

        from agentrl_environments.textworld.maker_inputs import knowledge, options_of

        options = options_of(seed)
        options.kb = knowledge(coin_collector.KB_PATH)
        options.nb_rooms, options.quest_length = self.rooms, self.quest_length
        options.grammar.allowed_variables_numbering = True  # more rooms than the grammar has names
        return coin_collector.make_game("simple" if self.simple else "random", options)


@dataclass(frozen=True)
class TreasureHunter:
    """Take the object that the objective names, out of two; taking the other object loses the game.

    The levels are those of TextWorld's ``treasure_hunter``.
    """

    pattern: ClassVar[str] = r"treasure-l(?P<level>\d+)"
    level: int = 5

    def __post_init__(self) -> None:
        _within(self, level=(1, 30))

    def __str__(self) -> str:
        return f"treasure-l{self.level}"

    @property
    def larger(self) -> TreasureHunter | None:
        """The first level of the next ten levels, which have more rooms, whose quest is not shorter.

        It is ``None`` for the last ten levels.
        """
        mode, step = divmod(self.level - 1, 10)
        if mode == 2:
            return None
        lengths = [
            [round(low + (high - low) * i / 9) for i in range(10)] for low, high in ((1, 5), (2, 10), (3, 20))
        ]
        return TreasureHunter(
            next(
                10 * (mode + 1) + i + 1
                for i, length in enumerate(lengths[mode + 1])
                if length >= lengths[mode][step]
            )
        )

    def make(self, seed: int) -> Game:
        """Generate the game of this family that ``seed`` determines."""
        from textworld.challenges.tw_treasure_hunter import treasure_hunter

        from agentrl_environments.textworld.maker_inputs import options_of

        return treasure_hunter.make({"level": self.level}, options_of(seed))


@dataclass(frozen=True)
class Cooking:
    """A meal of ``recipe`` ingredients, ``take`` of which must be found, in a house of ``go`` rooms.

    With ``open``, doors and containers are closed at first. With ``cook`` or ``cut``, ingredients must be
    cooked or cut. With ``drop``, the number of things that the player can carry is limited.
    """

    pattern: ClassVar[str] = (
        r"cooking-r(?P<recipe>\d+)-t(?P<take>\d+)-g(?P<go>\d+)"
        r"(?P<open>-open)?(?P<cook>-cook)?(?P<cut>-cut)?(?P<drop>-drop)?"
    )
    recipe: int = 1
    take: int = 0
    go: int = 1
    open: bool = False
    cook: bool = False
    cut: bool = False
    drop: bool = False

    def __post_init__(self) -> None:
        _within(self, recipe=(1, 5), take=(0, self.recipe))
        if self.go not in _COOKING_ROOMS:
            raise ConfigError(
                f"game '{self}': go is {self.go}; "
                f"the package has houses of {', '.join(map(str, _COOKING_ROOMS))} rooms"
            )

    def __str__(self) -> str:
        flags = "".join(f"-{name}" for name in ("open", "cook", "cut", "drop") if getattr(self, name))
        return f"cooking-r{self.recipe}-t{self.take}-g{self.go}{flags}"

    @property
    def larger(self) -> Cooking | None:
        """The same family in the next larger house; ``None`` for 12 rooms, the largest."""
        rooms = next((rooms for rooms in _COOKING_ROOMS if rooms > self.go), None)
        return None if rooms is None else replace(self, go=rooms)

    def make(self, seed: int) -> Game:
        """Generate the game of this family that ``seed`` determines."""
        from textworld.challenges.tw_cooking import cooking

        from agentrl_environments.textworld.maker_inputs import options_of

        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        return cooking.make({**settings, "recipe_seed": 0, "split": None}, options_of(seed))


Family = Ladder | CoinCollector | TreasureHunter | Cooking


def parse(name: str) -> Family:
    """Return the family of games that has a name.

    >>> parse("w2-o3-q4"), str(CoinCollector(rooms=6, quest_length=4))
    (Ladder(rooms=2, objects=3, quest_length=4, guided=False), 'coin-r6-q4')

    Raises:
        ConfigError: ``name`` is not the name of a family, or a number in it is out of range.
    """
    for family in (Ladder, CoinCollector, TreasureHunter, Cooking):
        if match := re.fullmatch(family.pattern, name):
            kinds = {field.name: field.type for field in fields(family)}
            values: dict[str, Any] = {
                key: int(text) if kinds[key] == "int" else bool(text)
                for key, text in match.groupdict().items()
            }
            return family(**values)
    raise ConfigError(
        f"'{name}' is not the name of a family of text games; "
        "write one of w2-o3-q4[-guided], coin-r8-q4[-simple], "
        "treasure-l5, cooking-r2-t1-g6[-open][-cook][-cut][-drop]"
    )


def _within(family: Family, **ranges: tuple[int, int]) -> None:
    for name, (low, high) in ranges.items():
        if not low <= getattr(family, name) <= high:
            raise ConfigError(
                f"game '{family}': {name} is {getattr(family, name)}; it must be {low} to {high}"
            )
