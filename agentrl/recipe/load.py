"""Recipe files: Python that holds one value called ``recipe``, and may import modules from its folder."""

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

_PACKAGES = ("agentrl", "agentrl_environments", "agentrl_sandboxes")
"""The packages of agentrl, whose names may differ from version to version."""


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a Python file or a run folder, with ``overrides`` applied.

    Raises the same errors as ``read``.
    """
    return read(path, overrides)[0]


def read(path: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Origin]:
    """Return the recipe of a Python file or a run folder, with ``overrides`` applied, and its origin.

    Raises:
        ConfigError: there is no such file, it raises, or it holds no recipe; or an override does not fit.
        CheckpointError: the run folder is damaged, or its recipe uses names of another version of agentrl.
    """
    if not path.is_dir():
        return _read_file(path, name=path.name, overrides=tuple(overrides))
    file, record = path / "recipe.py", path / "overrides.json"
    if not file.is_file() or not record.is_file():
        raise ConfigError(
            f"the folder {path} is no run folder: it lacks recipe.py or overrides.json; give a recipe file "
            "or a run folder"
        )
    try:
        kept = json.loads(record.read_text())
        name, overrides = kept["recipe"], (*kept["overrides"], *overrides)
    except (ValueError, KeyError, TypeError) as problem:
        raise CheckpointError(
            f"{record} is damaged ({problem}); write it again, or give the recipe file and --out {path}"
        ) from problem
    try:
        return _read_file(file, name=name, overrides=overrides)
    except ConfigError as failure:
        cause = failure.__cause__
        if not isinstance(cause, ImportError) or (cause.name or "").partition(".")[0] not in _PACKAGES:
            raise
        raise CheckpointError(
            f"the run folder {path} was written by another version of agentrl, and its recipe.py does not "
            f"load in this one ({cause}); to continue the run, give a recipe file that does, with --out "
            f"{path}, or use this version's names in {file}"
        ) from cause


def _read_file(path: Path, *, name: str, overrides: tuple[str, ...]) -> tuple[Recipe, Origin]:
    """Read the recipe file ``path``; ``name`` is its original name, if it is a copy in a run folder."""
    if not path.is_file():
        raise ConfigError(
            f"no recipe file {str(path)!r}; recipes of this project are in recipes/, one Python file each"
        )
    with _imports_from(path.resolve().parent) as modules:
        recipe = _execute(path, Path(name).stem)
    origin = Origin(name=name, source=path.read_text(), overrides=overrides, modules=modules)
    return override(recipe, overrides), origin


@contextmanager
def _imports_from(folder: Path) -> Iterator[dict[str, str]]:
    """Let the body import modules from ``folder``; yield a dictionary that is filled when the body ends.

    The dictionary then holds the text of every module that the body imported, by name. The modules are
    imported anew, and removed from ``sys.modules`` at the end, so that a recipe and an older copy of it in a
    run folder each import the modules of their own folder.
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
    """Run a recipe file and return its recipe.

    ``stem`` is the original file's name without its suffix. The module is named after it, because
    descriptions name the classes of a recipe by their module.
    """
    spec = importlib.util.spec_from_file_location(f"agentrl_recipe_{stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(
            f"{str(path)!r} is not a Python file; a recipe file ends in .py and holds a value "
            "`recipe = Recipe(...)`"
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
        where = f", line {lines[-1]}" if lines else ""  # a syntax error names its line itself
        raise ConfigError(
            f"recipe {str(path)!r} does not load{where}: {type(problem).__name__}: {problem}"
        ) from problem
    recipe = getattr(module, "recipe", None)
    if not isinstance(recipe, Recipe):
        raise ConfigError(
            f"{str(path)!r} must hold a value `recipe = Recipe(...)`; found {type(recipe).__name__}"
        )
    return recipe
