"""Frozen dataclasses as options: described as JSON, overridden from the command line, checked for types.

``describe`` writes a recipe into a run folder, where it is compared with the recipe of a resumed run.
``override`` sets a field by its dotted path (``stages.learn.updates=20``); an element of a tuple is addressed
by its ``name`` or its index. ``check_types`` finds values of the wrong type, which Python itself would accept
and fail on later.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import enum
import functools
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from agentrl.errors import ConfigError
from agentrl.types import Json

_SHORT = 100
"""Maximum number of characters of a part that ``pretty`` shows on one line."""
_SCALARS = (bool, int, float, str)
T = typing.TypeVar("T")


def describe(value: object) -> Json:
    """Return ``value`` as JSON that names every class and function.

    If two values have equal descriptions, they behave alike, as long as the code is the same.
    """
    if isinstance(value, enum.Enum):
        return f"{public_name(type(value).__module__, type(value).__qualname__)}.{value.name}"
    if value is None or isinstance(value, _SCALARS):
        return value
    if isinstance(value, np.generic):
        return describe(value.item())
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, types.MethodType):
        return {"method": value.__name__, "of": describe(value.__self__)}
    if isinstance(value, Mapping):
        return {
            str(key): describe(item) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))
        }
    if isinstance(value, (tuple, list)):
        return [describe(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(item) for item in value)
    if isinstance(value, functools.partial):
        return {
            "partial": describe(value.func),
            "args": describe(value.args),
            **{key: describe(item) for key, item in value.keywords.items()},
        }
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return public_name(value.__module__, value.__qualname__)
    name = public_name(type(value).__module__, type(value).__qualname__)
    if dataclasses.is_dataclass(value):
        fields = {
            field.name: describe(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.repr
        }
        return {"class": name, **fields}
    return {"class": name}


_ROOTS = ("agentrl", "agentrl_environments", "agentrl_sandboxes")


def public_name(module: str, qualname: str) -> str:
    """Return the name under which a class or function is described.

    It does not change when agentrl moves its code: the names of agentrl's own packages are unique within a
    package, so their modules are left out. All other names keep their modules.

    >>> public_name("agentrl.credit.group", "RLOO"), public_name("mine.rewards", "Speed")
    ('agentrl:RLOO', 'mine.rewards:Speed')
    """
    root = module.partition(".")[0]
    return f"{root if root in _ROOTS else module}:{qualname}"


def pretty(value: object) -> str:
    """Return a frozen dataclass as indented lines for a reader; a short part is shown on one line.

    >>> from agentrl.rewards.compose import Sum
    >>> from agentrl.rewards.outcome import Format, Outcome
    >>> print(pretty(Sum((Outcome(), Format(penalty=0.05)))))
    Sum
      parts: (Outcome(signal='success', name='outcome'), Format(penalty=0.05))
    """
    return "\n".join(_pretty("", value, 0)).removeprefix(" ")


def _pretty(label: str, value: object, depth: int) -> Iterator[str]:
    pad, short = "  " * depth, repr(value)
    if callable(value) and hasattr(value, "__qualname__"):
        yield f"{pad}{label} {value.__qualname__}"
    elif label and (isinstance(value, _SCALARS) or (len(short) <= _SHORT and " at 0x" not in short)):
        yield f"{pad}{label} {short}"
    elif isinstance(value, tuple):
        yield f"{pad}{label}"
        for item in value:
            yield from _pretty("-", item, depth + 1)
    elif isinstance(value, Mapping):
        yield f"{pad}{label}"
        for name, item in value.items():
            yield from _pretty(f"{name}:", item, depth + 1)
    else:
        yield f"{pad}{label} {type(value).__name__}"
        for field in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
            if field.repr:
                yield from _pretty(f"{field.name}:", getattr(value, field.name), depth + 1)


def differences(old: Json, new: Json, path: str = "") -> Iterator[str]:
    """Yield one line for each path at which two descriptions from ``describe`` differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (mine, theirs) in enumerate(zip(old, new, strict=True)):
            label = mine.get("name", index) if isinstance(mine, Mapping) else index
            yield from differences(mine, theirs, f"{path}.{label}")
    elif old != new:
        yield f"{path}: {old!r} -> {new!r}"


