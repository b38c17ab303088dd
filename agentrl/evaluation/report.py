"""Evaluation reports: measures of each task, means with intervals, and the comparison of two reports."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from agentrl.env import panel_hash
from agentrl.errors import CheckpointError, ConfigError
from agentrl.evaluation.statistics import (
    Array,
    Interval,
    mcnemar_p_value,
    mean_interval,
    pass_at_k,
    pass_hat_k,
    share_interval,
    sign_flip_p_value,
)
from agentrl.records.files import replace
from agentrl.types import End, Json, Task, Trajectory

MEASURES: Mapping[str, str] = {
    "success": "share of episodes that solved their task",
    "return": "sum of the environment's rewards",
    "turns": "turns of an episode",
    "tokens": "sampled tokens of an episode",
    "prompt_tokens": "tokens of an episode's context that were not sampled",
    "invalid": "share of an episode's turns whose action the environment refused",
    "clipped": "share of an episode's actions that were cut off at the token limit",
    "truncated": "share of episodes that were ended by a limit",
}
"""The measures of an episode. ``Report.measures`` adds ``pass@k`` and ``pass^k`` if tasks are played more
than once.
"""

_SHARES = ("success", "truncated")
"""Measures that are 0 or 1 for an episode."""
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The measures of one task's episodes."""

    task: str
    content: str
    """Content hash of the task, which tells whether two reports played the same task."""
    values: Mapping[str, tuple[float, ...]]
    """For each measure, by name, one number per episode."""

    @property
    def num_episodes(self) -> int:
        """Number of episodes that were played to an end."""
        return len(self.values["success"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of an evaluation.

    ``results`` are in the order of the panel, without tasks that lost all their episodes.
    """

    name: str
    panel: str
    """Content hash of the panel, which is all tasks that were to be played."""
    seed: int
    episodes_per_task: int
    results: tuple[TaskResult, ...]
    lost: int = 0
    """Number of episodes that broke at every attempt; no mean includes them."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Number of failed attempts for each error message."""
    settings: Mapping[str, Json] = field(default_factory=dict)
    """Further settings that a reader needs: temperature, checkpoint, endpoint ..."""

    @property
    def num_episodes(self) -> int:
        """Number of episodes that were played to an end."""
        return sum(result.num_episodes for result in self.results)

    def task_means(self, measure: str) -> Array:
        """Return one number per task, ``[K]``: the mean of ``measure`` over the task's episodes."""
        return np.array([np.mean(result.values[measure]) for result in self.results], dtype=np.float64)

    def measures(self) -> dict[str, Interval]:
        """Return every measure's mean over tasks with its 95% interval."""
        found = {}
        for name in MEASURES:
            means_K = self.task_means(name)
            found[name] = (
                share_interval(means_K, num_episodes=self.num_episodes)
                if name in _SHARES
                else mean_interval(means_K)
            )
        counts = [(result.num_episodes, int(sum(result.values["success"]))) for result in self.results]
        for exponent in range(1, self.episodes_per_task.bit_length()):
            k = 2**exponent
            enough = [(n, c) for n, c in counts if n >= k]
            for label, estimate in ((f"pass@{k}", pass_at_k), (f"pass^{k}", pass_hat_k)):
                found[label] = share_interval(
                    [estimate(n, c, k) for n, c in enough], num_episodes=sum(n // k for n, _ in enough)
                )
        return found

    def metrics(self) -> dict[str, float]:
        """Return the measures as metrics for a ``MetricsLog``: ``eval/success``, ``eval/success_low`` ..."""
        numbers = {"eval/lost": float(self.lost)}
        for name, interval in self.measures().items():
            numbers |= {
                f"eval/{name}": interval.mean,
                f"eval/{name}_low": interval.low,
                f"eval/{name}_high": interval.high,
            }
        return numbers

    def write(self, path: Path) -> None:
        """Write the report as JSON, atomically. The measures are included for other programs to read."""
        shown = {
            name: {key: value if math.isfinite(value) else None for key, value in asdict(interval).items()}
            for name, interval in self.measures().items()
        }
        head = {
            "format": _FORMAT,
            "name": self.name,
            "panel": self.panel,
            "seed": self.seed,
            "episodes_per_task": self.episodes_per_task,
        }
        body = {
            "lost": self.lost,
            "reasons": dict(self.reasons),
            "settings": self.settings,
            "measures": shown,
        }
        lines = ",\n  ".join(json.dumps(asdict(result)) for result in self.results)
        text = json.dumps(head | body, indent=1, default=list).removesuffix("\n}")
        replace(path, f'{text},\n "results": [\n  {lines}\n ]\n}}\n'.encode())

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read a report back.

        Raises:
            CheckpointError: the file does not exist, or is not a report of this version.
        """
        try:
            data = json.loads(path.read_bytes())
            if data["format"] != _FORMAT:
                raise ValueError(f"format {data['format']}, expected {_FORMAT}")
            results = tuple(
                TaskResult(
                    row["task"], row["content"], {name: tuple(row["values"][name]) for name in MEASURES}
                )
                for row in data["results"]
            )
            keys = ("name", "panel", "seed", "episodes_per_task", "lost", "reasons", "settings")
            return cls(results=results, **{key: data[key] for key in keys})
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise CheckpointError(
                f"{path} is not an evaluation report of this version ({type(problem).__name__}: {problem}); "
                "give a file that agentrl eval wrote"
            ) from problem


def task_results(tasks: Sequence[Task], trajectories: Sequence[Trajectory]) -> tuple[TaskResult, ...]:
    """Return each task's measures over ``trajectories``, which may come from a store, in order of sample.

    Failed trajectories are left out.
    """
    by_task: dict[str, list[Trajectory]] = {task.id: [] for task in tasks}
    for trajectory in sorted(trajectories, key=lambda trajectory: trajectory.sample):
        if trajectory.end is not End.FAILED:
            by_task[trajectory.task.id].append(trajectory)
    results = []
    for task in tasks:
        if episodes := [_measures(trajectory) for trajectory in by_task[task.id]]:
            values = {name: tuple(episode[name] for episode in episodes) for name in MEASURES}
            results.append(TaskResult(task.id, panel_hash([task]), values))
    return tuple(results)


def _measures(trajectory: Trajectory) -> dict[str, float]:
    turns = trajectory.turns
    return {
        "success": float(trajectory.success),
        "return": float(sum(turn.reward for turn in turns)),
        "turns": float(len(turns)),
        "tokens": float(trajectory.num_tokens),
        "prompt_tokens": float(sum(len(turn.action.prompt) for turn in turns)),
        "invalid": sum(turn.info.get("valid", 1.0) <= 0 for turn in turns) / max(1, len(turns)),
        "clipped": sum(turn.action.clipped for turn in turns) / max(1, len(turns)),
        "truncated": float(trajectory.end is End.TRUNCATED),
    }


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference B minus A of one measure, paired by task.

    ``p_value`` is for the hypothesis that A and B do not differ, by the test that ``test`` names.
    """

    measure: str
    a: float
    b: float
    difference: Interval
    p_value: float
    test: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of two reports, A and B, task by task.

    ``only_a`` and ``only_b`` are the numbers of tasks that only A or only B played; these tasks are left out
    of every other number.
    """

    a: str
    b: str
    num_tasks: int
    only_a: int
    only_b: int
    differences: tuple[Difference, ...]


def compare(a: Report, b: Report) -> Comparison:
    """Compare ``b`` with ``a`` on the tasks that both played.

    The interval of a difference is a t interval over tasks. Success with one episode per task is tested by
    McNemar's exact test, every other measure by flipping the signs of the tasks' differences. Neither test
    assumes a distribution.

    Raises:
        ConfigError: the reports have no task in common, or one task id has different contents in them.
    """
    theirs = {result.task: result for result in b.results}
    pairs = [(result, theirs[result.task]) for result in a.results if result.task in theirs]
    if not pairs:
        raise ConfigError(
            f"reports {a.name!r} and {b.name!r} have no task in common; "
            "evaluate both on the same environment and split"
        )
    if other := [mine.task for mine, their in pairs if mine.content != their.content]:
        raise ConfigError(
            f"task {other[0]!r} is not the same in {a.name!r} and {b.name!r} "
            f"(nor are {len(other) - 1} others): the panels were made by different versions or options of "
            "the environment; evaluate both on one panel"
        )
    return Comparison(
        a.name,
        b.name,
        len(pairs),
        len(a.results) - len(pairs),
        len(b.results) - len(pairs),
        tuple(_difference(measure, pairs) for measure in MEASURES),
    )


def _difference(measure: str, pairs: Sequence[tuple[TaskResult, TaskResult]]) -> Difference:
    a_K = np.array([np.mean(mine.values[measure]) for mine, _ in pairs])
    b_K = np.array([np.mean(their.values[measure]) for _, their in pairs])
    delta_K = b_K - a_K
    if measure == "success" and all(mine.num_episodes == their.num_episodes == 1 for mine, their in pairs):
        p_value, test = mcnemar_p_value(int(np.sum(delta_K < 0)), int(np.sum(delta_K > 0))), "McNemar, exact"
    else:
        p_value, test = sign_flip_p_value(delta_K.tolist()), "sign flips"
    return Difference(measure, float(a_K.mean()), float(b_K.mean()), mean_interval(delta_K), p_value, test)
