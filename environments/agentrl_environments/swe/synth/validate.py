"""Decides which candidates become tasks, by running the package's own tests in a sandbox.

A bug is *valid* if at least one test that passes without the bug fails with it, if the same tests fail in two
runs, and if most tests still pass. `CandidateOutcome` lists the other results, which are counted. A
package has one sandbox per worker; inside it, `runner` runs the suite in forked processes and restores the
files. The two runs use different processes and hash seeds, so that results which depend on the order of a set
are found.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any  # Any: the runner's answers are JSON

from agentrl.errors import SandboxError
from agentrl.sandbox import Sandbox, Sandboxes
from agentrl.types import SandboxSpec
from agentrl_environments.swe import logs, sources
from agentrl_environments.swe.synth.candidates import Candidate, CandidateOutcome, CheckedCandidate, Failure
from agentrl_environments.swe.synth.packages import Tree, UnusablePackage
from agentrl_environments.swe.workspace import tools_folder

SPEC = SandboxSpec(workdir="/testbed", writable=(tools_folder("/testbed"),), memory_mib=2048, disk_mib=512)
"""The sandbox in which suites run."""
MAX_FAILING = 30
"""Maximum number of tests that a bug may break. A bug that breaks more tests breaks the whole package."""
START_S = 0.5
"""Time that deadlines allow for starting Python and pytest, in seconds."""
SLACK = 3.0
"""Deadline of a suite with a bug, as a multiple of its time without bugs."""
_BATCH = 12
"""Number of candidates per worker that are checked in one call of the runner."""
_RUNNER = Path(__file__).with_name("runner.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteBaseline:
    """Measurements of a suite without any bug."""

    tests: tuple[str, ...]
    """Tests that pass in every run, and whose names can be read back from a log."""
    num_flaky: int
    wall_s: float
    modules: tuple[str, ...]
    """Names of the modules that the tests import and that do not belong to the repository."""

    @property
    def deadline_s(self) -> float:
        """Deadline of one run of the suite with a bug in the package, in seconds."""
        return SLACK * (START_S + self.wall_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteRun:
    """The results of one run of the suite.

    ``status`` is done, broken (pytest could not collect or run the tests), crashed or hung.
    """

    status: str
    tests: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[str, Failure] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    wall_s: float = 0.0
    cpu_s: float = 0.0


class Suite:
    """A package's tests in a sandbox. They can be run many times, each time with other files."""

    def __init__(self, sandbox: Sandbox, tree: Tree, tools: bytes) -> None:
        self.tree = tree
        self.texts = {path: tree.files[path].decode(errors="replace") for path in tree.modules}
        self._sandbox, self._tools = sandbox, tools
        self._unpacked = False

    async def run(
        self, jobs: Sequence[Mapping[str, object]], *, seed: int, modules: Sequence[str] = ()
    ) -> list[SuiteRun]:
        """Run the suite once per job. ``seed`` is Python's hash seed; ``modules`` are imported beforehand.

        A job has a ``timeout_s``, and may have ``files``: texts by path that replace files of the package.

        Raises:
            SandboxError: the sandbox broke, or the runner cannot run in it.
        """
        runs: list[SuiteRun] = []
        while len(runs) < len(jobs):
            left = [{"id": str(index), **job} for index, job in enumerate(jobs)][len(runs) :]
            found = await self._runs(left, seed, modules)
            # A job that ends the runner itself counts as crashed; the jobs after it are run again.
            runs += found or [SuiteRun(status="crashed")]
            if len(runs) < len(jobs):  # the runner could not restore the files
                await self._sandbox.reset()
                self._unpacked = False
        return runs

    async def _runs(
        self, jobs: Sequence[Mapping[str, Any]], seed: int, modules: Sequence[str]
    ) -> list[SuiteRun]:
        folder = self._sandbox.spec.workdir
        tools = tools_folder(folder)
        if not self._unpacked:
            await self._sandbox.put_tar(folder, sources.tar(self.tree.files))
            await self._sandbox.put_tar(tools, self._tools)
            self._unpacked = True
        request = {
            "folder": folder,
            "path": self.tree.root,
            "tools": [tools],
            "compiled": f"{tools}/.compiled",
            "memory_mib": 1024,
            "args": ["-o", "addopts=", *(f"--ignore={path}" for path in self.tree.package.ignore)],
            "preload": modules,
            "jobs": jobs,
        }
        limit = sum(float(job["timeout_s"]) + 1.0 for job in jobs) + 30.0
        ran = await self._sandbox.exec(
            ["python3", "-S", "-c", _RUNNER.read_text()],
            stdin=json.dumps(request).encode(),
            env={"PYTHONHASHSEED": str(seed), "LC_ALL": "C.UTF-8"},
            timeout_s=limit,
            max_output=256 << 20,
        )
        answers = [
            _run(json.loads(line)) for line in ran.stdout.splitlines(keepends=True) if line.endswith(b"\n")
        ]
        if ran.exit_code != 0 and not answers and len(jobs) == 1 and b"Traceback" in ran.stderr:
            raise SandboxError(
                f"the test runner of {self.tree.package.pin} cannot run in this sandbox: "
                f"{ran.stderr.decode(errors='replace')[-400:]}"
            )
        return answers


