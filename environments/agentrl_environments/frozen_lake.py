"""Gymnasium's FrozenLake as text: cross the ice to the goal without falling into a hole.

Every task has its own map, and no map is in two splits: a policy can learn how to walk on ice, but not where
to walk. The ``local`` view describes the four neighbouring tiles and the direction of the goal, in short
texts of a dozen words that a tiny model learns from scratch. The ``grid`` view shows the whole map. On 4 by 4
lakes the best memoryless policy that sees only the local view crosses a share of about 0.85: it cannot see a
dead end before it has walked into it.
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
    """Lakes of ``size`` by ``size`` tiles.

    Each tile, except the start and the goal, is a hole with probability ``holes``.
    """

    signals: ClassVar = {
        **STANDARD_SIGNALS,
        "progress": "tiles by which the shortest safe path to the goal became shorter; 0 on falling",
        "fell": "1 on the turn that ended in a hole, else 0",
    }

    size: int = 4
    holes: float = 0.2
    slippery: bool = False
    """Whether the ice is slippery: a move then goes sideways with probability 2/3. There is no expert plan
    for slippery lakes."""
    view: Literal["local", "grid"] = "local"
    max_turns: int = 16

    def __post_init__(self) -> None:
        if not 4 <= self.size <= 16:
            raise ConfigError(
                f"size must be from 4 to 16 (smaller lakes have too few maps for three splits), "
                f"found {self.size}"
            )
        if not 0.05 <= self.holes <= 0.4:
            raise ConfigError(f"holes must be from 0.05 to 0.4, found {self.holes}")
        if self.view not in ("local", "grid"):
            raise ConfigError(f"view must be 'local' or 'grid', found {self.view!r}")
        if self.max_turns < 2 * (self.size - 1):
            raise ConfigError(
                f"max_turns must be at least {2 * (self.size - 1)}, the shortest path across, "
                f"found {self.max_turns}"
            )

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the split's tasks: distinct maps with a safe path to the goal within ``max_turns`` moves."""
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
        """Open one episode on the map of a task."""
        rows: Sequence[str] = task.data["map"]
        env: GymEnv = FrozenLakeEnv(desc=list(rows), is_slippery=self.slippery)
        try:
            yield _LakeEpisode(self, env, tuple(rows), task.data["seed"])
        finally:
            env.close()


class _LakeEpisode:
    """One episode of the Gymnasium environment.

    The length of the shortest safe path to the goal is measured before and after each move.
    """

    def __init__(self, spec: FrozenLake, env: GymEnv, lake: Map, seed: int) -> None:
        self._spec, self._lake = spec, lake
        self._distance = 0
        self._paths = _shortest_paths(lake)
        self._episode = GymEpisode(env, seed, ACTIONS, self._render, self._plan, self._measure)

    async def reset(self) -> Observation:
        observation = await self._episode.reset()
        self._distance = len(self._paths[0, 0])
        return observation

    async def step(self, action: str) -> Step:
        return await self._episode.step(action)

    def _position(self) -> tuple[int, int]:
        return divmod(int(self._episode.state), self._spec.size)

    def _measure(self, env: GymEnv, reward: float, terminated: bool) -> Mapping[str, float]:
        fell = terminated and reward <= 0
        distance = self._distance if fell else len(self._paths[self._position()])
        progress, self._distance = self._distance - distance, distance
        return {"success": float(terminated and reward > 0), "progress": float(progress), "fell": float(fell)}

    def _plan(self, env: GymEnv) -> tuple[str, ...]:
        return () if self._spec.slippery else self._paths.get(self._position(), ())

    def _render(self, env: GymEnv, state: Any) -> str:
        row, column = self._position()
        tile = self._tile(row, column)
        if tile != "ice":
            return "you are in a hole" if tile == "hole" else "you are at the goal"
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
    """Return the maps of each split, by the split's name. No map occurs twice, not even in two splits."""
    stream = _distinct_maps(size, holes, max_turns)
    return {split: tuple(next(stream) for _ in range(count)) for split, count in SIZES.items()}


def _distinct_maps(size: int, holes: float, max_turns: int) -> Iterator[Map]:
    """Yield distinct maps with a safe path of at most ``max_turns`` moves from the upper left to the goal."""
    source = random.Random(seed_of("frozen-lake", size, holes))
    seen: set[Map] = set()
    while True:
        tiles = ["H" if source.random() < holes else "F" for _ in range(size * size)]
        tiles[0], tiles[-1] = "S", "G"
        lake = tuple("".join(tiles[start : start + size]) for start in range(0, size * size, size))
        path = _shortest_paths(lake).get((0, 0))
        if path is not None and len(path) <= max_turns and lake not in seen:
            seen.add(lake)
            yield lake


def _shortest_paths(lake: Map) -> Mapping[tuple[int, int], tuple[str, ...]]:
    """Return, for each tile (row, column) with a safe path to the goal, the moves of a shortest such path."""
    size = len(lake)
    goal = (size - 1, size - 1)
    paths: dict[tuple[int, int], tuple[str, ...]] = {goal: ()}
    frontier = deque([goal])
    while frontier:
        row, column = frontier.popleft()
        for action, (down, right) in zip(ACTIONS, MOVES, strict=True):
            before = (row - down, column - right)
            inside = 0 <= before[0] < size and 0 <= before[1] < size
            if inside and before not in paths and lake[before[0]][before[1]] != "H":
                paths[before] = (action, *paths[row, column])
                frontier.append(before)
    return paths
