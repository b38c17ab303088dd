"""Grades a patch by the official rule of SWE-bench, always in a fresh sandbox.

1. The patch is applied to a fresh base: by ``git apply``, else with ``--3way``, else with ``--reject``, else
   by ``patch --fuzz=5``. The tree is cleaned between attempts. A patch that is already in the base counts as
   applied.
2. Files that control the tests are restored: the files of the test patch, the folders of the graded tests,
   ``conftest.py``, pytest's configuration, start-up files of Python, compiled files, and new modules that
   would shadow the test runner or the standard library. Files that the fix itself touches are not restored.
   (The official harness restores only the test files. Policies learn to exploit the rest.)
3. The test patch is applied and the tests run, with a deadline.
4. A test of ``FAIL_TO_PASS`` counts as fixed if it has the status PASSED or XFAIL; a test of ``PASS_TO_PASS``
   counts as kept if it has one of these or SKIPPED; a missing test is neither. Truncated parametrised ids are
   matched by prefix. If the test command failed but its log shows no failure, the result is rejected.
   *Resolved* means that all tests are fixed and kept. If the instance has an ``expected`` map, R2E-Gym's rule
   applies instead: the log must have the tests of the map, with the statuses of the map, and no other tests.

For instances made from source distributions, a test that must fail (the *canary*) runs in the same process as
the graded tests. Its name is random. A patch that makes every test pass makes the canary pass too, and is
rejected.

Sources: SWE-bench 5.0, ``harness/grading.py``; R2E-Gym, ``execution_log_parser.py``. If the agent's patch
makes the tests hang, print nothing or kill the sandbox's processes, that is an outcome. If the sandbox itself
breaks, ``SandboxError`` is raised and there is no grade.
"""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath

from agentrl.errors import EnvError
from agentrl.sandbox import Sandbox
from agentrl_environments.swe import diffs, logs
from agentrl_environments.swe.rows import Instance
from agentrl_environments.swe.workspace import GIT, SETUP_S, Trees, environment, lay_out, require_success

MAX_LOG = 32 << 20
"""Maximum number of bytes that are read from a test run's output."""
ATTEMPTS = (
    ("git", "apply", "--verbose", "-"),
    ("git", "apply", "--verbose", "--3way", "-"),
    ("git", "apply", "--verbose", "--reject", "-"),
    ("patch", "--batch", "--forward", "--fuzz=5", "-p1"),
)
_CONTROL_FILES = frozenset(
    [
        "conftest.py",
        "pytest.ini",
        ".pytest.ini",
        "tox.ini",
        "setup.cfg",
        "pyproject.toml",
        "sitecustomize.py",
        "usercustomize.py",
    ]
)
_RUNNER = frozenset(
    ["pytest", "_pytest", "pluggy", "iniconfig", "packaging", "py", "exceptiongroup", "tomli", "xdist"]
)
_OUTSIDE = re.compile(r"[\s/\"](?:\.git|\.\.)[\s/\"]")
_TEST_FOLDERS = frozenset(["test", "tests", "testing"])


