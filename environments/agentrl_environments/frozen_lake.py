"""Gymnasium's FrozenLake as text: cross the ice to the goal, and fall into no hole.

Every task has a map of its own. The splits are disjoint by map, so what is learned on the training maps is how to walk on ice, not
where to walk. The ``local`` view says what lies around and where the goal is: short texts of a dozen words that a tiny model learns
from scratch; the ``grid`` view shows the whole map. On 4 by 4 lakes the best policy that looks at the local view only, and remembers
nothing, crosses about 0.85 of them: it cannot see a dead end before it is in it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal  # Any: what a gymnasium environment observes

from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

from agentrl.env import STANDARD_SIGNALS, Env, EnvSpec
from agentrl.env.gym_text import GymEnv, GymEpisode
from agentrl.errors import ConfigError
from agentrl.sandbox import Sandbox
from agentrl.types import Observation, Step, Task, seed_of

ACTIONS = ("left", "down", "right", "up")
MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))
SIZES = {"train": 512, "valid": 64, "test": 256}
TILES = {"S": "ice", "F": "ice", "H": "hole", "G": "goal"}
Map = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenLake(EnvSpec):
    """Lakes of ``size`` by ``size`` tiles, of which the share ``holes`` are holes."""

    signals: ClassVar = {
        **STANDARD_SIGNALS,
        "progress": "tiles by which the shortest safe way to the goal became shorter; falling into a hole makes no progress",
        "fell": "1 on the turn that ended in a hole, else 0",
    }

    size: int = 4
    holes: float = 0.2
    slippery: bool = False
    """Whether two moves of three slip to a side; then nobody knows a plan."""
    view: Literal["local", "grid"] = "local"
    max_turns: int = 16

    def __post_init__(self) -> None:
        if not 4 <= self.size <= 16:
            raise ConfigError(
                f"size must be from 4 to 16 (smaller lakes have too few maps for three splits), found {self.size}"
            )
        if not 0.05 <= self.holes <= 0.4:
            raise ConfigError(f"holes must be from 0.05 to 0.4, found {self.holes}")
        if self.view not in ("local", "grid"):
            raise ConfigError(f"view must be 'local' or 'grid', found {self.view!r}")
        if self.max_turns < 2 * (self.size - 1):
            raise ConfigError(
                f"max_turns must be at least {2 * (self.size - 1)}, the shortest way across, found {self.max_turns}"
            )

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the split's tasks: different maps, each with a way to its goal within ``max_turns``."""
        if split not in SIZES:
            raise ConfigError(f"frozen-lake has no split {split!r}; it has {', '.join(SIZES)}")
        return [
            Task(
                f"frozen-lake-{split}-{index}",
                {"map": list(lake), "seed": seed_of("slip", split, index) % 2**31},
            )
            for index, lake in enumerate(_maps(self.size, self.holes, self.max_turns)[split])
        ]

    @asynccontextmanager
    async def open(self, task: Task, sandbox: Sandbox | None, shared: object) -> AsyncIterator[Env]:
        """Open one episode."""
        rows = task.data["map"]
        assert isinstance(rows, Sequence)
        env: GymEnv = FrozenLakeEnv(desc=[str(row) for row in rows], is_slippery=self.slippery)
        try:
            yield _Walk(self, env, tuple(map(str, rows)), int(str(task.data["seed"])))
        finally:
            env.close()


class _Walk:
    """One episode: gymnasium's, with the way to the goal measured before and after each move."""

    def __init__(self, spec: FrozenLake, env: GymEnv, lake: Map, seed: int) -> None:
        self._spec, self._lake = spec, lake
        self._left = 0
        self._ways = _ways(lake)
        self._episode = GymEpisode(env, seed, ACTIONS, self._render, self._plan, self._measure)

    async def reset(self) -> Observation:
        observation = await self._episode.reset()
        self._left = len(self._ways[0, 0])
        return observation

    async def step(self, action: str) -> Step:
        return await self._episode.step(action)

    def _place(self) -> tuple[int, int]:
        return divmod(int(self._episode.state), self._spec.size)

    def _measure(self, env: GymEnv, reward: float, terminated: bool) -> Mapping[str, float]:
        fell = terminated and reward <= 0
        left = self._left if fell else len(self._ways[self._place()])
        progress, self._left = self._left - left, left
        return {"success": float(terminated and reward > 0), "progress": float(progress), "fell": float(fell)}

    def _plan(self, env: GymEnv) -> tuple[str, ...]:
        return () if self._spec.slippery else self._ways.get(self._place(), ())

    def _render(self, env: GymEnv, state: Any) -> str:
        row, column = self._place()
        if (under := self._tile(row, column)) != "ice":
            return f"you are in a {under}" if under == "hole" else "you are at the goal"
        if self._spec.view == "grid":
            rows = [list(line) for line in self._lake]
            rows[row][column] = "@"
            return "\n".join(" ".join(line) for line in rows)
        sides = [
            f"{action} {self._tile(row + down, column + right)}"
            for action, (down, right) in zip(ACTIONS, MOVES, strict=True)
        ]
        goal = f"goal down {self._spec.size - 1 - row} right {self._spec.size - 1 - column}"
        return " . ".join([goal, *sides])

    def _tile(self, row: int, column: int) -> str:
        inside = 0 <= row < self._spec.size and 0 <= column < self._spec.size
        return TILES[self._lake[row][column]] if inside else "wall"


@cache
def _maps(size: int, holes: float, max_turns: int) -> Mapping[str, tuple[Map, ...]]:
    """Return the maps of each split, all different."""
    stream = _stream(size, holes, max_turns)
    return {split: tuple(next(stream) for _ in range(count)) for split, count in SIZES.items()}


def _stream(size: int, holes: float, max_turns: int) -> Iterator[Map]:
    """Yield different maps with a way from the upper left to the goal of at most ``max_turns`` moves."""
    source = random.Random(seed_of("frozen-lake", size, holes))
    seen: set[Map] = set()
    while True:
        tiles = ["H" if source.random() < holes else "F" for _ in range(size * size)]
        tiles[0], tiles[-1] = "S", "G"
        lake = tuple("".join(tiles[start : start + size]) for start in range(0, size * size, size))
        way = _ways(lake).get((0, 0))
        if way is not None and len(way) <= max_turns and lake not in seen:
            seen.add(lake)
            yield lake


def _ways(lake: Map) -> Mapping[tuple[int, int], tuple[str, ...]]:
    """Return a shortest safe way to the goal from every tile that has one, by breadth-first search from the goal."""
    size = len(lake)
    goal = (size - 1, size - 1)
    ways: dict[tuple[int, int], tuple[str, ...]] = {goal: ()}
    frontier = deque([goal])
    while frontier:
        row, column = frontier.popleft()
        for action, (down, right) in zip(ACTIONS, MOVES, strict=True):
            before = (row - down, column - right)
            inside = 0 <= before[0] < size and 0 <= before[1] < size
            if inside and before not in ways and lake[before[0]][before[1]] != "H":
                ways[before] = (action, *ways[row, column])
                frontier.append(before)
    return ways
