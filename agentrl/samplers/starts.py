"""Starts inside an episode: the first turns of a known success are replayed, then the agent plays on.

Replayed turns hold no sampled tokens, so they are context: nothing is learned from them. All episodes of a
group have the same start, so they are comparable. Hard tasks that are never solved from the beginning can be
solved from a start near the end (PrefixRL, POPE; resets to states of a demonstration: DR-PO, Chang et al.
2024).
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
    """Starts a ``share`` of the groups from part of a known success of their task, if there is one.

    ``cuts`` are the shares of the success's turns that may be replayed; one share is drawn for each group. If
    ``cuts`` is empty, any number of turns is equally likely. At least one turn is replayed and at least one
    is left to play. ``solutions`` are the actions of known successes by task id (``read_solutions`` reads
    demonstrations); with ``remember`` the agent's own successes are added; the shortest of each task is kept.
    Evaluate without this sampler: the agent must succeed unguided.
    """

    solutions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    share: float = 0.5
    cuts: tuple[float, ...] = (0.4, 0.6, 0.8)
    remember: bool = True
    sampler: Sampler = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0 or any(not 0.0 < cut < 1.0 for cut in self.cuts):
            raise ConfigError(
                f"share must be in [0, 1] and every cut between 0 and 1; found {self.share} and {self.cuts}"
            )

    def draw(
        self, tasks: Sequence[Task], *, draw_index: int, num_groups: int, group_size: int, seed: int
    ) -> list[Draw]:
        """Return the draws of the inner sampler, ``sampler``, some of them with a prefix."""
        draws = self.sampler.draw(
            tasks, draw_index=draw_index, num_groups=num_groups, group_size=group_size, seed=seed
        )
        return [
            self._started(draw, random.Random(seed_of(seed, "prefix", draw_index, index)))
            for index, draw in enumerate(draws)
        ]

    def observe(self, groups: Sequence[ScoredGroup]) -> None:
        """Remember the shortest success of each task, and let the inner sampler learn."""
        for trajectory in (scored.trajectory for group in groups for scored in group):
            if self.remember and trajectory.success:
                keep_shortest(self.solutions, trajectory)
        self.sampler.observe(groups)

    def state_dict(self) -> Mapping[str, Json]:
        """Return the known solutions and the inner sampler's state."""
        return {
            "traces": {
                name: list(actions) for name, actions in self.solutions.items()
            },  # the key in checkpoints
            "sampler": dict(self.sampler.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Restore the known solutions and the inner sampler's state."""
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
    """Return the actions of the shortest success of each task in a file of trajectories.

    An example of such a file is a run's ``demonstrations/<stage>.parquet``.

    Raises:
        CheckpointError: the file does not exist or is damaged.
    """
    from agentrl.records.store import read_trajectories  # here, so that samplers do not import pyarrow

    solutions: dict[str, tuple[str, ...]] = {}
    for stored in read_trajectories(path):
        if stored.trajectory.success:
            keep_shortest(solutions, stored.trajectory)
    return solutions


def keep_shortest(solutions: dict[str, tuple[str, ...]], trajectory: Trajectory) -> None:
    """Put a success's actions into ``solutions``, unless the task's known solution is not longer."""
    actions = tuple(turn.action.text for turn in trajectory.turns)
    known = solutions.get(trajectory.task.id)
    if known is None or len(actions) < len(known):
        solutions[trajectory.task.id] = actions
