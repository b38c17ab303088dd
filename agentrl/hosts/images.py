"""Which tasks can be played on this machine: known before a run, not found out one failed episode after another.

A task whose sandbox image cannot be pulled, imported or built is left out, by name and with the reason. It is never played as a failure,
and never scored 0. A split of which nothing is left is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from agentrl.errors import ConfigError
from agentrl.sandbox import SandboxProvider
from agentrl.types import Task


@dataclass(frozen=True, slots=True)
class Playable:
    """The tasks of each split that can be played, and the images that the others lack, with the reasons."""

    tasks: Mapping[str, Sequence[Task]]
    missing: Mapping[str, str]


def images(splits: Mapping[str, Sequence[Task]]) -> dict[str, int]:
    """Return the sandbox images that tasks ask for, in the order of first use, and how many tasks ask for each."""
    counts: dict[str, int] = {}
    for tasks in splits.values():
        for task in tasks:
            if task.sandbox is not None:
                counts[task.sandbox.image] = counts.get(task.sandbox.image, 0) + 1
    return counts


async def playable(
    splits: Mapping[str, Sequence[Task]], provider: SandboxProvider | None, say: Callable[[str], None]
) -> Playable:
    """Make every image that can be made, and return the tasks that can be played; ``say`` is told what was left out.

    Raises:
        ConfigError: tasks ask for a sandbox and there is no provider, the provider cannot work here, or a split has nothing left.
    """
    wanted = images(splits)
    if not wanted:
        return Playable(splits, {})
    if provider is None:
        raise ConfigError(
            f"{sum(wanted.values())} tasks ask for a sandbox and no provider is given; set sandboxes in the recipe, such as "
            "sandboxes=Auto() of agentrl_sandboxes.auto, or --sandbox on the command line"
        )
    async with provider.serve() as sandboxes:
        missing = dict(await sandboxes.missing(tuple(wanted)))
    kept = {
        split: [task for task in tasks if task.sandbox is None or task.sandbox.image not in missing]
        for split, tasks in splits.items()
    }
    for image, reason in missing.items():
        say(f"image {image!r} is missing, so its {wanted[image]} tasks are left out: {reason}")
    for split, tasks in kept.items():
        if splits[split] and not tasks:
            raise ConfigError(
                f"no task of split {split!r} can be played: every image it needs is missing:\n"
                + "\n".join(f"  - {image!r}: {reason}" for image, reason in missing.items())
            )
    return Playable(kept, missing)