async def measure_baseline(suite: Suite, *, most_s: float = 120.0) -> SuiteBaseline:
    """Run a suite without any bug: three times, in two processes.

    Raises:
        UnusablePackage: the suite does not run, or tests fail.
    """
    runs = await suite.run([{"timeout_s": most_s, "first": True}, {"timeout_s": most_s}], seed=1)
    runs += await suite.run([{"timeout_s": most_s}], seed=2)
    pin = suite.tree.package.pin
    for run in runs:
        if run.status != "done":
            what = ", ".join(run.broken[:3]) or run.status
            raise UnusablePackage(
                "suite",
                f"the tests of {pin} do not run without any bug: {what}; "
                "ignore files, or choose another version",
            )
    passed = [{test for test, status in run.tests.items() if status == "PASSED"} for run in runs]
    always, ever = set.intersection(*passed), set.union(*passed)
    failing = {test for run in runs for test, status in run.tests.items() if status in ("FAILED", "ERROR")}
    if not always or len(failing) > len(always) / 20:
        raise UnusablePackage(
            "suite", f"{len(failing)} of {len(runs[0].tests)} tests of {pin} fail without any bug"
        )
    named = tuple(
        test
        for test in runs[0].tests
        if test in always and logs.read("pytest", f"PASSED {test}\n").statuses == {test: "PASSED"}
    )
    return SuiteBaseline(
        tests=named,
        num_flaky=len(ever - always),
        wall_s=min(run.wall_s for run in runs[1:]),
        modules=runs[0].modules,
    )


async def check(
    suite: Suite, baseline: SuiteBaseline, candidates: Sequence[Candidate]
) -> list[CheckedCandidate]:
    """Run the suite with each candidate, and return the candidates with their outcomes, in the same order."""
    jobs = [{"timeout_s": baseline.deadline_s, "files": one.apply(suite.texts)} for one in candidates]
    first = [
        _judge(baseline, one, run)
        for one, run in zip(candidates, await suite.run(jobs, seed=1, modules=baseline.modules), strict=True)
    ]
    again = [index for index, checked in enumerate(first) if checked.outcome is CandidateOutcome.VALID]
    runs = (
        await suite.run([jobs[index] for index in again], seed=2, modules=baseline.modules) if again else []
    )
    results = list(first)
    for index, run in zip(again, runs, strict=True):
        before, after = first[index], _judge(baseline, candidates[index], run)
        same = after.outcome is CandidateOutcome.VALID and after.fail_to_pass == before.fail_to_pass
        results[index] = CheckedCandidate(
            candidate=before.candidate,
            outcome=CandidateOutcome.VALID if same else CandidateOutcome.FLAKY,
            fail_to_pass=before.fail_to_pass,
            failures=after.failures,
            cpu_s=before.cpu_s + after.cpu_s,
        )
    return results


