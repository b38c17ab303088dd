r"""Reads a test run's output: a status for each test, and whether the suite ran at all.

If a log names a test more than once, the worst status counts. There are two reasons: pytest reports
``PASSED`` and then ``ERROR`` for a test whose teardown failed; and code that prints a line which looks like a
result must not be able to improve a real result.

>>> read("pytest", "PASSED tests/test_a.py::test_b\n1 passed in 0.01s\n")
Log(statuses={'tests/test_a.py::test_b': 'PASSED'}, ran=True)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from agentrl_environments.swe.rows import Parser

Status = Literal["PASSED", "XFAIL", "SKIPPED", "XPASS", "FAILED", "ERROR"]
"""The status of a test, from best to worst. ``XFAIL`` means that the test failed, as the suite expects."""

_RANK = {status: rank for rank, status in enumerate(get_args(Status))}
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\r")
_STATUSES = "|".join(_RANK)
_SUMMARY = re.compile(rf"({_STATUSES}) ([^\s\[]+(?:\[.*?\](?= - |$)|\S*))(?: - .*)?$")
_VERBOSE = re.compile(rf"(\S+?\.py(?:::\S+|::[^\[]+\[.*\])) ({_STATUSES})(?: \(.*\))?(?:\s+\[\s*\d+%\])?$")
_PYTEST_RAN = re.compile(
    r"=+ test session starts =+|(^|\n)(=+ )?"
    r"(no tests ran|\d+ (passed|failed|skipped|errors?|xfailed|xpassed|deselected)).* in [\d.]+s"
)
_UNITTEST = {
    "ok": "PASSED",
    "OK": "PASSED",
    "FAIL": "FAILED",
    "ERROR": "ERROR",
    "expected failure": "XFAIL",
    "unexpected success": "XPASS",
}
_SYMPY = {"ok": "PASSED", "F": "FAILED", "E": "ERROR", "f": "XFAIL", "X": "XPASS", "s": "SKIPPED"}


@dataclass(frozen=True, slots=True)
class Log:
    """A parsed log: the status of each test, and whether the test runner ``ran`` at all."""

    statuses: Mapping[str, Status]
    ran: bool


def read(parser: Parser, text: str) -> Log:
    """Parse a test run's output ``text``, as the test runner named by ``parser`` writes it."""
    found, ran = _PARSERS[parser]
    text = _ANSI.sub("", text)
    statuses: dict[str, Status] = {}
    for test, status in found(text):
        statuses[test] = worst(status, statuses.get(test, status))
    return Log(statuses, bool(ran.search(text)) or bool(statuses))


def worst(*statuses: Status) -> Status:
    """Return the worst of the statuses."""
    return max(statuses, key=_RANK.__getitem__)


def summary_names(text: str) -> dict[str, str]:
    """Return the status of each test in pytest's short summary, by the name that R2E-Gym gives to the test.

    The name is the test's id without the file, its parts joined by dots. As in R2E-Gym's own parser, tests
    of the same name in different files are one, and the last status of a name counts.
    """
    _, _, summary = _ANSI.sub("", text).partition("short test summary info")
    statuses: dict[str, str] = {}
    for line in summary.splitlines():
        if found := re.search("PASSED|FAILED|ERROR", line):
            statuses[".".join(line.split("::")[1:]).split(" - ")[0]] = found.group()
    return statuses


def _pytest(text: str) -> Iterator[tuple[str, Status]]:
    """Yield each test and its status from pytest's output, as ``-rA`` or ``--verbose`` prints it."""
    for line in text.splitlines():
        if found := _SUMMARY.match(line):
            if not found.group(2).startswith("["):  # "SKIPPED [1] file:line: reason" names no test
                yield found.group(2), cast(Status, found.group(1))
        elif found := _VERBOSE.match(line):
            yield found.group(1), cast(Status, found.group(2))


def _unittest(text: str) -> Iterator[tuple[str, Status]]:
    """Yield each test and its status from the output of ``unittest --verbose`` or of Django's runner.

    A test with a docstring is yielded twice: under its id and under the first line of its docstring.
    """
    names: tuple[str, ...] = ()
    for raw in text.splitlines():
        line = raw.strip()
        name, dots, rest = line.partition(" ... ")
        if dots:
            before = names if names and not name.startswith("test") else ()
            names = (*before, name)
        elif re.fullmatch(r"\w+ \([\w.]+\)", line):
            names = (line,)
            continue
        else:
            rest = line  # output of the test may come between "..." and the status
        if rest.startswith("skipped") and dots:
            status = "SKIPPED"
        elif (word := rest.strip()) in _UNITTEST and names:
            status = _UNITTEST[word]
        elif header := re.match(r"(FAIL|ERROR): (\w+ \([\w.]+\))", line):
            yield header.group(2), cast(Status, _UNITTEST[header.group(1)])
            continue
        else:
            continue
        for known in names:
            yield known, cast(Status, status)
        names = ()


def _sympy(text: str) -> Iterator[tuple[str, Status]]:
    """Yield each test and its status from the verbose output of SymPy's runner, such as ``test_name ok``."""
    for line in text.splitlines():
        if found := re.match(r"\s*(test_\w+) (ok|[FEfXs])(\s|$)", line):
            yield found.group(1), cast(Status, _SYMPY[found.group(2)])
        elif found := re.match(r"_+ (\S+\.py):(\S+) _+$", line):
            yield f"{found.group(1)}:{found.group(2)}", "FAILED"


_PARSERS: Mapping[Parser, tuple[Callable[[str], Iterator[tuple[str, Status]]], re.Pattern[str]]] = {
    "pytest": (_pytest, _PYTEST_RAN),
    "unittest": (_unittest, re.compile(r"(^|\n)Ran \d+ tests? in ")),
    "sympy": (_sympy, re.compile(r"=+ test process starts =+|tests finished: ")),
}
