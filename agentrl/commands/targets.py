"""Targets of commands: an environment, a recipe file, a run folder or one of its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentrl.env import EnvSpec
from agentrl.errors import CheckpointError, ConfigError
from agentrl.options import override, parse_fields
from agentrl.plugins import environments, load_environment, load_sandbox, make_environment, make_sandbox
from agentrl.sandbox import SandboxProvider


def environment(name: str, options: Sequence[str]) -> EnvSpec:
    """Return the environment called ``name``, with its ``option=value`` texts parsed by its fields' types.

    Raises:
        ConfigError: ``plugins.make_environment`` raises it, or an option is unknown or of the wrong type.
    """
    return make_environment(name, **parse_fields(load_environment(name), options, f"environment {name!r}"))


def sandbox(text: str) -> SandboxProvider:
    """Return the sandbox provider that ``NAME`` or ``NAME,OPTION=VALUE,...`` describes.

    Raises:
        ConfigError: ``plugins.make_sandbox`` raises it, or an option is unknown or of the wrong type.
    """
    name, *options = text.split(",")
    return make_sandbox(name, **parse_fields(load_sandbox(name), options, f"sandbox {name!r}"))


def run_of(path: Path) -> Path | None:
    """Return ``path`` if it is a run folder, or the run of which it is a checkpoint, else ``None``."""
    return next(
        (folder for folder in (path, path.absolute().parent.parent) if (folder / "recipe.json").is_file()),
        None,
    )


def newest_checkpoint(run: Path) -> Path:
    """Return the newest checkpoint of a run.

    Raises:
        CheckpointError: the run has no checkpoint yet.
    """
    found = sorted((run / "checkpoints").glob("[0-9]*"))
    if not found:
        raise CheckpointError(
            f"the run in {run} has no checkpoint yet; let it train until its first one, "
            "or give --policy random or expert"
        )
    return found[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a command works on: an environment and, if there is one, the recipe (a file or run folder)."""

    env: EnvSpec
    recipe_at: Path | None = None
    checkpoint: Path | None = None
    """The checkpoint that the target names; ``None`` if it names none (a run folder means its newest one)."""


def find_target(name: str, options: Sequence[str]) -> Target:
    """Return what ``name`` stands for; ``options`` are set on its environment.

    Raises:
        ConfigError: ``name`` stands for nothing, or an option is unknown or of the wrong type.
    """
    path = Path(name)
    if name not in environments() and (path.suffix == ".py" or path.is_dir()):
        from agentrl.recipe.load import load

        at = run_of(path) if path.is_dir() else path
        if at is None:
            raise ConfigError(
                f"the folder {name} is neither a run of agentrl nor a checkpoint of one; "
                "give a folder below runs/"
            )
        env = override(load(at).env, options)
        if not path.is_dir():
            return Target(env=env, recipe_at=at)
        return Target(env=env, recipe_at=at, checkpoint=None if at == path else path)
    return Target(env=environment(name, options))