async def search(
    sandboxes: Sandboxes,
    tree: Tree,
    candidates: Iterable[Candidate],
    *,
    target: int,
    workers: int = 1,
    spec: SandboxSpec = SPEC,
    known: Mapping[str, CheckedCandidate] | None = None,
    on_baseline: Callable[[SuiteBaseline], None] = lambda _: None,
    on_checked: Callable[[CheckedCandidate], None] = lambda _: None,
) -> AsyncIterator[CheckedCandidate]:
    """Check a package's candidates in their order, and yield each result until ``target`` results are valid.

    ``known`` holds results of an earlier run by the candidate's id; they are not computed again.
    ``on_baseline`` is called with the measurements of the suite without any bug, and ``on_checked`` with
    every new result. The order and the results do not depend on ``workers``, the number of sandboxes.

    Raises:
        UnusablePackage: the suite does not pass without any bug.
        SandboxError: a sandbox broke.
    """
    waiting, known = iter(candidates), known or {}
    tools = await asyncio.to_thread(sources.tools)
    async with AsyncExitStack() as stack:
        suites = [
            Suite(await stack.enter_async_context(sandboxes.open(spec)), tree, tools) for _ in range(workers)
        ]
        baselines = await asyncio.gather(*(measure_baseline(suite) for suite in suites))
        baseline = baselines[0]
        on_baseline(baseline)
        found = 0
        while found < target and (chosen := list(islice(waiting, _BATCH * workers))):
            new = [one for one in chosen if one.id not in known]
            shares = [new[index::workers] for index in range(workers)]
            made = await asyncio.gather(
                *(check(suite, baseline, share) for suite, share in zip(suites, shares, strict=True))
            )
            results = {checked.candidate.id: checked for share in made for checked in share}
            for one in chosen:
                checked = results.get(one.id) or replace(known[one.id], candidate=one)
                if one.id in results:
                    on_checked(checked)
                yield checked
                found += checked.outcome is CandidateOutcome.VALID
                if found == target:
                    break


def _judge(baseline: SuiteBaseline, candidate: Candidate, run: SuiteRun) -> CheckedCandidate:
    """Return a candidate with its outcome, as one run of the suite shows it."""
    failing = tuple(test for test in baseline.tests if run.tests.get(test, "FAILED") in ("FAILED", "ERROR"))
    if run.status in ("broken", "crashed"):
        outcome = CandidateOutcome.DEAD
    elif run.status == "hung":
        outcome = CandidateOutcome.HUNG
    elif not failing:
        outcome = CandidateOutcome.SURVIVED
    elif len(failing) > min(MAX_FAILING, len(baseline.tests) / 2):
        outcome = CandidateOutcome.BROAD
    else:
        outcome = CandidateOutcome.VALID
    if outcome is not CandidateOutcome.VALID:
        return CheckedCandidate(candidate=candidate, outcome=outcome, cpu_s=run.cpu_s)
    failures = {test: run.failures[test] for test in failing if test in run.failures}
    return CheckedCandidate(
        candidate=candidate, outcome=outcome, fail_to_pass=failing, failures=failures, cpu_s=run.cpu_s
    )


def _run(answer: Mapping[str, Any]) -> SuiteRun:
    return SuiteRun(
        status=answer["status"],
        tests=answer["tests"],
        failures=read_failures(answer["failures"]),
        broken=tuple(answer.get("broken", ())),
        modules=tuple(answer.get("modules", ())),
        wall_s=answer["wall_s"],
        cpu_s=answer["cpu_s"],
    )


def read_failures(found: Mapping[str, Any]) -> dict[str, Failure]:
    """Return failures, by test, from their JSON form."""
    return {
        test: Failure(
            type=one["type"],
            message=one["message"],
            frames=tuple((path, line, name) for path, line, name in one["frames"]),
        )
        for test, one in found.items()
    }
