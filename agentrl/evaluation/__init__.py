"""Evaluation: play a panel of tasks, and report the mean of each measure with its uncertainty.

Every measure is a mean over *tasks* of the mean over a task's episodes, with a 95% interval clustered by task
(``statistics`` has the formulas). Episodes that broke are played again. Those that broke at every attempt are
lost: they are left out and counted, never scored 0, and an evaluation that loses more than a few is an error.
Two reports are compared task by task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from agentrl.env import panel_hash
from agentrl.errors import ConfigError, EnvError
from agentrl.evaluation.report import Report, task_results
from agentrl.policy import Policy
from agentrl.records.store import write_trajectories
from agentrl.rollout import Host, Limits, play_all
from agentrl.samplers import Draw
from agentrl.types import Json, Task, Trajectory


async def evaluate(
    policy: Policy,
    host: Host,
    tasks: Sequence[Task],
    *,
    episodes_per_task: int = 1,
    seed: int,
    limits: Limits,
    name: str = "",
    settings: Mapping[str, Json] | None = None,
    max_lost: float = 0.05,
    on_end: Callable[[Trajectory], None] = lambda _: None,
    store: Path | None = None,
) -> Report:
    """Play ``tasks`` and return a report.

    ``store`` is a file for the trajectories. ``on_end`` is called with each trajectory as it ends, including
    failed attempts.

    Raises:
        ConfigError: there is no task, two tasks have the same id, or ``episodes_per_task`` is less than 1.
        EnvError: more than the share ``max_lost`` of the episodes broke at every attempt.
    """
    ids = Counter(task.id for task in tasks)
    if not tasks or episodes_per_task < 1:
        raise ConfigError(
            f"an evaluation needs at least one task and one episode of it; found {len(tasks)} tasks of "
            f"{episodes_per_task} episodes"
        )
    if repeated := [task for task, count in ids.items() if count > 1]:
        raise ConfigError(
            f"the tasks of a panel must have different ids; {repeated[0]!r} is the id of {ids[repeated[0]]}"
        )
    draws = [Draw(task, episodes_per_task, 0) for task in tasks]
    played = await play_all(draws, policy=policy, host=host, seed=seed, limits=limits, on_end=on_end)
    if store is not None:
        write_trajectories(store, played.groups, update=0, stage=name or "evaluate", failures=played.failures)
    trajectories = [trajectory for group in played.groups for trajectory in group]
    total = len(tasks) * episodes_per_task
    counted = Counter(failure.error for failure in played.failures)
    # sorted, because the order in which failures happen differs from run to run
    reasons = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    if total - len(trajectories) > max_lost * total:
        common = "; ".join(f"{count} times {reason}" for reason, count in reasons[:3])
        raise EnvError(
            f"{total - len(trajectories)} of {total} episodes could not be played, each tried "
            f"{limits.max_attempts} times: {common}. The remaining episodes would not represent the panel; "
            "fix the environment or policy and evaluate again"
        )
    return Report(
        name=name,
        panel=panel_hash(tasks),
        seed=seed,
        episodes_per_task=episodes_per_task,
        results=task_results(tasks, trajectories),
        lost=total - len(trajectories),
        reasons=dict(reasons[:20]),
        settings=dict(settings or {}),
    )
