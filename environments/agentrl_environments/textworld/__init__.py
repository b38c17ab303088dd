"""Text games on the TextWorld engine: generated games, fixed panels, and two back ends that play them.

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
    from agentrl_environments.textworld.engine import GameGraph, Library

__all__ = ["CoinCollector", "Cooking", "Family", "Ladder", "TextWorld", "TreasureHunter", "parse"]

Backend = Literal["facts", "z8"]
Style = Literal["brief", "raw"]


@dataclass(frozen=True, kw_only=True)
class TextWorld(EnvSpec):
    """Fixed panels of generated text games, and how these are played.

    The splits ``train``, ``valid`` and ``test`` hold games of the family ``game``; no two splits have games
    of the same structure (the same up to names of rooms). The split ``ood`` (out of distribution) is the test
    split of a larger family.
    """

    game: str = "coin-r8-q4"
    """Name of the family of games, which holds all its options (see the module ``families``)."""
    backend: Backend = "facts"
    """What plays a game. ``facts`` plays the game's logic, which is fast. ``z8`` plays the compiled game,
    which has a text; a game is compiled when it is first needed."""
    observation: Style = "brief"
    """What the agent reads. ``brief`` is one line that lists what a player can see. ``raw`` is the text of
    the compiled game, and needs ``backend="z8"``."""
    show_actions: bool = False
    """Whether the text of an observation lists the admissible commands."""
    intermediate: bool = False
    """Whether to measure the signal ``intermediate``, which makes a step several times slower."""
    max_turns: int = 20
    train: int = 400
    valid: int = 100
    test: int = 200
    ood: int = 100
    ood_game: str = ""
    """Name of the larger family, which the split ``ood`` is drawn from. If it is empty, this is the next
    larger size of ``game``."""
    seed: int = 0
    """Number that the generator's seeds are derived from; another number gives other games."""
    cache: str = ""
    """Folder in which generated games are kept. If it is empty, the user's cache folder is used."""
    workers: int = 0
    """Number of processes that generate games. If it is 0, there is one per core. No result depends on it."""

    blocking: ClassVar[bool] = True
    splits: ClassVar[tuple[str, ...]] = ("train", "valid", "test", "ood")
    signals: ClassVar[Mapping[str, str]] = {
        **STANDARD_SIGNALS,
        "score": "points gained on this turn; this is the reward",
        "lost": "1 on the turn that lost the game, else 0",
        "intermediate": "1 where the shortest known plan became shorter, -1 where longer, else 0; only with "
        "intermediate=True. Sum it with its sign: counting gains alone pays for going back and forth",
    }

    def __post_init__(self) -> None:
        for name, known in (("backend", get_args(Backend)), ("observation", get_args(Style))):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"textworld: {name} is '{getattr(self, name)}'; it must be one of {', '.join(known)}"
                )
        if self.observation == "raw" and self.backend != "z8":
            raise ConfigError(
                "textworld: observation='raw' needs the text of the compiled game, found backend='facts'; "
                "set backend='z8'"
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
                f"textworld: intermediate=True needs a plan, and the engine tracks none for '{self.game}'; "
                "leave out '-drop' or intermediate=True"
            )
        if self.ood_game:
            parse(self.ood_game)

    @property
    def family(self) -> Family:
        """The family of games named by ``game``."""
        return parse(self.game)

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the split's games as tasks; games that are not in the cache yet are generated first."""
        return self._tasks(split, None)

    def prepare(self, progress: Progress) -> None:
        """Generate the games of all splits, and compile them if the back end is ``z8``."""
        for split in self.splits:
            tasks = self._tasks(split, progress)
            if self.backend == "z8" and tasks:
                self._games(tasks[0].data["game"]).compile(
                    [task.data["file"] for task in tasks], workers=self.workers, progress=progress
                )

    def shared(self) -> AbstractAsyncContextManager[Library]:
        """Open the library of loaded games that the episodes of a process share."""
        library: Library = _engine().Library()
        return nullcontext(library)

    @asynccontextmanager
    async def open(self, task: Task, sandbox: Sandbox | None, shared: Library | None) -> AsyncIterator[Env]:
        """Open an episode. Without a shared library, the game is loaded for this episode alone."""
        engine = _engine()
        from agentrl_environments.textworld.episode import CompiledEpisode, FactsEpisode, View

        library: Library = engine.Library() if shared is None else shared
        graph = self._graph(task, library)
        view = View(self.observation == "brief", self.show_actions, self.intermediate, self.max_turns)
        if self.backend == "facts":
            yield FactsEpisode(graph, view)
            return
        games, file = self._games(task.data["game"]), task.data["file"]
        games.compile([file], workers=1)
        interpreter = library.interpreters.lend(str((games.folder / file).with_suffix(".z8")))
        yield CompiledEpisode(graph, view, interpreter)
        library.interpreters.take_back(interpreter)  # only if the episode did not raise

    def _graph(self, task: Task, library: Library) -> GameGraph:
        key: str = task.data["key"]
        graph = library.get(key)
        if graph is None:
            engine, games = _engine(), self._games(task.data["game"])
            graph = engine.GameGraph(engine.load(games.load(task.data["file"])))
            library.add(key, graph)
        return graph

    def _tasks(self, split: str, progress: Progress | None) -> tuple[Task, ...]:
        if split not in self.splits:
            raise ConfigError(f"textworld has no split '{split}'; it has {', '.join(self.splits)}")
        name: str = self.game
        size: int = getattr(self, split)
        if split == "ood":
            name = self.ood_game or str(self.family.larger or "")
            if size and not name:
                raise ConfigError(
                    f"textworld: there is no larger size of '{self.game}'; "
                    "name a family with ood_game, or set ood=0"
                )
            split = "test"
        if not size:
            return ()
        panel = self._games(name).panel(split, size, workers=self.workers, progress=progress)
        return tuple(_task(name, entry) for entry in panel)

    def _games(self, name: str) -> Games:
        return Games(str(parse(name)), self.seed, self.cache)


def _task(name: str, entry: Entry) -> Task:
    return Task(
        f"{name}-{entry.key[:12]}", {"game": name, "seed": entry.seed, "key": entry.key, "file": entry.file}
    )


def _engine() -> ModuleType:
    """Import and return the module `engine`, which needs the TextWorld engine.

    A spec can be made, checked and listed without that engine.

    Raises:
        MissingExtra: the TextWorld engine is not installed.
    """
    try:
        from agentrl_environments.textworld import engine
    except ImportError as problem:
        raise MissingExtra(
            f"text games need the TextWorld engine ({problem}); pip install '.[textworld]'"
        ) from None
    return engine
