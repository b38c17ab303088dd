"""Candidates: bugs that might become tasks, and what the package's tests show about them.

A candidate replaces lines of a file, in one place or, for a combined bug, in several. So it can be applied,
reversed, compared and shown as a patch without the syntax tree it came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agentrl_environments.swe.diffs import unified

COMBINED = "combined"
"""The kind of candidates that consist of several bugs."""
REMOVE_BODY = "remove_body"
"""The kind of candidates whose fix is to write a whole function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """Replaces the lines from ``start`` to ``stop`` of a file with ``lines``.

    Line numbers count from 0, and ``stop`` is excluded. Each of ``lines`` includes its line end.
    """

    path: str
    start: int
    stop: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A bug that might become a task."""

    kind: str
    edits: tuple[Edit, ...]
    functions: tuple[str, ...]
    """For each edit the innermost function or class around it, as ``path::qualified.name``, or the path alone
    if the edit is at module level."""
    spans: tuple[tuple[str, int, int], ...]
    """For each edit the path, and the first and last line (from 1) of the outermost function around it. The
    lines are 0 and 0 if the edit is in no function."""
    complexity: int
    """Cyclomatic complexity of the most complex function that is edited."""

    @property
    def id(self) -> str:
        """Hash of the edits, so that the same bug has the same id in every run."""
        text = "\0".join(f"{edit.path}:{edit.start}:{edit.stop}:{''.join(edit.lines)}" for edit in self.edits)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def apply(self, files: Mapping[str, str]) -> dict[str, str]:
        """Return, by path, the texts of the edited files, with the bug in them."""
        changed: dict[str, list[str]] = {}
        for edit in sorted(self.edits, key=lambda edit: -edit.start):
            lines = changed.setdefault(edit.path, files[edit.path].splitlines(keepends=True))
            lines[edit.start : edit.stop] = edit.lines
        return {path: "".join(lines) for path, lines in sorted(changed.items())}

    def fix(self, files: Mapping[str, str]) -> str:
        """Return the patch that removes the bug: it leads from the buggy files to the correct ``files``."""
        return "".join(unified(path, broken, files[path]) for path, broken in self.apply(files).items())


class CandidateOutcome(StrEnum):
    """Result of running the package's tests with a candidate."""

    VALID = "valid"
    SURVIVED = "no test fails"
    BROAD = "too many tests fail"
    DEAD = "the suite does not run"
    HUNG = "the suite does not end"
    FLAKY = "two runs differ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a test failed.

    ``type`` and ``message`` are those of the exception. ``frames`` are the traceback's entries inside the
    repository (file, line, function), outermost first.
    """

    type: str
    message: str
    frames: tuple[tuple[str, int, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedCandidate:
    """A candidate and its outcome. ``cpu_s`` is the processor time of its runs, in seconds."""

    candidate: Candidate
    outcome: CandidateOutcome
    fail_to_pass: tuple[str, ...] = ()
    failures: Mapping[str, Failure] = field(default_factory=dict)
    cpu_s: float = 0.0