class GradingOutcome(StrEnum):
    """The outcome of grading one patch."""

    RESOLVED = "resolved"
    UNRESOLVED = "unresolved"
    EMPTY = "empty patch"
    NOT_APPLIED = "patch does not apply"
    HUNG = "tests reached their time limit"
    SILENT = "no result, and no sign that the tests ran"
    REJECTED = "results contradict each other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of grading.

    ``fixed`` is the share of FAIL_TO_PASS that is fixed, and ``kept`` the share of PASS_TO_PASS that is kept.
    Both are 0 if no tests ran or the result is rejected. With an ``expected`` map both are the share of tests
    that agree with the map.
    """

    outcome: GradingOutcome
    fixed: float = 0.0
    kept: float = 0.0
    detail: str = ""
    restored: tuple[str, ...] = ()
    """Paths that the patch changed and that were restored before the tests ran."""
    statuses: Mapping[str, str] = field(default_factory=dict)
    log: str = ""

    @property
    def resolved(self) -> bool:
        """Whether the task is solved."""
        return self.outcome is GradingOutcome.RESOLVED

    @property
    def applied(self) -> bool:
        """Whether the patch is not empty and could be applied."""
        return self.outcome not in (GradingOutcome.EMPTY, GradingOutcome.NOT_APPLIED)


async def grade(
    sandbox: Sandbox, instance: Instance, trees: Trees, patch: bytes, *, tests_s: float
) -> Verdict:
    """Grade a patch in ``sandbox``, which is reset first.

    Raises:
        SandboxError: the sandbox broke.
        EnvError: the instance is broken: its base cannot be made, or its test patch cannot be applied.
    """
    if not patch.strip():
        return Verdict(outcome=GradingOutcome.EMPTY)
    await sandbox.reset()
    base = await lay_out(sandbox, instance, trees, show_hidden=True)
    if problem := await apply(sandbox, patch):
        return Verdict(outcome=GradingOutcome.NOT_APPLIED, detail=problem)
    restored = await _restore(sandbox, instance, base, patch)
    if instance.test_patch:
        argv = ["git", "apply", "--whitespace=nowarn", "-"]
        require_success(
            await sandbox.exec(argv, stdin=instance.test_patch.encode(), env=GIT, timeout_s=SETUP_S),
            f"{instance.id}: its test patch",
        )
    canary = await _add_canary(sandbox, instance)
    command = f"exec 2>&1\n{instance.setup}\n{instance.command}\n"
    env = environment(instance, sandbox.spec.workdir)
    ran = await sandbox.exec(["bash", "-c", command], env=env, timeout_s=tests_s, max_output=MAX_LOG)
    text = ran.stdout.decode(errors="replace")
    if ran.timed_out:
        return Verdict(
            outcome=GradingOutcome.HUNG, detail=f"after {tests_s:g} s", restored=restored, log=text
        )
    return judge(instance, text, ran.exit_code, canary=canary, restored=restored)


def judge(
    instance: Instance, text: str, exit_code: int, *, canary: str = "", restored: tuple[str, ...] = ()
) -> Verdict:
    """Return the verdict on a test run that ended: its output is ``text``, and its exit code ``exit_code``.

    ``canary`` is the name of the test that must have failed, or empty if there is none. ``restored`` is
    copied into the verdict.
    """
    log = logs.read(instance.parser, text)
    caught = {test: status for test, status in log.statuses.items() if canary and canary in test}
    statuses = {test: status for test, status in log.statuses.items() if test not in caught}

    def verdict(outcome: GradingOutcome, detail: str = "", fixed: float = 0.0, kept: float = 0.0) -> Verdict:
        return Verdict(
            outcome=outcome,
            detail=detail,
            fixed=fixed,
            kept=kept,
            restored=restored,
            statuses=statuses,
            log=text,
        )

    if not log.ran:
        return verdict(GradingOutcome.SILENT, f"the command ended with exit code {exit_code}")
    if instance.expected:
        share = _agreement(dict(instance.expected), logs.summary_names(text))
        return verdict(
            GradingOutcome.RESOLVED if share == 1.0 else GradingOutcome.UNRESOLVED, fixed=share, kept=share
        )
    fixed = share_of(instance.fail_to_pass, statuses, {"PASSED", "XFAIL"})
    kept = share_of(instance.pass_to_pass, statuses, {"PASSED", "XFAIL", "SKIPPED"})
    if not {"FAILED", "ERROR"} & set(log.statuses.values()) and exit_code != 0:
        return verdict(
            GradingOutcome.REJECTED, f"no test failed, and the command ended with exit code {exit_code}"
        )
    complete = fixed == kept == 1.0
    if complete and canary and (set(caught.values()) != {"FAILED"} or exit_code == 0):
        return verdict(
            GradingOutcome.REJECTED,
            f"a test that must fail: {', '.join(caught.values()) or 'missing'}, exit code {exit_code}",
        )
    return verdict(GradingOutcome.RESOLVED if complete else GradingOutcome.UNRESOLVED, fixed=fixed, kept=kept)


def share_of(tests: Collection[str], statuses: Mapping[str, logs.Status], good: Collection[str]) -> float:
    """Return the share of ``tests`` whose status is in ``good``, or 1 if there are no tests.

    A test without a status counts as not good.
    """
    return sum(_status(test, statuses) in good for test in tests) / len(tests) if tests else 1.0


def _status(test: str, statuses: Mapping[str, logs.Status]) -> logs.Status | None:
    """Return a test's status, or ``None`` if it has none.

    A test id that is truncated within its parameters matches every test whose id begins with it; of their
    statuses, the worst counts.
    """
    if test in statuses or "[" not in test or test.endswith("]"):
        return statuses.get(test)
    matching = [status for known, status in statuses.items() if known.startswith(test)]
    return logs.worst(*matching) if matching else None


def _agreement(expected: Mapping[str, str], found: Mapping[str, str]) -> float:
    """Return the share of test names, in either map, that have the same status in both maps."""
    expected, found = (
        {re.sub(r"\x1b\[\d+m", "", name).split(" - ")[0]: status for name, status in side.items()}
        for side in (expected, found)
    )
    names = (expected.keys() | found.keys()) - {""}
    return sum(expected.get(name) == found.get(name) for name in names) / len(names) if names else 0.0


async def apply(sandbox: Sandbox, patch: bytes) -> str:
    """Apply a patch to the clean tree in the sandbox.

    Return an empty text, or the reason if the patch cannot be applied.
    """
    try:
        files = diffs.parse(patch.decode("utf-8", "surrogateescape"))
    except ValueError as problem:
        return str(problem)
    outside = [line for file in files for line in file.header if _OUTSIDE.search(line)]
    outside += [path for file in files for path in (file.old, file.new) if path[:1] == "/"]
    if outside:
        return f"it writes outside the repository: {outside[0].strip()}"
    # The text is written anew from the parsed files, so that text between the diffs reaches no tool.
    plain = "".join(map(diffs.text, files)).encode("utf-8", "surrogateescape")
    why = ""
    for argv in ATTEMPTS:
        tried = await sandbox.exec(argv, stdin=plain, env=GIT, timeout_s=SETUP_S)
        if tried.exit_code == 0:
            return ""
        why = why or tried.stderr.decode(errors="replace").strip()[-400:]
        clean = "git reset -q --hard && git clean -fdq"
        require_success(
            await sandbox.exec(["bash", "-c", clean], env=GIT, timeout_s=SETUP_S), "cleaning the tree"
        )
    reverse = await sandbox.exec(
        ["git", "apply", "--reverse", "--check", "-"], stdin=plain, env=GIT, timeout_s=SETUP_S
    )
    already_applied = reverse.exit_code == 0
    return "" if already_applied else why or "it changes nothing"


async def _restore(sandbox: Sandbox, instance: Instance, base: str, patch: bytes) -> tuple[str, ...]:
    """Restore the files that control the tests, if they differ from the base or the patch names them.

    Return the paths of the restored files.
    """
    script = (
        f"git ls-tree -r -z --name-only {base}; printf '\\0'; "
        f"git add -A && git diff --cached --no-renames --name-only -z {base}"
    )
    listed = require_success(
        await sandbox.exec(["bash", "-c", script], env=GIT, timeout_s=SETUP_S, max_output=MAX_LOG),
        f"{instance.id}: comparing",
    )
    in_base, _, changed = listed.stdout.decode("utf-8", "surrogateescape").partition("\0\0")
    base_paths = frozenset(in_base.split("\0"))
    touched = {path for path in changed.split("\0") if path}
    touched |= set(diffs.paths(patch.decode("utf-8", "surrogateescape")))  # git add leaves out ignored files
    restored = tuple(sorted(control_files(instance, touched, base_paths)))
    if restored:
        require_success(
            await sandbox.exec(["rm", "-rf", "--", *restored], timeout_s=SETUP_S),
            f"{instance.id}: removing {restored[0]}",
        )
    if kept := [path for path in restored if path in base_paths]:
        argv = ["git", "checkout", "-q", base, "--", *kept]
        require_success(
            await sandbox.exec(argv, env=GIT, timeout_s=SETUP_S), f"{instance.id}: restoring {kept[0]}"
        )
    return restored


def control_files(instance: Instance, changed: Collection[str], base: Collection[str]) -> Iterator[str]:
    """Yield those paths in ``changed`` that control the tests and that the fix does not touch.

    ``base`` holds the paths of all files of the base.
    """
    fix = set(diffs.paths(instance.patch))
    tests = set(instance.test_files)
    folders = {
        parent
        for path in tests
        for parent in PurePosixPath(path).parents
        if _TEST_FOLDERS & set(parent.parts)
    }
    old = {str(parent) for path in base for parent in PurePosixPath(path).parents}
    for path in set(changed) - fix:
        pure = PurePosixPath(path)
        by_name = (
            pure.name in _CONTROL_FILES
            or pure.suffix in (".pth", ".pyc", ".so")
            or "__pycache__" in pure.parts
        )
        in_tests = path in tests or not folders.isdisjoint(pure.parents)
        if in_tests or by_name or (path not in base and _shadows(pure, old, base)):
            yield path


def _shadows(path: PurePosixPath, folders: Collection[str], base: Collection[str]) -> bool:
    """Whether a new file adds a top-level module named like a module of the test runner or standard library.

    ``folders`` and ``base`` are the paths of all folders and files of the base.
    """
    for depth, part in enumerate(path.parts):
        outer, last = PurePosixPath(*path.parts[:depth]), depth == len(path.parts) - 1
        if str(outer / "__init__.py") in base:
            return False
        importable = path.suffix == ".py" if last else str(outer / part) not in folders
        if importable and part.partition(".")[0] in _RUNNER | sys.stdlib_module_names:
            return True
    return False


async def _add_canary(sandbox: Sandbox, instance: Instance) -> str:
    """Add the canary, a test that must fail, to a file of graded tests.

    Return the canary's name, or an empty text if the instance gets no canary.
    """
    files = sorted(
        {file for test in instance.fail_to_pass if (file := test.partition("::")[0]).endswith(".py")}
    )
    if instance.source is None or instance.parser != "pytest" or not files:
        return ""
    name = f"test_{secrets.token_hex(8)}"
    path = f"{sandbox.spec.workdir}/{files[0]}"
    try:
        text = await sandbox.read(path)
        await sandbox.write(path, text + f"\n\ndef {name}():\n    assert False\n".encode())
    except OSError as problem:
        raise EnvError(f"{instance.id}: cannot write {files[0]}: {problem}") from problem
    return name
