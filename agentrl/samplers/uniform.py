"""Samplers that do not learn: they draw every task equally often."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentrl.errors import ConfigError
from agentrl.samplers import Draw, Sampler
from agentrl.types import Task, seed_of


@dataclass(frozen=True, slots=True)
class Uniform(Sampler):
    """Draws every task once per epoch, in a different random order in each epoch.

    The order comes from a hash of (seed, epoch, task id): it depends neither on the order of ``tasks`` nor on
    the machine, and any draw can be computed without the ones before it.
    """

    def draw(
        self, tasks: Sequence[Task], *, draw_index: int, num_groups: int, group_size: int, seed: int
    ) -> list[Draw]:
        """Return the draws; ``num_groups``, ``group_size`` and ``tasks`` must not change within a run."""

        def shuffled(epoch: int) -> list[Task]:
            return sorted(tasks, key=lambda task: seed_of(seed, "uniform", epoch, task.id))

        return _epochs(tasks, shuffled, draw_index=draw_index, num_groups=num_groups, group_size=group_size)


@dataclass(frozen=True, slots=True)
class Sequential(Sampler):
    """Draws every task once per epoch, in the order of ``tasks``."""

    def draw(
        self, tasks: Sequence[Task], *, draw_index: int, num_groups: int, group_size: int, seed: int
    ) -> list[Draw]:
        """Return the draws; ``num_groups``, ``group_size`` and ``tasks`` must not change within a run."""
        return _epochs(
            tasks, lambda epoch: tasks, draw_index=draw_index, num_groups=num_groups, group_size=group_size
        )


def _epochs(
    tasks: Sequence[Task],
    order: Callable[[int], Sequence[Task]],
    *,
    draw_index: int,
    num_groups: int,
    group_size: int,
) -> list[Draw]:
    """Return the part of the endless sequence of epochs that belongs to the draw ``draw_index``.

    A task comes once per epoch, so the epoch determines the number of its first sample.
    """
    if not tasks:
        raise ConfigError("there are no tasks to draw from; the split is empty")
    first = draw_index * num_groups
    draws: list[Draw] = []
    for epoch in range(first // len(tasks), (first + num_groups - 1) // len(tasks) + 1):
        start = max(first - epoch * len(tasks), 0)
        stop = min(first + num_groups - epoch * len(tasks), len(tasks))
        draws += [Draw(task, group_size, epoch * group_size) for task in order(epoch)[start:stop]]
    return draws
