"""Grading, by the official rule of SWE-bench, always in a fresh sandbox from the extracted patch.

1. A fresh base; the patch is applied by ``git apply``, then with ``--3way``, then ``--reject``, then by ``patch --fuzz=5``, the tree
   cleaned between tries; a patch that is there already counts as applied.
2. What steers the tests is as it was: files of the test patch, the folders of the graded tests, ``conftest.py``, pytest's configuration,
   start-up files of Python, compiled files, new modules that would shadow the runner or the standard library, unless the fix itself
   touches them. (The official harness restores the test files only. The rest is what policies learn to exploit.)
3. The test patch is applied and the tests run, with a deadline.
4. ``FAIL_TO_PASS`` counts as fixed for PASSED and XFAIL, ``PASS_TO_PASS`` as kept for these and SKIPPED; a missing test is neither.
   Truncated parametrised ids are matched by prefix. A log without failures of a command that failed is rejected. *Resolved*: all of both.
   R2E-Gym's rule instead, where the instance has an ``expected`` map: the same tests with the same statuses, and no other.

A test that must fail, under a name that nobody can know (the *canary*), runs in the same process as the graded ones of instances made
from sources: a patch that makes everything pass makes it pass too, and is rejected.

Sources: SWE-bench 5.0, ``harness/grading.py``; R2E-Gym, ``execution_log_parser.py``. Where the agent's patch makes the tests hang, print
nothing or kill the sandbox's processes, that is an outcome. Where the sandbox itself breaks, ``SandboxError`` passes: nobody is graded.
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
from agentrl_environments.swe.workspace import GIT, SETUP_S, Trees, environment, lay, must

MAX_LOG = 32 << 20
"""Most bytes of a test run's output that are read."""
ATTEMPTS = (
    ("git", "apply", "--verbose", "-"),
    ("git", "apply", "--verbose", "--3way", "-"),
    ("git", "apply", "--verbose", "--reject", "-"),
    ("patch", "--batch", "--forward", "--fuzz=5", "-p1"),
)
_STEERING = frozenset(
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


class Outcome(StrEnum):
    """How grading went, for one patch."""

    RESOLVED = "resolved"
    UNRESOLVED = "unresolved"
    EMPTY = "empty patch"
    NOT_APPLIED = "patch does not apply"
    HUNG = "tests reached their time limit"
    SILENT = "no result, and no sign that the tests ran"
    REJECTED = "results contradict each other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result. ``fixed`` and ``kept`` are shares of FAIL_TO_PASS and PASS_TO_PASS; 0 and 0 where nothing ran."""

    outcome: Outcome
    fixed: float = 0.0
    kept: float = 0.0
    detail: str = ""
    restored: tuple[str, ...] = ()
    """Paths of the patch that were put back before the tests ran."""
    statuses: Mapping[str, str] = field(default_factory=dict)
    log: str = ""

    @property
    def resolved(self) -> bool:
        """Whether the task is solved."""
        return self.outcome is Outcome.RESOLVED

    @property
    def applied(self) -> bool:
        """Whether the patch was not empty and could be applied."""
        return self.outcome not in (Outcome.EMPTY, Outcome.NOT_APPLIED)


async def grade(
    sandbox: Sandbox, instance: Instance, trees: Trees, patch: bytes, *, tests_s: float
) -> Verdict:
    """Grade a patch in ``sandbox``, which is reset first.

    Raises:
        SandboxError: the sandbox broke.
        EnvError: the instance is broken: its base, or its test patch on top of it, cannot be made.
    """
    if not patch.strip():
        return Verdict(outcome=Outcome.EMPTY)
    await sandbox.reset()
    base = await lay(sandbox, instance, trees, show_hidden=True)
    if problem := await apply(sandbox, patch):
        return Verdict(outcome=Outcome.NOT_APPLIED, detail=problem)
    restored = await _restore(sandbox, instance, base, patch)
    if instance.test_patch:
        argv = ["git", "apply", "--whitespace=nowarn", "-"]
        must(
            await sandbox.exec(argv, stdin=instance.test_patch.encode(), env=GIT, timeout_s=SETUP_S),
            f"{instance.id}: its test patch",
        )
    canary = await _plant(sandbox, instance)
    command = f"exec 2>&1\n{instance.setup}\n{instance.command}\n"
    env = environment(instance, sandbox.spec.workdir)
    ran = await sandbox.exec(["bash", "-c", command], env=env, timeout_s=tests_s, max_output=MAX_LOG)
    text = ran.stdout.decode(errors="replace")
    if ran.timed_out:
        return Verdict(outcome=Outcome.HUNG, detail=f"after {tests_s:g} s", restored=restored, log=text)
    return judge(instance, text, ran.exit_code, canary=canary, restored=restored)


def judge(
    instance: Instance, text: str, exit_code: int, *, canary: str = "", restored: tuple[str, ...] = ()
) -> Verdict:
    """Return the verdict on the output of a test run that ended; ``canary`` is the name of the test that must have failed."""
    log = logs.read(instance.parser, text)
    caught = {test: status for test, status in log.statuses.items() if canary and canary in test}
    statuses = {test: status for test, status in log.statuses.items() if test not in caught}

    def verdict(outcome: Outcome, detail: str = "", fixed: float = 0.0, kept: float = 0.0) -> Verdict:
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
        return verdict(Outcome.SILENT, f"the command ended with exit code {exit_code}")
    if instance.expected:
        share = _agreement(dict(instance.expected), logs.summary_names(text))
        return verdict(Outcome.RESOLVED if share == 1.0 else Outcome.UNRESOLVED, fixed=share, kept=share)
    fixed = share_of(instance.fail_to_pass, statuses, {"PASSED", "XFAIL"})
    kept = share_of(instance.pass_to_pass, statuses, {"PASSED", "XFAIL", "SKIPPED"})
    if not {"FAILED", "ERROR"} & set(log.statuses.values()) and exit_code != 0:
        return verdict(Outcome.REJECTED, f"no test failed, and the command ended with exit code {exit_code}")
    complete = fixed == kept == 1.0
    if complete and canary and (set(caught.values()) != {"FAILED"} or exit_code == 0):
        return verdict(
            Outcome.REJECTED,
            f"a test that must fail: {', '.join(caught.values()) or 'missing'}, exit code {exit_code}",
        )
    return verdict(Outcome.RESOLVED if complete else Outcome.UNRESOLVED, fixed=fixed, kept=kept)


def share_of(tests: Collection[str], statuses: Mapping[str, logs.Status], good: Collection[str]) -> float:
    """Return the share of ``tests`` with a good status; 1 where there are none. A missing test is not good."""
    return sum(_status(test, statuses) in good for test in tests) / len(tests) if tests else 1.0


def _status(test: str, statuses: Mapping[str, logs.Status]) -> logs.Status | None:
    """Return a test's status. An id that breaks off inside its parameters stands for all that begin with it: the worst counts."""
    if test in statuses or "[" not in test or test.endswith("]"):
        return statuses.get(test)
    begun = [status for known, status in statuses.items() if known.startswith(test)]
    return logs.worst(*begun) if begun else None


def _agreement(expected: Mapping[str, str], found: Mapping[str, str]) -> float:
    """Return the share of names, expected or found, on which both agree."""
    expected, found = (
        {re.sub(r"\x1b\[\d+m", "", name).split(" - ")[0]: status for name, status in side.items()}
        for side in (expected, found)
    )
    names = (expected.keys() | found.keys()) - {""}
    return sum(expected.get(name) == found.get(name) for name in names) / len(names) if names else 0.0


async def apply(sandbox: Sandbox, patch: bytes) -> str:
    """Apply a patch to the sandbox's clean tree; return why it cannot be, empty where it was."""
    try:
        files = diffs.parse(patch.decode("utf-8", "surrogateescape"))
    except ValueError as problem:
        return str(problem)
    heads = [line for file in files for line in file.header]
    if odd := [line for line in heads if _OUTSIDE.search(line)] + [
        path for file in files for path in (file.old, file.new) if path[:1] == "/"
    ]:
        return f"it writes outside the repository: {odd[0].strip()}"
    plain = "".join(map(diffs.text, files)).encode(
        "utf-8", "surrogateescape"
    )  # nothing between the diffs reaches a tool
    why = ""
    for argv in ATTEMPTS:
        tried = await sandbox.exec(argv, stdin=plain, env=GIT, timeout_s=SETUP_S)
        if tried.exit_code == 0:
            return ""
        why = why or tried.stderr.decode(errors="replace").strip()[-400:]
        clean = "git reset -q --hard && git clean -fdq"
        must(await sandbox.exec(["bash", "-c", clean], env=GIT, timeout_s=SETUP_S), "cleaning the tree")
    there = await sandbox.exec(
        ["git", "apply", "--reverse", "--check", "-"], stdin=plain, env=GIT, timeout_s=SETUP_S
    )
    return "" if there.exit_code == 0 else why or "it changes nothing"


async def _restore(sandbox: Sandbox, instance: Instance, base: str, patch: bytes) -> tuple[str, ...]:
    """Put back what steers the tests, whoever changed it, by what really differs from the base; return the paths."""
    script = f"git ls-tree -r -z --name-only {base}; printf '\\0'; git add -A && git diff --cached --no-renames --name-only -z {base}"
    listed = must(
        await sandbox.exec(["bash", "-c", script], env=GIT, timeout_s=SETUP_S, max_output=MAX_LOG),
        f"{instance.id}: comparing",
    )
    there, _, changed = listed.stdout.decode("utf-8", "surrogateescape").partition("\0\0")
    ours = frozenset(there.split("\0"))
    touched = {path for path in changed.split("\0") if path} | set(
        diffs.paths(patch.decode("utf-8", "surrogateescape"))
    )  # ignored ones too
    restored = tuple(sorted(steering(instance, touched, ours)))
    if restored:
        must(
            await sandbox.exec(["rm", "-rf", "--", *restored], timeout_s=SETUP_S),
            f"{instance.id}: putting back {restored[0]}",
        )
    if kept := [path for path in restored if path in ours]:
        argv = ["git", "checkout", "-q", base, "--", *kept]
        must(await sandbox.exec(argv, env=GIT, timeout_s=SETUP_S), f"{instance.id}: putting back {kept[0]}")
    return restored


def steering(instance: Instance, changed: Collection[str], base: Collection[str]) -> Iterator[str]:
    """Yield the changed paths that steer the tests and that the fix does not touch; ``base``: all paths there were."""
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
        named = (
            pure.name in _STEERING or pure.suffix in (".pth", ".pyc", ".so") or "__pycache__" in pure.parts
        )
        if (
            path in tests
            or named
            or not folders.isdisjoint(pure.parents)
            or (path not in base and _shadows(pure, old, base))
        ):
            yield path


def _shadows(path: PurePosixPath, folders: Collection[str], base: Collection[str]) -> bool:
    """Whether a new file makes a new module, outside of any package, that has the name of one of the runner or the standard library."""
    for depth, part in enumerate(path.parts):
        outer, last = PurePosixPath(*path.parts[:depth]), depth == len(path.parts) - 1
        if str(outer / "__init__.py") in base:
            return False
        importable = path.suffix == ".py" if last else str(outer / part) not in folders
        if importable and part.partition(".")[0] in _RUNNER | sys.stdlib_module_names:
            return True
    return False


async def _plant(sandbox: Sandbox, instance: Instance) -> str:
    """Add the canary to a file of graded tests and return its name; empty where the instance is not one of ours."""
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
