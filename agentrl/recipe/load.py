"""Recipe files: Python that holds one value called ``recipe``, and may import modules that lie beside it."""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agentrl.errors import AgentRLError, CheckpointError, ConfigError
from agentrl.options import override
from agentrl.recipe import Origin, Recipe


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the value called ``recipe`` of a Python file, with ``overrides`` applied; raises as ``read``."""
    return read(path, overrides)[0]


def read(path: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Origin]:
    """Return the recipe of a Python file, or the one that a run folder keeps, with ``overrides`` applied; and where it came from.

    Raises:
        ConfigError: no such file, it raises, or it holds no recipe; or an override does not fit.
    """
    name, given = path.name, tuple(overrides)
    if path.is_dir():
        file, record = path / "recipe.py", path / "overrides.json"
        if not file.is_file() or not record.is_file():
            raise ConfigError(
                f"the folder {path} is no run folder: it lacks recipe.py or overrides.json; give a recipe file or a run folder"
            )
        try:
            kept = json.loads(record.read_text())
            name, given, path = kept["recipe"], (*kept["overrides"], *given), file
        except (ValueError, KeyError, TypeError) as problem:
            raise CheckpointError(
                f"{record} is damaged ({problem}); write it again, or give the recipe file and --out {path}"
            ) from problem
    if not path.is_file():
        raise ConfigError(
            f"no recipe file {str(path)!r}; recipes of this project are in recipes/, one Python file each"
        )
    with _beside(path.resolve().parent) as modules:
        recipe = _execute(path, Path(name).stem)
    return override(recipe, given), Origin(
        name=name, source=path.read_text(), overrides=given, modules=modules
    )


@contextmanager
def _beside(folder: Path) -> Iterator[dict[str, str]]:
    """Let the modules in ``folder`` be imported; what was, by name, with its text, is in the dictionary afterwards.

    They are imported anew, and forgotten again: a recipe and an older copy of it, kept by a run, each see their own.
    """
    stems = {path.stem for path in folder.glob("*.py")}
    hidden = {name: sys.modules.pop(name) for name in stems & sys.modules.keys()}
    imported: dict[str, str] = {}
    sys.path.insert(0, str(folder))
    try:
        yield imported
    finally:
        sys.path.remove(str(folder))
        for name in sorted(stems & sys.modules.keys()):
            del sys.modules[name]
            imported[name] = (folder / f"{name}.py").read_text()
        sys.modules.update(hidden)


def _execute(path: Path, stem: str) -> Recipe:
    """Run a recipe file as the module it was first run as: descriptions name classes by their module."""
    spec = importlib.util.spec_from_file_location(f"agentrl_recipe_{stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(
            f"{str(path)!r} is no Python file; a recipe file ends in .py and holds a value `recipe = Recipe(...)`"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except AgentRLError:
        raise
    except Exception as problem:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(problem.__traceback__)
            if Path(frame.filename).resolve() == path.resolve()
        ]
        where = f", line {lines[-1]}" if lines else ""  # a syntax error names its own
        raise ConfigError(
            f"recipe {str(path)!r} does not load{where}: {type(problem).__name__}: {problem}"
        ) from problem
    recipe = getattr(module, "recipe", None)
    if not isinstance(recipe, Recipe):
        raise ConfigError(
            f"{str(path)!r} must hold a value `recipe = Recipe(...)`; found {type(recipe).__name__}"
        )
    return recipe
