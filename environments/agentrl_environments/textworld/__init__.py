"""Text games on the TextWorld engine: generated worlds, fixed panels, two back ends.

>>> TextWorld(game="w2-o3-q4", max_turns=12).family
Ladder(rooms=2, objects=3, quest_length=4, guided=False)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from agentrl.env import STANDARD_SIGNALS, Env, EnvSpec, Progress
from agentrl.errors import ConfigError, MissingExtra
from agentrl.sandbox import Sandbox
from agentrl.types import Task
from agentrl_environments.textworld.families import (
    CoinCollector,
    Cooking,
    Family,
    Ladder,
    TreasureHunter,
    parse,
)
from agentrl_environments.textworld.games import Entry, Games

if TYPE_CHECKING:
    from agentrl_environments.textworld.engine import Library, World

__all__ = ["CoinCollector", "Cooking", "Family", "Ladder", "TextWorld", "TreasureHunter", "parse"]

Backend = Literal["facts", "z8"]
Style = Literal["brief", "raw"]


@dataclass(frozen=True, kw_only=True)
class TextWorld(EnvSpec):
    """A panel of generated games, and how they are played.

    Splits: ``train``, ``valid`` and ``test`` of ``game``, disjoint by structure; ``ood``: the test split of a larger world.
    """

    game: str = "coin-r8-q4"
    """The family's name; ``str`` of a family value gives it, `parse` reads it."""
    backend: Backend = "facts"
    """``facts`` plays the game's logic, which is fast; ``z8`` the compiled game, which has a text of its own (compiled when needed)."""
    observation: Style = "brief"
    """``brief`` renders the facts in a line; ``raw`` is the compiled game's own text and needs ``z8``."""
    show_actions: bool = False
    """List the admissible commands in the text."""
    intermediate: bool = False
    """Measure the signal ``intermediate``; it makes a step several times dearer."""
    max_turns: int = 20
    train: int = 400
    valid: int = 100
    test: int = 200
    ood: int = 100
    ood_game: str = ""
    """The larger world; empty for the family's own next size."""
    seed: int = 0
    """Base of the generator's seeds: another base, other games."""
    cache: str = ""
    """Folder of generated games; empty for the user's cache folder."""
    workers: int = 0
    """Processes that make games; 0 for one per core. No result depends on it."""

    blocking: ClassVar[bool] = True
    splits: ClassVar[tuple[str, ...]] = ("train", "valid", "test", "ood")
    signals: ClassVar[Mapping[str, str]] = {
        **STANDARD_SIGNALS,
        "score": "points of the game gained on this turn; the reward",
        "lost": "1 on the turn that lost the game, else 0",
        "intermediate": "1 where the shortest known plan became shorter, -1 where longer, else 0; only with intermediate=True. Sum it "
        "with its sign: counting gains alone pays for going back and forth",
    }

    def __post_init__(self) -> None:
        for name, known in (("backend", get_args(Backend)), ("observation", get_args(Style))):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"textworld: {name} is '{getattr(self, name)}'; it must be one of {', '.join(known)}"
                )
        if self.observation == "raw" and self.backend != "z8":
            raise ConfigError(
                "textworld: observation='raw' with backend='facts'; only the compiled game has a text: set backend='z8'"
            )
        for name, least in {
            "max_turns": 1,
            "train": 0,
            "valid": 0,
            "test": 0,
            "ood": 0,
            "workers": 0,
            "seed": 0,
        }.items():
            if getattr(self, name) < least:
                raise ConfigError(f"textworld: {name} is {getattr(self, name)}; it must be at least {least}")
        family = self.family
        if self.intermediate and isinstance(family, Cooking) and family.drop:
            raise ConfigError(
                f"textworld: the engine tracks no plan for '{self.game}'; leave out '-drop' or intermediate=True"
            )
        if self.ood_game:
            parse(self.ood_game)

    @property
    def family(self) -> Family:
        """The family that ``game`` names."""
        return parse(self.game)

    def tasks(self, split: str) -> Sequence[Task]:
        """Return a panel; games that are not in the cache yet are made first."""
        return self._tasks(split, None)

    def prepare(self, progress: Progress) -> None:
        """Make all games of all splits, and compile them where the back end needs it."""
        for split in self.splits:
            tasks = self._tasks(split, progress)
            if self.backend == "z8" and tasks:
                self._games(str(tasks[0].data["game"])).compile(
                    [str(task.data["file"]) for task in tasks], workers=self.workers, progress=progress
                )

    def shared(self) -> AbstractAsyncContextManager[object]:
        """Lend episodes one library of loaded games."""
        return nullcontext(_engine().Library())

    def open(self, task: Task, sandbox: Sandbox | None, shared: object) -> AbstractAsyncContextManager[Env]:
        """Open an episode."""
        return self._open(task, shared)

    @asynccontextmanager
    async def _open(self, task: Task, shared: object) -> AsyncIterator[Env]:
        from agentrl_environments.textworld.episode import CompiledEpisode, FactsEpisode, View

        engine = _engine()
        library = shared if isinstance(shared, engine.Library) else engine.Library()
        world = self._world(task, library)
        view = View(self.observation == "brief", self.show_actions, self.intermediate, self.max_turns)
        if self.backend == "facts":
            yield FactsEpisode(world, view)
            return
        games, file = self._games(str(task.data["game"])), str(task.data["file"])
        games.compile([file], workers=1)
        interpreter = library.interpreters.lend(str((games.folder / file).with_suffix(".z8")))
        yield CompiledEpisode(world, view, interpreter)
        library.interpreters.take_back(interpreter)  # not after an error

    def _world(self, task: Task, library: Library) -> World:
        key = str(task.data["key"])
        world = library.get(key)
        if world is None:
            engine, games = _engine(), self._games(str(task.data["game"]))
            world = engine.World(engine.load(games.load(str(task.data["file"]))))
            library.add(key, world)
        return world

    def _tasks(self, split: str, progress: Progress | None) -> tuple[Task, ...]:
        if split not in self.splits:
            raise ConfigError(f"textworld has no split '{split}'; it has {', '.join(self.splits)}")
        name, size = self.game, int(getattr(self, split))
        if split == "ood":
            name = self.ood_game or str(self.family.larger or "")
            if size and not name:
                raise ConfigError(
                    f"textworld: there is no larger world than '{self.game}'; name one with ood_game, or set ood=0"
                )
        panel = (
            self._games(name).panel(
                "test" if split == "ood" else split, size, workers=self.workers, progress=progress
            )
            if size
            else ()
        )
        return tuple(_task(name, entry) for entry in panel)

    def _games(self, name: str) -> Games:
        return Games(str(parse(name)), self.seed, self.cache)


def _task(name: str, entry: Entry) -> Task:
    return Task(
        f"{name}-{entry.key[:12]}", {"game": name, "seed": entry.seed, "key": entry.key, "file": entry.file}
    )


def _engine() -> ModuleType:
    """Import the part that needs the engine: a spec can be made, checked and listed without it."""
    try:
        from agentrl_environments.textworld import engine
    except ImportError as problem:
        raise MissingExtra(
            f"text games need the TextWorld engine ({problem}); pip install '.[textworld]'"
        ) from None
    return engine
