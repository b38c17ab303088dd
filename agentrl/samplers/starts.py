"""Starts inside an episode: the first turns of a known success are replayed, and what follows is played and learned from.

Replayed turns hold no sampled tokens, so they are context: nothing is learned from them. All episodes of a group share their start, so they
are compared with their like. Hard tasks, in which success never happens by itself, get a signal from where it is near (PrefixRL, POPE;
resets to states of a demonstration: DR-PO, Chang et al. 2024).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from agentrl.errors import ConfigError
from agentrl.samplers import Draw, Sampler
from agentrl.samplers.uniform import Uniform
from agentrl.types import Json, ScoredGroup, Task, Trajectory, seed_of


@dataclass(slots=True)
class Prefixes(Sampler):
    """Start a ``share`` of the groups from a part of a success of their task, where one is known.

    ``cuts``: which parts, as shares of the success's turns, one drawn for each group; empty: any turn, equally likely. At least one turn is
    replayed and at least one is left to play. ``solutions`` are successes known from the start (``read_solutions`` reads demonstrations);
    with ``remember`` the agent's own join them, the shortest of each task. Evaluate without: what was learned must hold unguided.
    """

    solutions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    share: float = 0.5
    cuts: tuple[float, ...] = (0.4, 0.6, 0.8)
    remember: bool = True
    sampler: Sampler = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0 or any(not 0.0 < cut < 1.0 for cut in self.cuts):
            raise ConfigError(
                f"share lies in [0, 1] and cuts between 0 and 1; found {self.share} and {self.cuts}"
            )

    def draw(
        self, tasks: Sequence[Task], *, draw_index: int, num_groups: int, group_size: int, seed: int
    ) -> list[Draw]:
        """Return the inner sampler's draws, some of them with a start."""
        draws = self.sampler.draw(
            tasks, draw_index=draw_index, num_groups=num_groups, group_size=group_size, seed=seed
        )
        return [
            self._started(draw, random.Random(seed_of(seed, "prefix", draw_index, place)))
            for place, draw in enumerate(draws)
        ]

    def observe(self, groups: Sequence[ScoredGroup]) -> None:
        """Remember the shortest success of each task, and let the inner sampler learn."""
        for trajectory in (scored.trajectory for group in groups for scored in group):
            if self.remember and trajectory.success:
                keep_shortest(self.solutions, trajectory)
        self.sampler.observe(groups)

    def state_dict(self) -> Mapping[str, Json]:
        """Return the successes that are known."""
        return {
            "traces": {name: list(actions) for name, actions in self.solutions.items()},
            "sampler": dict(self.sampler.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Take them back."""
        solutions = cast("Mapping[str, Sequence[str]]", state["traces"])
        self.solutions = {name: tuple(actions) for name, actions in solutions.items()}
        self.sampler.load_state_dict(cast("Mapping[str, Json]", state["sampler"]))

    def _started(self, draw: Draw, chance: random.Random) -> Draw:
        known = self.solutions.get(draw.task.id, ())
        if chance.random() >= self.share or len(known) < 2:
            return draw
        turns = (
            round(chance.choice(self.cuts) * len(known)) if self.cuts else chance.randint(1, len(known) - 1)
        )
        return replace(draw, prefix=known[: min(max(turns, 1), len(known) - 1)])


def read_solutions(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the shortest success of each task in a file of trajectories, such as a run's ``demonstrations/<stage>.parquet``.

    Raises:
        CheckpointError: no such file, or it is torn.
    """
    from agentrl.records.store import read_trajectories  # Parquet is needed here alone

    solutions: dict[str, tuple[str, ...]] = {}
    for stored in read_trajectories(path):
        if stored.trajectory.success:
            keep_shortest(solutions, stored.trajectory)
    return solutions


def keep_shortest(solutions: dict[str, tuple[str, ...]], trajectory: Trajectory) -> None:
    """Put a success's actions into ``solutions``, unless a shorter one is there."""
    actions = tuple(turn.action.text for turn in trajectory.turns)
    known = solutions.get(trajectory.task.id)
    if known is None or len(actions) < len(known):
        solutions[trajectory.task.id] = actions
