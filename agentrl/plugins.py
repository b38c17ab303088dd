"""Plug-ins: environments and sandbox providers, found by a registered name or by ``module:attribute``.

The registry is packaging metadata. A distribution registers plug-ins in its ``pyproject.toml``; a plug-in is
imported only when it is loaded:

    [project.entry-points."agentrl.environments"]
    maze = "my_maze:Maze"

``module:attribute`` needs no installation: the module is looked up on the import path and then in the current
folder. The attribute is a subclass of ``EnvSpec`` or a configured value of one.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from typing import Any, NoReturn  # Any: an option's value is whatever its field holds

from agentrl.env import EnvSpec
from agentrl.errors import ConfigError, MissingExtra, UnknownPlugin, boundary
from agentrl.options import check_types
from agentrl.sandbox import SandboxProvider
from agentrl.types import Task


@dataclass(frozen=True, slots=True)
class PluginKind:
    """A kind of plug-in: its entry-point group, its noun in messages, and its base class."""

    group: str
    noun: str
    base: type


ENVIRONMENT = PluginKind("agentrl.environments", "environment", EnvSpec)
SANDBOX = PluginKind("agentrl.sandboxes", "sandbox", SandboxProvider)


def environments() -> tuple[str, ...]:
    """Return the names of the installed environments, sorted."""
    return _names(ENVIRONMENT)


def sandboxes() -> tuple[str, ...]:
    """Return the names of the installed sandbox providers, sorted."""
    return _names(SANDBOX)


def load_environment(name: str) -> type[EnvSpec]:
    """Return the environment's class, by registered name or ``module:attribute``.

    Raises:
        UnknownPlugin: there is no plug-in of that name; the message lists those that are installed.
        MissingExtra: the plug-in needs a package that is not installed.
        ConfigError: the plug-in cannot be imported, or is not an environment.
    """
    return _class(ENVIRONMENT, name)


def load_sandbox(name: str) -> type[SandboxProvider]:
    """Return the provider's class; raises the same errors as ``load_environment``."""
    return _class(SANDBOX, name)


def make_environment(name: str, **options: Any) -> EnvSpec:
    """Return the environment, configured: ``make_environment("bandit", arms=4)``.

    Raises:
        ConfigError: ``load_environment`` raises it, or an option is unknown, missing or of the wrong type.
    """
    made = _make(ENVIRONMENT, name, options)
    assert isinstance(made, EnvSpec)
    return made


def make_sandbox(name: str, **options: Any) -> SandboxProvider:
    """Return the sandbox provider, configured; raises the same errors as ``make_environment``."""
    made = _make(SANDBOX, name, options)
    assert isinstance(made, SandboxProvider)
    return made


def sandboxes_for(tasks: Sequence[Task], name: str = "auto") -> SandboxProvider | None:
    """Return the named provider if any of ``tasks`` asks for a sandbox, else ``None``.

    Raises the same errors as ``make_sandbox``.
    """
    return make_sandbox(name) if any(task.sandbox is not None for task in tasks) else None


def _names(kind: PluginKind) -> tuple[str, ...]:
    return tuple(sorted({entry.name for entry in entry_points(group=kind.group)}))


def _class(kind: PluginKind, name: str) -> type[Any]:
    found = _load(kind, name)
    return found if isinstance(found, type) else type(found)


def _make(kind: PluginKind, name: str, options: Mapping[str, Any]) -> object:
    found = _load(kind, name)
    cls = found if isinstance(found, type) else type(found)
    what = f"{kind.noun} {name!r}"
    _check_options(what, cls, options, configured=found is not cls)
    with boundary(ConfigError, what):
        return cls(**options) if found is cls else dataclasses.replace(found, **options)


