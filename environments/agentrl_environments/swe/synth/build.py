"""Builds rows from valid candidates, and chooses a balanced set of them.

The tree of a row contains the bug and lacks the test functions that fail with it; the test patch adds them
back for grading. The base is a single commit, and the row holds its hash. The split of a row is determined by
a hash of the broken function; held-out packages have a split of their own. All functions that a combined bug
breaks belong to one split.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from agentrl.errors import EnvError
from agentrl.sandbox import Sandbox
from agentrl.types import seed_of
from agentrl_environments.swe import diffs, grade, sources
from agentrl_environments.swe.rows import Instance
from agentrl_environments.swe.synth.candidates import (
    REMOVE_BODY,
    Candidate,
    CandidateOutcome,
    CheckedCandidate,
)
from agentrl_environments.swe.synth.packages import Tree
from agentrl_environments.swe.synth.statements import statement, without_functions
from agentrl_environments.swe.workspace import GIT, Trees, require_success

Difficulty = Literal["easy", "medium", "hard"]
DATE = "2000-01-01T00:00:00Z"
"""``created_at`` of every row: the date of its base commit."""
_NO_FIX = "--- /dev/null\n+++ b/agentrl-untouched.txt\n@@ -0,0 +1 @@\n+a patch that mends nothing\n"


def difficulty(checked: CheckedCandidate) -> Difficulty:
    """Estimate how hard a bug is to find, by points: 0 or 1 is easy, 2 is medium, more is hard.

    There is one point for each of these: no traceback of a failing test passes through the broken function;
    at most two tests fail; the function has a cyclomatic complexity of 8 or more; there are several bugs, or
    a whole function must be written.
    """
    candidate = checked.candidate
    frames = {(path, line) for failure in checked.failures.values() for path, line, _ in failure.frames}
    seen = any(
        path == there and start <= line <= stop
        for path, line in frames
        for there, start, stop in candidate.spans
    )
    points = (not seen) + (len(checked.fail_to_pass) <= 2) + (candidate.complexity >= 8)
    points += len(candidate.edits) > 1 or candidate.kind == REMOVE_BODY
    return "easy" if points <= 1 else "medium" if points == 2 else "hard"


def broken_function(candidate: Candidate) -> str:
    """Return the name of the (first) function that a candidate breaks.

    Instances that break the same function must be in the same split.
    """
    return candidate.functions[0]


def instance(tree: Tree, checked: CheckedCandidate) -> Instance:
    """Return the task made from a valid candidate.

    `completed` adds its base commit and the tests that must keep passing.
    """
    candidate = checked.candidate
    texts = {
        path: tree.files[path].decode()
        for path in tree.modules
        if path in {edit.path for edit in candidate.edits}
    }
    fix = candidate.fix(texts)
    tests = {
        path: data.decode()
        for path, data in tree.files.items()
        if path in {test.partition("::")[0] for test in checked.fail_to_pass}
    }
    broken: dict[str, list[list[str]]] = defaultdict(list)
    for test in checked.fail_to_pass:
        path, *names = test.partition("[")[0].split("::")
        if path in tests and names:
            broken[path].append(names)
    test_patch = "".join(
        diffs.unified(path, without_functions(tests[path], names), tests[path])
        for path, names in sorted(broken.items())
    )
    name = tree.package.name
    return Instance(
        id=f"agentrl__{name}-{candidate.id}",
        repo=name,
        version=tree.package.version,
        problem_statement=statement(name, checked, tests, fix, candidate.apply(texts)),
        patch=fix,
        test_patch=test_patch,
        fail_to_pass=checked.fail_to_pass,
        source=tree.source,
        solved=True,
        command=tree.command,
        parser="pytest",
        site=broken_function(candidate),
        kind=candidate.kind,
        difficulty=difficulty(checked),
        created_at=DATE,
    )


def narrowed(row: Instance) -> Instance:
    """Return the row, graded only by the test files that its bug breaks.

    This is faster, but a patch that breaks tests in other files is not noticed. If the test files have fewer
    tests that pass with the bug than tests that fail with it, the row is returned unchanged.
    """
    files = sorted({test.partition("::")[0] for test in row.fail_to_pass})
    kept = tuple(test for test in row.pass_to_pass if test.partition("::")[0] in files)
    if len(kept) < len(row.fail_to_pass):
        return row
    return dataclasses.replace(
        row, command=" ".join([row.command, *map(shlex.quote, files)]), pass_to_pass=kept
    )


def choose(candidates: Sequence[CheckedCandidate], number: int, *, seed: int) -> list[CheckedCandidate]:
    """Return up to ``number`` of the valid candidates.

    They are balanced first over kinds of bugs, then over difficulties, then over broken functions.
    """
    groups: dict[str, list[CheckedCandidate]] = defaultdict(list)
    for checked in candidates:
        if checked.outcome is CandidateOutcome.VALID:
            groups[checked.candidate.kind].append(checked)
    queues = [_even(groups[kind], seed) for kind in sorted(groups, key=lambda kind: seed_of(seed, kind))]
    chosen: list[CheckedCandidate] = []
    while queues and len(chosen) < number:
        for queue in list(queues):
            found = next(queue, None)
            if found is None:
                queues.remove(queue)
            elif len(chosen) < number:
                chosen.append(found)
    return chosen


def _even(candidates: Sequence[CheckedCandidate], seed: int) -> Iterator[CheckedCandidate]:
    """Yield candidates of one kind in a balanced order.

    The difficulties come in turn; within a difficulty, a function that was yielded less often comes first.
    """
    left = sorted(candidates, key=lambda checked: seed_of(seed, checked.candidate.id))
    difficulties: Counter[str] = Counter()
    functions: Counter[str] = Counter()

    def times_used(checked: CheckedCandidate) -> tuple[int, int]:
        return difficulties[difficulty(checked)], functions[broken_function(checked.candidate)]

    while left:
        best = min(left, key=times_used)
        left.remove(best)
        difficulties[difficulty(best)] += 1
        functions[broken_function(best.candidate)] += 1
        yield best


async def verify(sandbox: Sandbox, row: Instance, *, tests_s: float = 60.0) -> str:
    """Verify a row by the official rule, in a fresh sandbox for each grading; return its base commit.

    Raises:
        EnvError: the tree without the fix does not score 0, the tree with the fix does not score 1, or a test
            that must keep passing fails in one of them.
    """
    trees = Trees(sources.archive(row.source), sources.tools()) if row.source else Trees()
    before = await grade.grade(sandbox, row, trees, _NO_FIX.encode(), tests_s=tests_s)
    if before.resolved or before.fixed > 0 or before.kept < 1:
        raise EnvError(
            f"{row.id}: without the fix: {before.outcome}, {before.fixed:.0%} fixed, {before.kept:.0%} kept; "
            "expected 0% and 100%"
        )
    head = require_success(
        await sandbox.exec(["git", "rev-parse", "HEAD"], env=GIT), f"{row.id}: naming its base commit"
    )
    after = await grade.grade(sandbox, row, trees, row.patch.encode(), tests_s=tests_s)
    if not after.resolved:
        raise EnvError(
            f"{row.id}: with the fix: {after.outcome}, {after.fixed:.0%} fixed, {after.kept:.0%} kept; "
            f"{after.detail}"
        )
    return head.stdout.decode().strip()


def completed(row: Instance, base: str, tests: Sequence[str]) -> Instance:
    """Return a row with the commit ``base`` and with the tests that must keep passing.

    These are all ``tests`` that do not fail with the bug.
    """
    failing = set(row.fail_to_pass)
    kept = tuple(test for test in tests if test not in failing)
    return dataclasses.replace(row, base_commit=base, environment_setup_commit=base, pass_to_pass=kept)


def summary(rows: Sequence[Instance]) -> Mapping[str, Mapping[str, int]]:
    """Return the numbers of rows, by field (``repo``, ``kind``, ``difficulty``) and value of the field."""
    counts: dict[str, dict[str, int]] = {}
    for name in ("repo", "kind", "difficulty"):
        values = [getattr(row, name) for row in rows]
        counts[name] = {value: values.count(value) for value in sorted(set(values))}
    return counts
