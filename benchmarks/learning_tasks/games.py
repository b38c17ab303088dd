"""Four small text games, each designed to answer one question about credit.

All are Markov in what they show, except for the number of turns left in some, so a policy needs only the last
observation. Every action is one word. Tasks differ in where things lie; splits differ only in the seeds of
their tasks, because nothing here asks whether a policy generalises. An action that is not understood costs a
turn and changes nothing.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar

from agentrl.env import STANDARD_SIGNALS, Env, EnvSpec
from agentrl.errors import ConfigError
from agentrl.sandbox import Sandbox
from agentrl.types import Json, Observation, Step, Task, seed_of

SIZES = {"train": 512, "valid": 64, "test": 128}


class GameEpisode(ABC):
    """One episode of a game: what it shows, which words are valid, and what they do."""

    def __init__(self, max_turns: int) -> None:
        self.left = max_turns

    async def reset(self) -> Observation:
        """Return the first observation."""
        return self._observe()

    async def step(self, action: str) -> Step:
        """Play one action."""
        word = action.strip()
        self.left -= 1
        valid = word in self.words()
        done, signals = self.do(word) if valid else (False, {})
        info = {"success": 0.0, **signals, "valid": float(valid)}
        return Step(self._observe(), terminated=done, truncated=not done and self.left <= 0, info=info)

    def _observe(self) -> Observation:
        return Observation.text(self.show(), actions=self.words(), plan=self.plan())

    @abstractmethod
    def words(self) -> tuple[str, ...]:
        """Return the words that are valid now."""

    @abstractmethod
    def show(self) -> str:
        """Return the text of the observation."""

    @abstractmethod
    def plan(self) -> tuple[str, ...]:
        """Return the actions of an expert from here on."""

    @abstractmethod
    def do(self, word: str) -> tuple[bool, Mapping[str, float]]:
        """Play a valid word; return whether the episode is over, and the signals other than ``valid``."""


class Game(EnvSpec):
    """A game whose tasks are drawn at random, each from its own seed."""

    name: ClassVar[str]

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the split's tasks."""
        if split not in SIZES:
            raise ConfigError(f"{self.name} has no split {split!r}; it has {', '.join(SIZES)}")
        numbers = [seed_of(self.name, split, index) for index in range(SIZES[split])]
        return [
            Task(f"{self.name}-{split}-{index}", {"number": number, **self.draw(random.Random(number))})
            for index, number in enumerate(numbers)
        ]

    @asynccontextmanager
    async def open(self, task: Task, sandbox: Sandbox | None, shared: object) -> AsyncIterator[Env]:
        """Open one episode; it holds no resources."""
        yield self.play({name: int(str(value)) for name, value in task.data.items()})

    @abstractmethod
    def draw(self, dice: random.Random) -> Mapping[str, Json]:
        """Return where things lie in a new task, as integers."""

    @abstractmethod
    def play(self, data: Mapping[str, int]) -> GameEpisode:
        """Return an episode."""


def towards(here: int, there: int) -> str:
    """Return the direction from ``here`` to ``there`` in a row of places."""
    return "here" if here == there else "right" if there > here else "left"


@dataclass(frozen=True, slots=True, kw_only=True)
class Corridor(Game):
    """A corridor with an exit at its right end and a lamp at its left end, which shines when it is rubbed.

    Each rub gives the signal ``shine``, any number of times; the task is to reach the exit. ``length`` moves
    lie between the two.
    """

    name: ClassVar = "corridor"
    signals: ClassVar = {**STANDARD_SIGNALS, "shine": "1 on a turn on which the lamp was rubbed"}
    length: int = 5
    max_turns: int = 14

    def draw(self, dice: random.Random) -> Mapping[str, Json]:
        """Choose the start: at the lamp, or one place beside it."""
        return {"start": dice.randrange(2)}

    def play(self, data: Mapping[str, int]) -> GameEpisode:
        """Return an episode."""
        return _Corridor(self, data["start"])


class _Corridor(GameEpisode):
    def __init__(self, spec: Corridor, start: int) -> None:
        super().__init__(spec.max_turns)
        self.length, self.place = spec.length, start  # the lamp is at 0, the exit at ``length``

    def words(self) -> tuple[str, ...]:
        return ("left", "right", "rub")

    def show(self) -> str:
        lamp = "the lamp is here" if self.place == 0 else f"lamp {self.place} left"
        return f"{self.left} turns . exit {self.length - self.place} right . {lamp}"

    def plan(self) -> tuple[str, ...]:
        return ("right",) * (self.length - self.place)

    def do(self, word: str) -> tuple[bool, Mapping[str, float]]:
        if word == "rub":
            return False, {"shine": float(self.place == 0)}
        self.place = max(self.place + (1 if word == "right" else -1), 0)
        over = self.place == self.length
        return over, {"success": float(over)}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDoor(Game):
    """Rooms in a row, with a key in one and a locked door in another.

    The task is to fetch the key, carry it to the door and open it. Only the open door is success.
    """

    name: ClassVar = "key-door"
    signals: ClassVar = {**STANDARD_SIGNALS, "key": "1 on a turn that ends with the key in hand"}
    rooms: int = 5
    max_turns: int = 30

    def draw(self, dice: random.Random) -> Mapping[str, Json]:
        """Choose the rooms of key, door and start, all different."""
        key, door, start = dice.sample(range(self.rooms), 3)
        return {"key": key, "door": door, "start": start}

    def play(self, data: Mapping[str, int]) -> GameEpisode:
        """Return an episode."""
        return _KeyDoor(self, data["key"], data["door"], data["start"])


