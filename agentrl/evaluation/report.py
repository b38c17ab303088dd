"""Reports: what was measured of each task, with intervals, and the paired comparison of two."""

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
    "prompt_tokens": "tokens of context of an episode that were not sampled",
    "invalid": "share of an episode's turns whose action the environment refused",
    "clipped": "share of an episode's actions that the token limit ended",
    "truncated": "share of episodes that a limit ended",
}
"""What is measured of an episode; ``Report.measures`` adds ``pass@k`` and ``pass^k`` where tasks are played more than once."""


_SHARES = ("success", "truncated")  # of episodes: a coin per episode


_FORMAT = 1


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What the episodes of one task brought: ``values[measure]`` holds one number per episode. ``content`` is the task's hash."""

    task: str
    content: str
    values: Mapping[str, tuple[float, ...]]

    @property
    def num_episodes(self) -> int:
        """Episodes that were played to an end."""
        return len(self.values["success"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """An evaluation. ``results`` are in the order of the panel; tasks that lost all their episodes are not among them."""

    name: str
    panel: str
    """Content hash of the tasks."""
    seed: int
    episodes_per_task: int
    results: tuple[TaskResult, ...]
    lost: int = 0
    """Episodes that broke each time they were started, and are in no mean."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Why attempts failed, and how many of them."""
    settings: Mapping[str, Json] = field(default_factory=dict)
    """What else a reader must know: temperature, checkpoint, endpoint ..."""

    @property
    def num_episodes(self) -> int:
        """Episodes that were played to an end."""
        return sum(result.num_episodes for result in self.results)

    def task_means(self, measure: str) -> Array:
        """Return the mean of ``measure`` over the episodes of each task, ``[K]``."""
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
        """Return the measures as metrics, ``eval/success`` with ``_low`` and ``_high``, for a ``MetricsLog``."""
        numbers = {"eval/lost": float(self.lost)}
        for name, interval in self.measures().items():
            numbers |= {
                f"eval/{name}": interval.mean,
                f"eval/{name}_low": interval.low,
                f"eval/{name}_high": interval.high,
            }
        return numbers

    def write(self, path: Path) -> None:
        """Write the report as JSON, atomically; the measures are in it for other readers."""
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
            CheckpointError: there is none, or it is no report of this version.
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
                f"{path} is no evaluation report of this version ({type(problem).__name__}: {problem}); give a file that agentrl eval wrote"
            ) from problem


def task_results(tasks: Sequence[Task], trajectories: Sequence[Trajectory]) -> tuple[TaskResult, ...]:
    """Return what ``trajectories`` brought for each task, in order of sample; failed ones are left out. They may come from a store."""
    by_task: dict[str, list[Trajectory]] = {task.id: [] for task in tasks}
    for trajectory in sorted(trajectories, key=lambda trajectory: trajectory.sample):
        if trajectory.end is not End.FAILED:
            by_task[trajectory.task.id].append(trajectory)
    results = []
    for task in tasks:
        if episodes := [_episode(trajectory) for trajectory in by_task[task.id]]:
            results.append(
                TaskResult(
                    task.id, panel_hash([task]), {name: tuple(e[name] for e in episodes) for name in MEASURES}
                )
            )
    return tuple(results)


def _episode(trajectory: Trajectory) -> dict[str, float]:
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
    """One measure of B minus A, paired by task; ``p_value`` of "A and B are alike" by ``test``."""

    measure: str
    a: float
    b: float
    difference: Interval
    p_value: float
    test: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two reports, task by task. ``only_a`` and ``only_b`` tasks have a partner nowhere and are in no number."""

    a: str
    b: str
    num_tasks: int
    only_a: int
    only_b: int
    differences: tuple[Difference, ...]


def compare(a: Report, b: Report) -> Comparison:
    """Compare ``b`` with ``a`` on the tasks that both played.

    The interval of a difference is a t interval over tasks. Success with one episode per task is tested by McNemar's exact test, all
    else by flipping the signs of the tasks' differences; no test assumes a distribution.

    Raises:
        ConfigError: no task in common, or a task with one id and two contents.
    """
    theirs = {result.task: result for result in b.results}
    pairs = [(result, theirs[result.task]) for result in a.results if result.task in theirs]
    if not pairs:
        raise ConfigError(
            f"reports {a.name!r} and {b.name!r} have no task in common; evaluate both on the same environment and split"
        )
    if other := [mine.task for mine, their in pairs if mine.content != their.content]:
        raise ConfigError(
            f"task {other[0]!r} is not the same in {a.name!r} and {b.name!r} (nor are {len(other) - 1} others): "
            "the panels were made by different versions or options of the environment; evaluate both on one panel"
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
