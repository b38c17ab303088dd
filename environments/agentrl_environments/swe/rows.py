"""Task rows: the normal form `Instance`, and the formats of the field that are converted to it.

| format | known by | what is special |
|---|---|---|
| SWE-bench, Verified | ``FAIL_TO_PASS`` and ``test_patch`` | the test lists are JSON inside strings |
| SWE-Gym | those, without ``environment_setup_commit`` | the test lists are lists; other images |
| SWE-smith | ``image_name``, no ``test_patch`` | ``patch`` *makes the bug*: the fix is its reverse |
| R2E-Gym | ``expected_output_json`` | both versions of each file, no patch; graded by a map of tests |

Files are JSON (a list of rows), JSON lines (gzipped or not) or Parquet. `write` writes the SWE-bench form,
with one more field, ``agentrl``, for everything that form has no field for. So nothing is lost, and other
tools can read the file.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args  # Any: the content of a file before it is checked

from agentrl.errors import ConfigError
from agentrl_environments.swe import diffs
from agentrl_environments.swe.files import Fields, Row, read

Parser = Literal["pytest", "unittest", "sympy"]

PYTEST = "python3 -m pytest -p no:cacheprovider -o addopts='' -q -rA --tb=no --color=no"
"""Test command of a package that needs only pytest. Test files may be appended to it."""
_CONDA = "source /opt/miniconda3/bin/activate testbed"
_HUB_PYTEST = "pytest --no-header -rA --tb=no -p no:cacheprovider"
_HUB_COMMANDS: Mapping[str, tuple[str, Parser]] = {
    "django/django": ("./tests/runtests.py --verbosity 2 --settings=test_sqlite --parallel 1", "unittest"),
    "sympy/sympy": (
        "PYTHONWARNINGS='ignore::UserWarning,ignore::SyntaxWarning' bin/test -C --verbose",
        "sympy",
    ),
    "sphinx-doc/sphinx": ("tox --current-env -epy39 -v --", "pytest"),
    "astropy/astropy": ("pytest -rA -vv -o console_output_style=classic --tb=no", "pytest"),
}
"""Test commands of repositories that do not use `_HUB_PYTEST`, with the parser of their log (from SWE-bench's
table)."""


@dataclass(frozen=True, slots=True)
class SourceDistribution:
    """A source distribution from which a repository is made: a release, and the hash of its archive."""

    package: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One task in normal form.

    The *base* is the tree that the agent sees. The base with ``patch`` and ``test_patch`` applied is the
    solved tree.
    """

    id: str
    repo: str
    problem_statement: str
    patch: str
    """The fix: the diff from the base to the solution, whichever direction the file's format has."""
    test_patch: str = ""
    """Changes of the tests. They are not in the tree that the agent sees, and are applied for grading."""
    fail_to_pass: tuple[str, ...] = ()
    pass_to_pass: tuple[str, ...] = ()
    expected: tuple[tuple[str, str], ...] = ()
    """Pairs of a test and its status. If there are any, R2E-Gym's rule applies: to be resolved, the log must
    have exactly these tests with these statuses."""
    base_commit: str = ""
    version: str = ""

    source: SourceDistribution | None = None
    """Source distribution that the tree comes from; ``None`` if the tree is in ``image``, at ``folder``."""
    image: str = ""
    """Image of the sandbox. If it is empty, the option ``image`` of the environment is used."""
    folder: str = "/testbed"
    solved: bool = False
    """Whether the tree given by ``source`` or ``image`` is the solved one. If so, the base is made by
    reversing ``test_patch`` and ``patch``."""
    hidden: tuple[str, ...] = ()
    """Paths in the image that the agent must not see. They are removed from the agent's sandbox, and are
    present in the sandbox for grading."""
    setup: str = ""
    """Shell command that prepares each shell in ``folder``: that of the agent and that of the tests."""
    command: str = ""
    """Shell command that runs the tests in ``folder``."""
    parser: Parser = "pytest"
    """Name of the parser of the test output (see ``logs``)."""

    site: str = ""
    """A key shared by instances that teach the same thing, such as the name of the broken function. Instances
    of a repository with the same key are in the same split. If it is empty, ``id`` is the key."""
    kind: str = ""
    """Name of the kind of change that made the bug; empty if it is not known."""
    difficulty: str = ""
    hints: str = ""
    created_at: str = ""
    environment_setup_commit: str = ""

    @property
    def digest(self) -> str:
        """Hash of the instance's content."""
        return hashlib.sha256(json.dumps(to_row(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def test_files(self) -> tuple[str, ...]:
        """The paths of the test files: those in the test patch and those named in test ids, sorted."""
        named = {
            found.group()
            for test in (*self.fail_to_pass, *self.pass_to_pass)
            if (found := re.match(r"[^:\s\[]+\.py(?=::|$)", test))
        }
        return tuple(sorted(named | set(diffs.paths(self.test_patch))))

    @property
    def split_key(self) -> int:
        """A hash of ``repo`` and ``site`` (``id`` if that is empty), from 0 to 999: it decides the split."""
        key = f"{self.repo}\0{self.site or self.id}"
        return int(hashlib.sha256(key.encode()).hexdigest()[:12], 16) % 1000


def load(path: str | Path) -> tuple[Instance, ...]:
    """Return the instances of a file. An unchanged file is read only once.

    Raises:
        ConfigError: the file cannot be read, or a field of a row is missing or wrong; the message names file,
            row and field.
    """
    return tuple(index(path).values())


def index(path: str | Path) -> Mapping[str, Instance]:
    """Return the instances of a file by id; it raises the same errors as `load`."""
    return _load(*_cache_key(path))


def _cache_key(path: str | Path) -> tuple[Path, int, int]:
    """Return a file with its modification time and its size, which tell whether its content has changed."""
    file = Path(path)
    try:
        found = file.stat()
    except OSError as problem:
        raise ConfigError(
            f"task rows: cannot read {file}: {problem.strerror}; "
            "name a .json, .jsonl, .jsonl.gz or .parquet file"
        ) from None
    return file, found.st_mtime_ns, found.st_size


@lru_cache(maxsize=16)
def _load(file: Path, changed_ns: int, size: int) -> Mapping[str, Instance]:
    instances: dict[str, Instance] = {}
    for where, row in read(file):
        instance = from_row(row, where)
        if instance.id in instances:
            raise ConfigError(
                f"{where}: instance_id {instance.id!r} occurs twice; ids must be unique in a file"
            )
        instances[instance.id] = instance
    if not instances:
        raise ConfigError(f"task rows: {file} has no rows")
    return instances


def write(path: str | Path, instances: Iterable[Instance]) -> None:
    """Write instances as JSON lines in SWE-bench form.

    If the file's name ends in .gz, the file is compressed, and equal instances give equal bytes.
    """
    text = "".join(json.dumps(to_row(instance), ensure_ascii=False) + "\n" for instance in instances).encode()
    Path(path).write_bytes(gzip.compress(text, mtime=0) if Path(path).suffix == ".gz" else text)


def from_row(row: Row, where: str = "row") -> Instance:
    """Convert a row of any of the module's formats to the normal form; ``where`` names the row in errors.

    Raises:
        ConfigError: a field is missing or wrong.
    """
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where}: must be an object, found {type(row).__name__}")
    fields = Fields(row, where)
    if "expected_output_json" in row:
        return _r2e_gym(fields)
    if "image_name" in row and "test_patch" not in row:
        return _swe_smith(fields)
    return _swe_bench(fields)


def to_row(instance: Instance) -> dict[str, Any]:
    """Return an instance as a SWE-bench row with the extra field ``agentrl``: the inverse of `from_row`."""
    row = {name: getattr(instance, ours) for name, ours in _SWE_BENCH.items()}
    row |= {
        "FAIL_TO_PASS": json.dumps(instance.fail_to_pass),
        "PASS_TO_PASS": json.dumps(instance.pass_to_pass),
    }
    extra = {name: getattr(instance, name) for name in _OURS}
    extra["source"] = None if instance.source is None else dataclasses.asdict(instance.source)
    return row | {"agentrl": extra}


_SWE_BENCH = {
    "repo": "repo",
    "instance_id": "id",
    "base_commit": "base_commit",
    "patch": "patch",
    "test_patch": "test_patch",
    "problem_statement": "problem_statement",
    "hints_text": "hints",
    "created_at": "created_at",
    "version": "version",
    "environment_setup_commit": "environment_setup_commit",
    "difficulty": "difficulty",
}
"""The attribute of `Instance` for each field of SWE-bench."""
_OURS = (
    "source",
    "image",
    "folder",
    "solved",
    "hidden",
    "setup",
    "command",
    "parser",
    "site",
    "kind",
    "expected",
)


def _swe_bench(fields: Fields) -> Instance:
    extra = fields.row.get("agentrl") or {}
    if not isinstance(extra, Mapping):
        raise ConfigError(f"{fields.where}: field 'agentrl' must be an object, found {type(extra).__name__}")
    plain = Instance(
        id=fields.text("instance_id"),
        repo=fields.text("repo"),
        problem_statement=fields.text("problem_statement"),
        patch=fields.patch("patch"),
        test_patch=fields.patch("test_patch", "" if extra else None),
        fail_to_pass=fields.names("FAIL_TO_PASS"),
        pass_to_pass=fields.names("PASS_TO_PASS"),
        base_commit=fields.text("base_commit", "" if extra else None),
        version=fields.text("version", ""),
        hints=fields.text("hints_text", ""),
        difficulty=fields.text("difficulty", ""),
        created_at=fields.text("created_at", ""),
        environment_setup_commit=fields.text("environment_setup_commit", ""),
    )
    if not extra.get("expected"):
        _require_failing_tests(plain, fields)
    return _with_ours(plain, extra, fields.where) if extra else _hub(plain, fields)


def _require_failing_tests(instance: Instance, fields: Fields) -> None:
    if not instance.fail_to_pass:
        raise ConfigError(f"{fields.where}: field 'FAIL_TO_PASS' is empty: there would be nothing to fix")


def _with_ours(instance: Instance, extra: Mapping[str, Any], where: str) -> Instance:
    """Return ``instance`` with the values of ``extra``, which `to_row` wrote into the field ``agentrl``."""
    if unknown := sorted(set(extra) - set(_OURS)):
        raise ConfigError(
            f"{where}: field 'agentrl' has unknown entries {', '.join(unknown)}; known are {', '.join(_OURS)}"
        )
    values = {name: extra[name] for name in _OURS if name in extra}
    try:
        if values.get("source") is not None:
            values["source"] = SourceDistribution(**values["source"])
        values["hidden"] = tuple(values.get("hidden", ()))
        values["expected"] = tuple((str(test), str(status)) for test, status in values.get("expected", ()))
        changed = dataclasses.replace(instance, **values)
    except (TypeError, ValueError) as problem:
        raise ConfigError(f"{where}: field 'agentrl': {problem}") from None
    if changed.parser not in get_args(Parser):
        raise ConfigError(
            f"{where}: field 'agentrl': parser is {changed.parser!r}; "
            f"it must be one of {', '.join(get_args(Parser))}"
        )
    if not changed.command:
        raise ConfigError(
            f"{where}: field 'agentrl': command is empty; it must be the command that runs the tests"
        )
    return changed


def _hub(instance: Instance, fields: Fields) -> Instance:
    """Return a SWE-bench or SWE-Gym instance, completed with its published image and its test command."""
    command, parser = _HUB_COMMANDS.get(instance.repo, (_HUB_PYTEST, "pytest"))
    files = [path for path in diffs.paths(instance.test_patch) if path.endswith(".py")]
    if instance.repo == "django/django":  # its runner takes modules, relative to tests/
        files = [path.removeprefix("tests/").removesuffix(".py").replace("/", ".") for path in files]
    if "environment_setup_commit" in fields.row:
        image = f"swebench/sweb.eval.x86_64.{instance.id.lower().replace('__', '_1776_')}:latest"
    else:
        image = f"xingyaoww/sweb.eval.x86_64.{instance.id.lower().replace('__', '_s_')}:latest"
    image = fields.text("image_name", "") or image
    return dataclasses.replace(
        instance, image=image, command=" ".join([command, *sorted(set(files))]), parser=parser, setup=_CONDA
    )


def _swe_smith(fields: Fields) -> Instance:
    instance = Instance(
        id=fields.text("instance_id"),
        repo=fields.text("repo"),
        problem_statement=fields.text("problem_statement"),
        patch=fields.reversed_patch("patch"),
        fail_to_pass=fields.names("FAIL_TO_PASS"),
        pass_to_pass=fields.names("PASS_TO_PASS"),
        base_commit=fields.text("base_commit", ""),
        created_at=fields.text("created_at", ""),
        image=fields.text("image_name"),
        solved=True,
    )
    _require_failing_tests(instance, fields)
    command = "pytest --disable-warnings --color=no --tb=no --verbose -p no:cacheprovider"
    return dataclasses.replace(instance, command=" ".join([command, *instance.test_files]), setup=_CONDA)


def _r2e_gym(fields: Fields) -> Instance:
    expected = fields.json("expected_output_json")
    if not isinstance(expected, Mapping) or not expected:
        raise ConfigError(
            f"{fields.where}: field 'expected_output_json' must be an object of test names and statuses"
        )
    repo, commit = fields.text("repo_name"), fields.text("commit_hash")
    changes = fields.json("parsed_commit_content")
    return Instance(
        id=fields.text("instance_id", f"{repo}__{commit}"),
        repo=repo,
        problem_statement=fields.text("problem_statement"),
        patch=_patch_of(changes, fields.where),
        expected=tuple(sorted((str(test), str(status)) for test, status in expected.items())),
        base_commit=f"{commit}^",
        image=fields.text("docker_image"),
        hidden=("/r2e_tests", "r2e_tests", "run_tests.sh"),
        setup='export PATH="$PWD/.venv/bin:$PATH"',
        command="[ -e r2e_tests ] || ln -s /r2e_tests r2e_tests; bash run_tests.sh",
    )


def _patch_of(changes: Any, where: str) -> str:
    """Return the fix in R2E-Gym's ``parsed_commit_content``: the unified diff of all files but the tests."""
    parts = []
    try:
        for change in changes["file_diffs"]:
            path = str(change["header"]["file"]["path"])
            is_test = re.search(r"(^|/)(tests?|r2e_tests)/|(^|/)test_[^/]*$|_test\.py$", path)
            if is_test or change.get("is_binary_file"):
                continue
            old, new = change.get("old_file_content") or "", change.get("new_file_content") or ""
            parts.append(diffs.unified(path, old, new))
    except (KeyError, TypeError) as problem:
        raise ConfigError(
            f"{where}: field 'parsed_commit_content' lacks {problem}; "
            "it must have file_diffs with header, old and new content"
        ) from None
    if not "".join(parts):
        raise ConfigError(f"{where}: field 'parsed_commit_content' changes no file that is not a test")
    return "".join(parts)