class _KeyDoor(GameEpisode):
    def __init__(self, spec: KeyDoor, key: int, door: int, start: int) -> None:
        super().__init__(spec.max_turns)
        self.rooms, self.key, self.door, self.place, self.held = spec.rooms, key, door, start, False

    def words(self) -> tuple[str, ...]:
        take = ("take",) if not self.held and self.place == self.key else ()
        return (
            "left",
            "right",
            "wait",
            *take,
            *(("drop",) * self.held),
            *(("open",) if self.place == self.door else ()),
        )

    def show(self) -> str:
        goal = self.door if self.held else self.key
        far = "here" if goal == self.place else f"{abs(goal - self.place)} {towards(self.place, goal)}"
        return f"you have the key . the door is {far}" if self.held else f"no key . the key is {far}"

    def plan(self) -> tuple[str, ...]:
        def walk(start: int, end: int) -> tuple[str, ...]:
            return (towards(start, end),) * abs(end - start)

        fetch = () if self.held else (*walk(self.place, self.key), "take")
        return (*fetch, *walk(self.place if self.held else self.key, self.door), "open")

    def do(self, word: str) -> tuple[bool, Mapping[str, float]]:
        if word in ("left", "right"):
            self.place = min(max(self.place + (1 if word == "right" else -1), 0), self.rooms - 1)
            if self.held:
                self.key = self.place
        elif word in ("take", "drop"):
            self.held = word == "take"
        over = word == "open" and self.held
        return over, {"success": float(over), "key": float(self.held)}


COLOURS = ("red", "blue", "green", "white", "black", "pink")
NOISE = (
    "rain",
    "bread",
    "seven",
    "moon",
    "horse",
    "paper",
    "salt",
    "north",
    "glass",
    "music",
    "wolf",
    "lemon",
    "iron",
    "cloud",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyTV(Game):
    """Doors that open to the colour on them, and before each door a television that talks at random.

    Any answer gets past a television, so no policy is ever certain there, and all credit for the answer is
    noise.
    """

    name: ClassVar = "noisy-tv"
    signals: ClassVar = {**STANDARD_SIGNALS, "tv": "1 on a turn that was spent at a television"}
    doors: int = 3
    screens: int = 2
    """Number of turns at the television before each door."""
    max_turns: int = 12

    def draw(self, dice: random.Random) -> Mapping[str, Json]:
        """Choose nothing: colours and noise are drawn from the task's seed."""
        return {}

    def play(self, data: Mapping[str, int]) -> GameEpisode:
        """Return an episode."""
        return _NoisyTV(self, random.Random(data["number"]))


class _NoisyTV(GameEpisode):
    def __init__(self, spec: NoisyTV, dice: random.Random) -> None:
        super().__init__(spec.max_turns)
        colours = [dice.choice(COLOURS) for _ in range(spec.doors)]
        # ``screens`` televisions (empty) and then a door (its colour), for each door
        self.row = [piece for colour in colours for piece in (*([""] * spec.screens), colour)]
        self.noise = [" ".join(dice.sample(NOISE, 4)) for _ in self.row]
        self.place = 0

    def words(self) -> tuple[str, ...]:
        return COLOURS

    def show(self) -> str:
        if self.place == len(self.row):
            return "you are out"
        colour = self.row[self.place]
        return f"a door . it is {colour}" if colour else f"the tv says {self.noise[self.place]}"

    def plan(self) -> tuple[str, ...]:
        return tuple(colour or COLOURS[0] for colour in self.row[self.place :])

    def do(self, word: str) -> tuple[bool, Mapping[str, float]]:
        screen = not self.row[self.place]
        if screen or word == self.row[self.place]:
            self.place += 1
        over = self.place == len(self.row)
        return over, {"success": float(over), "tv": float(screen)}


SHELVES = ("top", "middle", "bottom")
ANSWERS = ("yes", "no", "maybe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive(Game):
    """A question to be answered at once by guessing, or after a lookup: two kinds of episode in one group.

    A guess is right one time in three. A lookup takes ``lookups`` tool calls, each on the shelf that is
    named. After an error the note is empty and no answer is accepted. So a lookup is worse than guessing for
    a policy that reads badly, and always right for one that reads well.
    """

    name: ClassVar = "archive"
    signals: ClassVar = {**STANDARD_SIGNALS, "tool": "1 on a turn that called the archive"}
    lookups: int = 1
    max_turns: int = 4

    def draw(self, dice: random.Random) -> Mapping[str, Json]:
        """Choose the answer; the shelves are drawn from the task's seed."""
        return {"answer": dice.randrange(len(ANSWERS))}

    def play(self, data: Mapping[str, int]) -> GameEpisode:
        """Return an episode."""
        return _Archive(self, ANSWERS[data["answer"]], random.Random(data["number"]))


class _Archive(GameEpisode):
    def __init__(self, spec: Archive, answer: str, dice: random.Random) -> None:
        super().__init__(spec.max_turns)
        self.answer, self.shelves = answer, [dice.choice(SHELVES) for _ in range(spec.lookups)]
        self.inside = self.lost = False

    def words(self) -> tuple[str, ...]:
        return (*ANSWERS, "search") if not self.inside else SHELVES if self.shelves else ANSWERS

    def show(self) -> str:
        if not self.inside:
            return "answer or search"
        note = "is empty" if self.lost else f"says {self.answer}"
        return f"it is on the {self.shelves[0]} shelf" if self.shelves else f"the note {note}"

    def plan(self) -> tuple[str, ...]:
        return (*(() if self.inside else ("search",)), *self.shelves, self.answer)

    def do(self, word: str) -> tuple[bool, Mapping[str, float]]:
        if word in ANSWERS:
            return True, {"success": float(word == self.answer and not self.lost)}
        if not self.inside:
            self.inside = True
            return False, {}
        self.lost = word != self.shelves.pop(0) or self.lost
        return False, {"tool": 1.0}
