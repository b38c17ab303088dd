"""What a command line names: an environment with options, a recipe file, a run folder or one of its checkpoints."""

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
    """Return the environment of a name, with ``option=value`` texts parsed by the types of its fields; raises as ``plugins`` does."""
    return make_environment(name, **parse_fields(load_environment(name), options, f"environment {name!r}"))


def sandbox(text: str) -> SandboxProvider:
    """Return the sandbox provider of ``NAME`` or ``NAME,OPTION=VALUE,...``; raises as ``plugins`` does."""
    name, *options = text.split(",")
    return make_sandbox(name, **parse_fields(load_sandbox(name), options, f"sandbox {name!r}"))


def run_of(path: Path) -> Path | None:
    """Return the run folder that ``path`` is, or is a checkpoint of."""
    return next(
        (folder for folder in (path, path.absolute().parent.parent) if (folder / "recipe.json").is_file()),
        None,
    )


def newest_checkpoint(run: Path) -> Path:
    """Return the newest checkpoint of a run.

    Raises:
        CheckpointError: it has none yet.
    """
    found = sorted((run / "checkpoints").glob("[0-9]*"))
    if not found:
        raise CheckpointError(
            f"the run in {run} has no checkpoint yet; let it train until its first, or give --policy random or expert"
        )
    return found[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where to play: an environment, and the recipe (a file or a run folder) that says how, where there is one."""

    env: EnvSpec
    recipe_at: Path | None = None
    checkpoint: Path | None = None
    """What the agent is, where a run folder or a checkpoint was named."""


def place(target: str, options: Sequence[str]) -> Place:
    """Return what ``target`` names; ``options`` are the environment's.

    Raises:
        ConfigError: it names nothing, or an option does not fit.
    """
    path = Path(target)
    if target not in environments() and (path.suffix == ".py" or path.is_dir()):
        from agentrl.recipe.load import load

        at = run_of(path) if path.is_dir() else path
        if at is None:
            raise ConfigError(
                f"the folder {target} is neither a run of agentrl nor a checkpoint of one; give a folder below runs/"
            )
        env = override(load(at).env, options)
        if path.is_file() or not path.is_dir():
            return Place(env=env, recipe_at=at)
        return Place(env=env, recipe_at=at, checkpoint=None if at == path else path)
    return Place(env=environment(target, options))