def override(value: T, assignments: Sequence[str]) -> T:
    """Return ``value`` with fields set by ``path=text`` assignments, all at once.

    Each text is parsed by the type of its field.

    Raises:
        ConfigError: a field does not exist (the message names the nearest), or a text is not of its type.
    """
    settings = []
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(
                f"cannot read the option {assignment!r}; write it as path=value, for example "
                "stages.learn.updates=20"
            )
        settings.append(_Setting(path.strip().split("."), text.strip(), path.strip()))
    return typing.cast("T", _set(value, settings))


class _Setting(typing.NamedTuple):
    """A text for a field: the steps of its path still to be taken, the text, and the whole path."""

    steps: Sequence[str]
    text: str
    path: str


def _set(value: object, settings: Sequence[_Setting]) -> object:
    """Return ``value`` with the fields below it set as ``settings`` say.

    Each object is replaced once, so that fields that are valid only together can be set together.
    """
    by_step: dict[str, list[_Setting]] = {}
    for setting in settings:
        by_step.setdefault(setting.steps[0], []).append(setting)
    for step, below in by_step.items():
        if isinstance(value, tuple):
            value = _set_element(value, step, below)
        elif isinstance(value, Mapping):
            value = {**value, step: _of_mapping(below)}
    if not settings or isinstance(value, (tuple, Mapping)):
        return value
    path = settings[0].path
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise ConfigError(f"option {path!r}: {type(value).__name__} has no fields; set it in the recipe file")
    fields = [field.name for field in dataclasses.fields(value) if field.init]
    changes = {}
    for step, below in by_step.items():
        if step not in fields:
            known = f"it has {', '.join(fields)}{_nearest(step, fields)}"
            raise ConfigError(
                f"option {below[0].path!r}: {type(value).__name__} has no field {step!r}; {known}"
            )
        changes[step] = getattr(value, step)
        for whole in (one for one in below if len(one.steps) == 1):
            changes[step] = _parse(whole.text, _hints(type(value))[step], whole.path)
        changes[step] = _set(
            changes[step], [one._replace(steps=one.steps[1:]) for one in below if len(one.steps) > 1]
        )
    return dataclasses.replace(value, **changes)


def _set_element(value: tuple[object, ...], step: str, below: Sequence[_Setting]) -> tuple[object, ...]:
    names = [str(getattr(item, "name", index)) for index, item in enumerate(value)]
    place = (
        names.index(step) if step in names else int(step) if step.isdigit() and int(step) < len(value) else -1
    )
    if place < 0 or any(len(one.steps) == 1 for one in below):
        raise ConfigError(
            f"option {below[0].path!r}: no element {step!r}; found {', '.join(names)}{_nearest(step, names)}"
        )
    return (
        *value[:place],
        _set(value[place], [one._replace(steps=one.steps[1:]) for one in below]),
        *value[place + 1 :],
    )


def _of_mapping(below: Sequence[_Setting]) -> object:
    for one in below:
        if len(one.steps) > 1:
            raise ConfigError(
                f"option {one.path!r}: a mapping takes one name, as in "
                f"{one.path.rsplit('.', len(one.steps) - 1)[0]}=..."
            )
    return _literal(below[-1].text)


def _parse(text: str, hint: object, path: str) -> object:
    found = _literal(text)
    for candidate in (found, text, (found,)):
        if _fits(candidate, hint):
            if isinstance(candidate, str) and Path in _parts(hint):
                return Path(candidate)
            if (
                isinstance(candidate, int)
                and not isinstance(candidate, bool)
                and float in _parts(hint)
                and int not in _parts(hint)
            ):
                return float(candidate)
            return candidate
    raise ConfigError(f"option {path!r} takes {_spell(hint)}; found {text!r}")