def _load(kind: PluginKind, name: str) -> Any:
    """Return the class or configured value that a registered name or ``module:attribute`` stands for."""
    if ":" in name:
        entry, what = EntryPoint(name, name, kind.group), f"{kind.noun} {name!r}"
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.append(here)
    else:
        candidates = [entry for entry in entry_points(group=kind.group) if entry.name == name]
        if not candidates:
            raise UnknownPlugin(
                unknown(f"{kind.noun} plug-in", name, _names(kind)) + "; or give it as module:attribute"
            )
        entry = candidates[0]
        what = f"{kind.noun} {name!r}" + (f" of {entry.dist.name} {entry.dist.version}" if entry.dist else "")
    found = _import(what, entry)
    if not (isinstance(found, kind.base) or (isinstance(found, type) and issubclass(found, kind.base))):
        raise ConfigError(
            f"{what} is no {kind.base.__name__}, found {found!r}; name a subclass of {kind.base.__name__} or "
            "a value of one"
        )
    return found


def _import(what: str, entry: EntryPoint) -> object:
    module_name, _, attribute = entry.value.partition(":")
    with boundary(ConfigError, f"importing {what}"):
        try:
            found: object = importlib.import_module(module_name)
        except ModuleNotFoundError as problem:
            _explain_missing(what, entry, module_name, problem)
    for part in attribute.split("."):
        names = [one for one in vars(found) if not one.startswith("_")]
        if not hasattr(found, part):
            raise UnknownPlugin(f"{what}: " + unknown(f"attribute of {module_name}", part, names))
        found = getattr(found, part)
    return found


def _explain_missing(
    what: str, entry: EntryPoint, module_name: str, problem: ModuleNotFoundError
) -> NoReturn:
    missing = (problem.name or "").partition(".")[0]
    if missing == module_name.partition(".")[0]:
        raise UnknownPlugin(
            f"{what}: no module is named {problem.name!r}; run in the folder that holds it, or install it"
        ) from problem
    extra = extra_with(entry.dist, missing) if entry.dist else None
    if entry.dist is not None and extra is not None:
        where = "." if entry.dist.name == "agentrl" else entry.dist.name
        mend = f"pip install '{where}[{extra}]'" + (" in agentrl's folder" if where == "." else "")
        raise MissingExtra(
            f"{what} needs the package {missing!r}, which is not installed; it is part of an extra: {mend}"
        ) from problem
    raise MissingExtra(f"{what} needs the package {missing!r}, which is not installed") from problem


def extra_with(dist: Distribution, package: str) -> str | None:
    """Return the extra of ``dist`` that requires ``package``, if there is one."""
    for requirement in dist.requires or ():
        required = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"""extra\s*==\s*['"]([\w.-]+)['"]""", requirement)
        if required and extra and _normal(required[0]) == _normal(package):
            return extra[1]
    return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """Return a message that ``name`` is not known, with the nearest known name and all known names.

    >>> unknown("environment plug-in", "bandid", ["bandit", "frozen-lake"])
    "no environment plug-in is named 'bandid'; did you mean 'bandit'? known: bandit, frozen-lake"
    """
    near = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"no {what} is named {name!r}; {guess}known: {', '.join(known) or 'none'}"


def _check_options(what: str, cls: type[Any], options: Mapping[str, Any], *, configured: bool) -> None:
    """Check names and types of options before the class is instantiated with them."""
    if not dataclasses.is_dataclass(cls):
        raise ConfigError(
            f"{what}: {cls.__name__} is no dataclass, so its options are not known; make it a frozen "
            "dataclass"
        )
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name in options:
        if name not in fields:
            raise ConfigError(f"{what}: " + unknown("option", name, list(fields)))
    nothing = dataclasses.MISSING
    needed = [
        name
        for name, field in fields.items()
        if field.default is nothing and field.default_factory is nothing
    ]
    if missing := [name for name in needed if name not in options and not configured]:
        raise ConfigError(f"{what} needs a value for {', '.join(missing)}")
    # an object that only holds the values: the constructor could fail on a value of the wrong type first
    probe = object.__new__(cls)
    for name, field in fields.items():
        default = field.default_factory() if field.default_factory is not nothing else field.default
        object.__setattr__(probe, name, options.get(name, default))
    for line in check_types(probe):
        if line.split(" ", 1)[0].split(".")[0] in options:
            raise ConfigError(f"{what}: {line}")
