"""Reads files of task rows. Errors name the file, the row and the field."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # the content of a file before it is checked

from agentrl.errors import ConfigError
from agentrl_environments.swe import diffs

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Fields:
    """A task row whose fields are checked when they are read.

    Errors name ``where``, the place of the row, and the field that is missing or wrong.
    """

    row: Row
    where: str

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text field, or ``default`` if it is missing.

        Without a ``default``, the field must be present and not empty.
        """
        value = self.row.get(name)
        if value is None and default is not None:
            return default
        if value is None:
            raise self._missing(name)
        if default is None and value == "":
            raise ConfigError(f"{self.where}: field {name!r} is empty")
        if not isinstance(value, str):
            if default is not None and hasattr(value, "isoformat"):  # a date in a Parquet file
                return str(value.isoformat())
            raise ConfigError(f"{self.where}: field {name!r} must be text, found {type(value).__name__}")
        return value

    def names(self, name: str) -> tuple[str, ...]:
        """Return a field that is a list of test names, or such a list encoded as JSON."""
        value = self.json(name) if isinstance(self.row.get(name), str) else self.row.get(name)
        if value is None:
            raise self._missing(name)
        if not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
            raise ConfigError(
                f"{self.where}: field {name!r} must be a list of test names, found {str(value)[:60]!r}"
            )
        return tuple(value)

    def json(self, name: str) -> Any:
        """Return the value of a field that holds JSON as text."""
        try:
            return json.loads(self.text(name))
        except json.JSONDecodeError as problem:
            raise ConfigError(f"{self.where}: field {name!r} is not JSON: {problem}") from None

    def patch(self, name: str, default: str | None = None) -> str:
        """Return a field that holds a unified diff, or ``default`` if it is missing."""
        value = self.text(name, default)
        try:
            if value and not diffs.parse(value):
                raise ValueError("it changes no file")
        except ValueError as problem:
            raise ConfigError(f"{self.where}: field {name!r} is not a unified diff: {problem}") from None
        return value

    def reversed_patch(self, name: str) -> str:
        """Return the reverse of the unified diff that a field holds."""
        try:
            return diffs.reverse(self.patch(name))
        except ValueError as problem:
            raise ConfigError(f"{self.where}: field {name!r}: {problem}") from None

    def _missing(self, name: str) -> ConfigError:
        present = ", ".join(sorted(self.row)) or "no fields"
        return ConfigError(f"{self.where}: field {name!r} is missing; the row has {present}")


def read(file: Path) -> Iterator[tuple[str, Row]]:
    """Yield each row of a JSON, JSON lines or Parquet file: first a text that names its place, then the row.

    Raises:
        ConfigError: the file cannot be read, or its content does not match its extension.
    """
    readers: Mapping[str, Callable[[Path], Iterator[tuple[str, Row]]]] = {
        ".json": _json,
        ".jsonl": _json_lines,
        ".gz": _json_lines,
        ".parquet": _parquet,
    }
    if file.suffix not in readers:
        raise ConfigError(f"task rows: {file} is not a .json, .jsonl, .jsonl.gz or .parquet file")
    try:
        yield from readers[file.suffix](file)
    except UnicodeDecodeError as problem:
        raise ConfigError(f"task rows: {file} is not UTF-8: {problem}") from None
    except (OSError, EOFError, zlib.error) as problem:
        raise ConfigError(
            f"task rows: cannot read {file}: {getattr(problem, 'strerror', None) or problem}"
        ) from None


def _json(file: Path) -> Iterator[tuple[str, Row]]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as problem:
        raise ConfigError(
            f"{file}:{problem.lineno}: is not JSON: {problem.msg}; a file of JSON lines must be named .jsonl"
        ) from None
    if not isinstance(rows, list):
        raise ConfigError(f"{file}: must hold a list of rows, found {type(rows).__name__}")
    for index, row in enumerate(rows):
        yield f"{file}, row {index}", row


def _json_lines(file: Path) -> Iterator[tuple[str, Row]]:
    with (
        gzip.open(file, "rt", encoding="utf-8")
        if file.suffix == ".gz"
        else file.open(encoding="utf-8") as lines
    ):
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield f"{file}:{number}", json.loads(line)
                except json.JSONDecodeError as problem:
                    raise ConfigError(
                        f"{file}:{number}: is not JSON: {problem.msg} at column {problem.colno}"
                    ) from None


def _parquet(file: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except pyarrow.ArrowException as problem:
        raise ConfigError(f"{file}: is not a Parquet file: {problem}") from None
    for index, row in enumerate(table.to_pylist()):
        yield f"{file}, row {index}", row
