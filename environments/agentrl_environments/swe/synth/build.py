"""Rows from findings: the tree without what would tell, the patches, the statement; and a set of them that is balanced.

A row's tree holds one bug and lacks the test functions that it breaks; the test patch brings them back for grading. The base is a single
commit, and rows name it by its hash. A row belongs to a split by the hash of the function that was broken, held-out packages to none of
the usual ones; a combined bug is made of functions of one split.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from agentrl.errors import EnvError
from agentrl.sandbox import Sandbox
from agentrl.types import seed_of
from agentrl_environments.swe import diffs, grade, sources
from agentrl_environments.swe.rows import Instance
from agentrl_environments.swe.synth.mutate import REMOVED, Candidate
from agentrl_environments.swe.synth.packages import Tree
from agentrl_environments.swe.synth.statements import statement, without
from agentrl_environments.swe.synth.validate import Finding, Outcome
from agentrl_environments.swe.workspace import GIT, Trees, must

Difficulty = Literal["easy", "medium", "hard"]
DATE = "2000-01-01T00:00:00Z"
"""Of every row: that of its base commit."""
_UNTOUCHED = "--- /dev/null\n+++ b/agentrl-untouched.txt\n@@ -0,0 +1 @@\n+a patch that mends nothing\n"


def difficulty(finding: Finding) -> Difficulty:
    """Return how hard a bug should be to find: a count of what makes it so, 0 or 1 easy, 2 medium, more hard.

    One point each: no traceback of a failing test passes through the function; at most two tests fail; the function has a cyclomatic
    complexity of 8 or more; there are several bugs, or a whole function is to be written.
    """
    candidate = finding.candidate
    frames = {(path, line) for failure in finding.failures.values() for path, line, _ in failure.frames}
    seen = any(
        path == there and start <= line <= stop
        for path, line in frames
        for there, start, stop in candidate.spans
    )
    points = (not seen) + (len(finding.fail_to_pass) <= 2) + (candidate.complexity >= 8)
    points += len(candidate.edits) > 1 or candidate.kind == REMOVED
    return "easy" if points <= 1 else "medium" if points == 2 else "hard"


def site(candidate: Candidate) -> str:
    """Return what instances that teach the same share: the broken function."""
    return candidate.functions[0]


def instance(tree: Tree, finding: Finding) -> Instance:
    """Return the task of a valid finding; its base commit is not known yet."""
    candidate = finding.candidate
    texts = {
        path: tree.files[path].decode()
        for path in tree.modules
        if path in {edit.path for edit in candidate.edits}
    }
    fix = candidate.fix(texts)
    tests = {
        path: data.decode()
        for path, data in tree.files.items()
        if path in {test.partition("::")[0] for test in finding.fail_to_pass}
    }
    broken: dict[str, list[list[str]]] = defaultdict(list)
    for test in finding.fail_to_pass:
        path, *names = test.partition("[")[0].split("::")
        if path in tests and names:
            broken[path].append(names)
    test_patch = "".join(
        diffs.unified(path, without(tests[path], names), tests[path])
        for path, names in sorted(broken.items())
    )
    name = tree.package.name
    return Instance(
        id=f"agentrl__{name}-{candidate.id}",
        repo=name,
        version=tree.package.version,
        problem_statement=statement(name, finding, tests, fix, candidate.apply(texts)),
        patch=fix,
        test_patch=test_patch,
        fail_to_pass=finding.fail_to_pass,
        source=tree.source,
        solved=True,
        command=tree.command,
        parser="pytest",
        site=site(candidate),
        kind=candidate.kind,
        difficulty=difficulty(finding),
        created_at=DATE,
    )


def narrowed(row: Instance) -> Instance:
    """Return a row that is graded by the test files alone that its bug breaks: faster, and blind to what else a patch breaks.

    The row itself where these files would leave fewer tests to keep than to mend.
    """
    files = sorted({test.partition("::")[0] for test in row.fail_to_pass})
    kept = tuple(test for test in row.pass_to_pass if test.partition("::")[0] in files)
    if len(kept) < len(row.fail_to_pass):
        return row
    return dataclasses.replace(
        row, command=" ".join([row.command, *map(shlex.quote, files)]), pass_to_pass=kept
    )


def choose(findings: Sequence[Finding], number: int, *, seed: int) -> list[Finding]:
    """Return up to ``number`` valid findings, as even as can be over kinds, then over difficulties, then over functions."""
    groups: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        if finding.outcome is Outcome.VALID:
            groups[finding.candidate.kind].append(finding)
    queues = [_even(groups[kind], seed) for kind in sorted(groups, key=lambda kind: seed_of(seed, kind))]
    chosen: list[Finding] = []
    while queues and len(chosen) < number:
        for queue in list(queues):
            found = next(queue, None)
            if found is None:
                queues.remove(queue)
            elif len(chosen) < number:
                chosen.append(found)
    return chosen


def _even(findings: Sequence[Finding], seed: int) -> Iterator[Finding]:
    """Yield findings of one kind, difficulties in turn, functions that were not used yet first."""
    left = sorted(findings, key=lambda finding: seed_of(seed, finding.candidate.id))
    used: dict[str, int] = defaultdict(int)
    turns: dict[str, int] = defaultdict(int)
    while left:
        best = min(left, key=lambda finding: (turns[difficulty(finding)], used[site(finding.candidate)]))
        left.remove(best)
        turns[difficulty(best)] += 1
        used[site(best.candidate)] += 1
        yield best


async def verify(sandbox: Sandbox, row: Instance, *, tests_s: float = 60.0) -> str:
    """Prove a row by the official rule, in a sandbox made anew each time; return its base commit.

    Raises:
        EnvError: an untouched tree does not score 0, the fix does not score 1, or the rest does not pass before as after.
    """
    trees = Trees(sources.archive(row.source), sources.tools()) if row.source else Trees()
    before = await grade.grade(sandbox, row, trees, _UNTOUCHED.encode(), tests_s=tests_s)
    if before.resolved or before.fixed > 0 or before.kept < 1:
        raise EnvError(
            f"{row.id}: without the fix: {before.outcome}, {before.fixed:.0%} fixed, {before.kept:.0%} kept; expected 0% and 100%"
        )
    head = must(
        await sandbox.exec(["git", "rev-parse", "HEAD"], env=GIT), f"{row.id}: naming its base commit"
    )
    after = await grade.grade(sandbox, row, trees, row.patch.encode(), tests_s=tests_s)
    if not after.resolved:
        raise EnvError(
            f"{row.id}: with the fix: {after.outcome}, {after.fixed:.0%} fixed, {after.kept:.0%} kept; {after.detail}"
        )
    return head.stdout.decode().strip()


def completed(row: Instance, base: str, tests: Sequence[str]) -> Instance:
    """Return a row with its base commit, and with the tests that must go on passing."""
    failing = set(row.fail_to_pass)
    kept = tuple(test for test in tests if test not in failing)
    return dataclasses.replace(row, base_commit=base, environment_setup_commit=base, pass_to_pass=kept)


def summary(rows: Sequence[Instance]) -> Mapping[str, Mapping[str, int]]:
    """Return how many rows there are of each package, kind and difficulty."""
    counts: dict[str, dict[str, int]] = {}
    for name in ("repo", "kind", "difficulty"):
        values = [getattr(row, name) for row in rows]
        counts[name] = {value: values.count(value) for value in sorted(set(values))}
    return counts
