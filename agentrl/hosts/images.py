"""Finds out before a run which tasks can be played on this machine, so that no episode fails for this reason.

A task whose sandbox image cannot be pulled, imported or built is left out, and the image is reported by name
with the reason. Such a task is never played as a failure and never scored 0. A split without any playable
task is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from agentrl.errors import ConfigError
from agentrl.sandbox import SandboxProvider
from agentrl.types import Task


@dataclass(frozen=True, slots=True)
class Playable:
    """The playable tasks of each split, and the missing images of the other tasks, each with the reason."""

    tasks: Mapping[str, Sequence[Task]]
    missing: Mapping[str, str]


def image_counts(splits: Mapping[str, Sequence[Task]]) -> dict[str, int]:
    """Return the number of tasks that ask for each sandbox image, in the order of first use."""
    counts: dict[str, int] = {}
    for tasks in splits.values():
        for task in tasks:
            if task.sandbox is not None:
                counts[task.sandbox.image] = counts.get(task.sandbox.image, 0) + 1
    return counts


async def playable(
    splits: Mapping[str, Sequence[Task]], provider: SandboxProvider | None, say: Callable[[str], None]
) -> Playable:
    """Pull, import or build the images that the tasks need, and return the tasks whose images are there.

    ``say`` receives a line for each missing image.

    Raises:
        ConfigError: tasks ask for a sandbox and there is no provider, the provider cannot work here, or a
            split has no playable task.
    """
    counts = image_counts(splits)
    if not counts:
        return Playable(splits, {})
    if provider is None:
        raise ConfigError(
            f"{sum(counts.values())} tasks ask for a sandbox and no provider is given; set sandboxes in the "
            "recipe, such as sandboxes=Auto() of agentrl_sandboxes.auto, or --sandbox on the command line"
        )
    async with provider.serve() as sandboxes:
        missing = dict(await sandboxes.missing(tuple(counts)))
    kept = {
        split: [task for task in tasks if task.sandbox is None or task.sandbox.image not in missing]
        for split, tasks in splits.items()
    }
    for image, reason in missing.items():
        say(f"image {image!r} is missing, so its {counts[image]} tasks are left out: {reason}")
    for split, tasks in kept.items():
        if splits[split] and not tasks:
            raise ConfigError(
                f"no task of split {split!r} can be played, because every image it needs is missing:\n"
                + "\n".join(f"  - {image!r}: {reason}" for image, reason in missing.items())
            )
    return Playable(kept, missing)
