"""``agentrl list``, ``info``, ``bench`` and ``doctor``: what is installed, and what is missing."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from agentrl.commands.reporter import ConsoleReporter
from agentrl.commands.tables import Table, show
from agentrl.commands.targets import environment
from agentrl.env import EnvSpec, panel_hash
from agentrl.errors import ConfigError
from agentrl.options import spell_type
from agentrl.plugins import environments, load_environment, sandboxes, unknown

_ROOT = Path(__file__).parents[2]
"""Root of a checkout of agentrl, which holds recipes/ and benchmarks/; an installed package has neither."""


def catalogue() -> None:
    """Print the installed environments and sandboxes, and the recipes of the checkout and ``./recipes``."""
    recipes = {
        path.resolve(): path
        for folder in (_ROOT / "recipes", Path("recipes"))
        for path in sorted(folder.glob("*.py"))
    }
    for title, names in (("environments", environments()), ("sandboxes", sandboxes())):
        print(f"{title}\n  " + ("\n  ".join(names) or "none is installed"))
    print("recipes")
    width = max((len(str(_shown(path))) for path in recipes.values()), default=0)
    for path in recipes.values():
        print(f"  {_shown(path)!s:{width}}  {_summary(path)}")
    if not recipes:
        print("  none found here; agentrl's own are in recipes/ of its source tree")


def _shown(path: Path) -> Path:
    """Return ``path`` relative to the current folder if it lies below it, else unchanged."""
    current = Path.cwd()
    return path.resolve().relative_to(current) if path.resolve().is_relative_to(current) else path


def _summary(path: Path) -> str:
    """Return the first line of a program's docstring, without running it."""
    try:
        text = ast.get_docstring(ast.parse(path.read_text()))
    except SyntaxError as problem:
        return f"(does not parse: line {problem.lineno})"
    return (text or "").partition("\n")[0]


def info(name: str, options: Sequence[str]) -> None:
    """Print an environment's description, options, signals and splits; generate its tasks if necessary."""
    cls = load_environment(name)
    spec = environment(name, options)
    print(f"{name}: {inspect.getdoc(cls) or cls.__name__}\n")
    show(
        Table(
            "options", ("option", "type", "value", "meaning"), tuple(_options(cls, spec)), left=(0, 1, 2, 3)
        )
    )
    print()
    show(Table("signals", ("signal", "meaning"), tuple(spec.signals.items()), left=(0, 1)))
    print()
    with ConsoleReporter() as reporter:
        spec.prepare(reporter.progress)
    panels = {split: spec.tasks(split) for split in spec.splits}
    rows = [(split, str(len(tasks)), panel_hash(tasks) if tasks else "-") for split, tasks in panels.items()]
    show(Table("splits", ("split", "tasks", "content hash"), tuple(rows), left=(0, 2)))


def _options(cls: type[EnvSpec], spec: EnvSpec) -> Iterator[tuple[str, str, str, str]]:
    meanings = _field_docs(cls)
    for field in dataclasses.fields(spec):  # type: ignore[arg-type]
        if field.init:
            meaning = " ".join(meanings.get(field.name, "").split())
            yield field.name, spell_type(cls, field.name), repr(getattr(spec, field.name)), meaning


def _field_docs(cls: type) -> dict[str, str]:
    """Return the docstrings below a class's fields, by the name of the field, read from its source code."""
    found = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, SyntaxError):  # the source code is not available
            continue
        for field, below in itertools.pairwise(body.body if isinstance(body, ast.ClassDef) else ()):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
            ):
                found[field.target.id] = str(ast.literal_eval(below.value))
    return found


def bench(name: str | None, arguments: Sequence[str]) -> int:
    """List the benchmarks of a checkout, or run one and return its exit code.

    Raises:
        ConfigError: agentrl is installed as a package and not as a checkout, or no benchmark has this name.
    """
    programs = {path.stem: path for path in sorted((_ROOT / "benchmarks").glob("*.py"))}
    if not programs:
        raise ConfigError(
            "benchmarks are programs of agentrl's source tree, and this is an installed package; "
            "run agentrl bench in a checkout"
        )
    if name is None:
        width = max(map(len, programs))
        print("\n".join(f"{stem:{width}}  {_summary(path)}" for stem, path in programs.items()))
        return 0
    if name not in programs:
        raise ConfigError(unknown("benchmark", name, list(programs)))
    return subprocess.run([sys.executable, str(programs[name]), *arguments], check=False).returncode


def doctor() -> bool:
    """Print what this machine has and lacks; return whether everything that agentrl needs was found."""
    from agentrl.commands.doctor import checks, healthy

    found = checks()
    rows = [(one.name, "ok" if one.ok else "MISSING" if one.needed else "-", one.found) for one in found]
    fixes = [f"{one.name}: {one.fix}" for one in found if not one.ok]
    show(Table("this machine", ("part", "state", "found"), tuple(rows), tuple(fixes), left=(0, 1, 2)))
    return healthy(found)