def _literal(text: str) -> object:
    lowered = {"true": True, "false": False, "none": None, "inf": math.inf}.get(text.lower(), text)
    if lowered is not text:
        return lowered
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def check_types(value: object, path: str = "") -> Iterator[str]:
    """Yield one line for each field, at any depth, whose value is not of the field's declared type.

    Checks scalars, optional scalars, literals and tuples of them, and the fields of objects inside.
    """
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from check_types(item, f"{path}.{getattr(item, 'name', index)}")
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return
    hints = _hints(type(value))
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        here = f"{path}.{field.name}" if path else field.name
        hint = hints.get(field.name, object)
        if _checkable(hint) and not _fits(item, hint):
            yield f"{here} must be {_spell(hint)}; found {item!r} ({type(item).__name__})"
        else:
            yield from check_types(item, here)


def too_small(part: object, where: str, **least: float) -> Iterator[str]:
    """Yield one line for each field of ``part`` that is below its minimum.

    ``least`` gives the minimum of each field by name; ``where`` is put before the names in messages.
    """
    for name, low in least.items():
        found = getattr(part, name)
        if found < low:
            yield f"{where}{name} is {found}; at least {low} is needed"


@functools.cache
def _hints(cls: type) -> Mapping[str, object]:
    """Return the types of a dataclass's fields.

    A field whose type is imported only for type checkers has the type of its default if that is a scalar, and
    ``object`` otherwise.
    """
    try:
        return typing.get_type_hints(cls)
    except NameError:
        return {field.name: _hint(cls, field) for field in dataclasses.fields(cls)}


def _hint(cls: type, field: dataclasses.Field[typing.Any]) -> object:  # Any: fields have many types
    name = field.name
    owner = next(base for base in cls.__mro__ if name in vars(base).get("__annotations__", {}))
    alone = {"__annotations__": {name: owner.__annotations__[name]}, "__module__": owner.__module__}
    try:
        return typing.get_type_hints(type(owner.__name__, (), alone))[name]
    except NameError:
        return type(field.default) if isinstance(field.default, _SCALARS) else object


def _checkable(hint: object) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return all(_checkable(part) for part in typing.get_args(hint))
    if origin is tuple:
        return all(part is Ellipsis or _checkable(part) for part in typing.get_args(hint))
    return origin is typing.Literal or hint in (*_SCALARS, type(None), Path)


def _fits(value: object, hint: object) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is typing.Literal:
        return value in parts
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(parts) == 2 and parts[1] is Ellipsis:
            return all(_fits(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(
            _fits(item, part) for item, part in zip(value, parts, strict=True)
        )
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is Path:
        return isinstance(value, (str, Path))
    return isinstance(hint, type) and hint in (bool, str, type(None)) and isinstance(value, hint)


def _parts(hint: object) -> tuple[object, ...]:
    """Return the member types of a union, or, for any other type, the type itself as the only member."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _spell(hint: object) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_spell(part) for part in parts)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(part) for part in parts)
    if hint is type(None):
        return "none"
    return hint.__name__ if isinstance(hint, type) and origin is None else str(hint)


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def parse_fields(cls: type, assignments: Sequence[str], what: str) -> dict[str, object]:
    """Return the values of ``field=text`` assignments, parsed by the field types of the dataclass ``cls``.

    Raises:
        ConfigError: a field is unknown, or a text is not of its type.
    """
    hints = {field.name: _hints(cls)[field.name] for field in dataclasses.fields(cls) if field.init}
    values = {}
    for assignment in assignments:
        name, separator, text = (part.strip() for part in assignment.partition("="))
        if not separator:
            raise ConfigError(f"cannot read {assignment!r} as an option of {what}; write it as name=value")
        if name not in hints:
            raise ConfigError(
                f"{what} has no option {name!r}; it has {', '.join(hints)}{_nearest(name, list(hints))}"
            )
        values[name] = _parse(text, hints[name], f"{what}: {name}")
    return values


def spell_type(cls: type, field: str) -> str:
    """Return the type of the dataclass's field ``field`` in words, for messages."""
    return _spell(_hints(cls)[field])
