"""Which candidates are tasks: the package's own tests decide, in a sandbox.

A bug is *valid* when at least one test that passes without it fails with it, in two runs alike, while most go on passing; what else it
can be is an `Outcome`, and counted. One sandbox is kept for each package; `runner`, inside it, runs the suite in forks and puts the files
back. The two runs are made in different processes with different hash seeds, so that what depends on the order of a set is found out.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any  # Any: what the runner answers, before it is read

from agentrl.errors import SandboxError
from agentrl.sandbox import Sandbox, Sandboxes
from agentrl.types import SandboxSpec
from agentrl_environments.swe import logs, sources
from agentrl_environments.swe.synth.mutate import Candidate
from agentrl_environments.swe.synth.packages import Refused, Tree
from agentrl_environments.swe.workspace import tools_folder

SPEC = SandboxSpec(workdir="/testbed", writable=(tools_folder("/testbed"),), memory_mib=2048, disk_mib=512)
"""The sandbox that suites run in."""
MAX_FAILING = 30
"""Most tests that a bug may break: more is a broken package, not a bug to find."""
START_S = 0.5
"""What starting Python and pytest takes, as far as deadlines go."""
SLACK = 3.0
"""A suite may take so many times as long with a bug as without."""
_BATCH = 12
_RUNNER = Path(__file__).with_name("runner.py")


class Outcome(StrEnum):
    """What became of a candidate."""

    VALID = "valid"
    SURVIVED = "no test fails"
    BROAD = "too many tests fail"
    DEAD = "the suite does not run"
    HUNG = "the suite does not end"
    FLAKY = "two runs differ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a test failed. ``frames``: file, line and function of the traceback, as far as they are in the repository, outermost first."""

    type: str
    message: str
    frames: tuple[tuple[str, int, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A suite without any bug."""

    tests: tuple[str, ...]
    """Tests that pass in every run, and whose names survive a log."""
    num_flaky: int
    wall_s: float
    modules: tuple[str, ...]
    """What the tests import that is not the repository's."""

    @property
    def deadline_s(self) -> float:
        """How long the suite may take with a bug in it."""
        return SLACK * (START_S + self.wall_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A candidate and what became of it. ``cpu_s``: processor time of its runs."""

    candidate: Candidate
    outcome: Outcome
    fail_to_pass: tuple[str, ...] = ()
    failures: Mapping[str, Failure] = field(default_factory=dict)
    cpu_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run of the suite: a status for each test. ``status``: done, broken (not collected), crashed or hung."""

    status: str
    tests: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[str, Failure] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    wall_s: float = 0.0
    cpu_s: float = 0.0


class Suite:
    """A package's tests in a sandbox, run as often as wanted with other files."""

    def __init__(self, sandbox: Sandbox, tree: Tree, tools: bytes) -> None:
        self.tree = tree
        self.texts = {path: tree.files[path].decode(errors="replace") for path in tree.modules}
        self._sandbox, self._tools = sandbox, tools
        self._laid = False

    async def run(
        self, jobs: Sequence[Mapping[str, object]], *, seed: int, modules: Sequence[str] = ()
    ) -> list[Run]:
        """Run the suite once for each job (``files``: what is in place of the package's own; ``timeout_s``); ``seed`` is of hashes.

        Raises:
            SandboxError: the sandbox broke twice at the same job.
        """
        runs: list[Run] = []
        while len(runs) < len(jobs):
            left = [{"id": str(index), **job} for index, job in enumerate(jobs)][len(runs) :]
            found = await self._runs(left, seed, modules)
            runs += found or [
                Run(status="crashed")
            ]  # what ends the runner itself ends no more than its own job
            if len(runs) < len(jobs):  # it had no time to put the files back
                await self._sandbox.reset()
                self._laid = False
        return runs

    async def _runs(self, jobs: Sequence[Mapping[str, Any]], seed: int, modules: Sequence[str]) -> list[Run]:
        folder = self._sandbox.spec.workdir
        tools = tools_folder(folder)
        if not self._laid:
            await self._sandbox.put_tar(folder, sources.tar(self.tree.files))
            await self._sandbox.put_tar(tools, self._tools)
            self._laid = True
        request = {
            **{
                "folder": folder,
                "path": self.tree.root,
                "tools": [tools],
                "compiled": f"{tools}/.compiled",
                "memory_mib": 1024,
            },
            **{
                "args": ["-o", "addopts=", *(f"--ignore={path}" for path in self.tree.package.ignore)],
                "preload": modules,
                "jobs": jobs,
            },
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
                f"the runner of {self.tree.package.pin} does not run here: {ran.stderr.decode(errors='replace')[-400:]}"
            )
        return answers


async def baseline(suite: Suite, *, most_s: float = 120.0) -> Baseline:
    """Run a suite three times, in two processes, without any bug.

    Raises:
        Refused: it does not run, or does not pass.
    """
    runs = await suite.run([{"timeout_s": most_s, "first": True}, {"timeout_s": most_s}], seed=1)
    runs += await suite.run([{"timeout_s": most_s}], seed=2)
    pin = suite.tree.package.pin
    for run in runs:
        if run.status != "done":
            what = ", ".join(run.broken[:3]) or run.status
            raise Refused(
                "suite",
                f"the tests of {pin} do not run as they are: {what}; leave files out, or choose another version",
            )
    passed = [{test for test, status in run.tests.items() if status == "PASSED"} for run in runs]
    always, ever = set.intersection(*passed), set.union(*passed)
    failing = {test for run in runs for test, status in run.tests.items() if status in ("FAILED", "ERROR")}
    if not always or len(failing) > len(always) / 20:
        raise Refused("suite", f"{len(failing)} of {len(runs[0].tests)} tests of {pin} fail as they are")
    named = tuple(
        test
        for test in runs[0].tests
        if test in always and logs.read("pytest", f"PASSED {test}\n").statuses == {test: "PASSED"}
    )
    return Baseline(
        tests=named,
        num_flaky=len(ever - always),
        wall_s=min(run.wall_s for run in runs[1:]),
        modules=runs[0].modules,
    )


async def check(suite: Suite, clean: Baseline, candidates: Sequence[Candidate]) -> list[Finding]:
    """Find out what becomes of candidates, in their order."""
    jobs = [{"timeout_s": clean.deadline_s, "files": one.apply(suite.texts)} for one in candidates]
    first = [
        _judge(clean, one, run)
        for one, run in zip(candidates, await suite.run(jobs, seed=1, modules=clean.modules), strict=True)
    ]
    again = [index for index, finding in enumerate(first) if finding.outcome is Outcome.VALID]
    runs = await suite.run([jobs[index] for index in again], seed=2, modules=clean.modules) if again else []
    findings = list(first)
    for index, run in zip(again, runs, strict=True):
        before, after = first[index], _judge(clean, candidates[index], run)
        same = after.outcome is Outcome.VALID and after.fail_to_pass == before.fail_to_pass
        findings[index] = Finding(
            candidate=before.candidate,
            outcome=Outcome.VALID if same else Outcome.FLAKY,
            fail_to_pass=before.fail_to_pass,
            failures=after.failures,
            cpu_s=before.cpu_s + after.cpu_s,
        )
    return findings


async def search(
    sandboxes: Sandboxes,
    tree: Tree,
    candidates: Iterable[Candidate],
    *,
    target: int,
    workers: int = 1,
    spec: SandboxSpec = SPEC,
    known: Mapping[str, Finding] | None = None,
    on_baseline: Callable[[Baseline], None] = lambda _: None,
    on_finding: Callable[[Finding], None] = lambda _: None,
) -> AsyncIterator[Finding]:
    """Yield what becomes of a package's candidates, in their order, until ``target`` of them are valid.

    ``known``: findings of an earlier run by the candidate's id, which are not made again; ``on_finding`` is called with those that
    are. The order and the result do not depend on ``workers``.

    Raises:
        Refused: the suite does not pass without any bug.
        SandboxError: a sandbox broke and so did its replacement.
    """
    waiting, known = iter(candidates), known or {}
    tools = await asyncio.to_thread(sources.tools)
    async with AsyncExitStack() as stack:
        suites = [
            Suite(await stack.enter_async_context(sandboxes.open(spec)), tree, tools) for _ in range(workers)
        ]
        cleans = await asyncio.gather(*(baseline(suite) for suite in suites))
        clean = cleans[0]
        on_baseline(clean)
        found = 0
        while found < target and (chosen := list(islice(waiting, _BATCH * workers))):
            new = [one for one in chosen if one.id not in known]
            shares = [new[index::workers] for index in range(workers)]
            made = await asyncio.gather(
                *(check(suite, clean, share) for suite, share in zip(suites, shares, strict=True))
            )
            findings = {finding.candidate.id: finding for share in made for finding in share}
            for one in chosen:
                finding = findings.get(one.id) or replace(known[one.id], candidate=one)
                if one.id in findings:
                    on_finding(finding)
                yield finding
                found += finding.outcome is Outcome.VALID
                if found == target:
                    break


def _judge(clean: Baseline, candidate: Candidate, run: Run) -> Finding:
    """Return what one run says of a candidate."""
    failing = tuple(test for test in clean.tests if run.tests.get(test, "FAILED") in ("FAILED", "ERROR"))
    if run.status in ("broken", "crashed"):
        outcome = Outcome.DEAD
    elif run.status == "hung":
        outcome = Outcome.HUNG
    elif not failing:
        outcome = Outcome.SURVIVED
    elif len(failing) > min(MAX_FAILING, len(clean.tests) / 2):
        outcome = Outcome.BROAD
    else:
        outcome = Outcome.VALID
    if outcome is not Outcome.VALID:
        return Finding(candidate=candidate, outcome=outcome, cpu_s=run.cpu_s)
    failures = {test: run.failures[test] for test in failing if test in run.failures}
    return Finding(
        candidate=candidate, outcome=outcome, fail_to_pass=failing, failures=failures, cpu_s=run.cpu_s
    )


def _run(answer: Mapping[str, Any]) -> Run:
    return Run(
        status=answer["status"],
        tests=answer["tests"],
        failures=read_failures(answer["failures"]),
        broken=tuple(answer.get("broken", ())),
        modules=tuple(answer.get("modules", ())),
        wall_s=answer["wall_s"],
        cpu_s=answer["cpu_s"],
    )


def read_failures(found: Mapping[str, Any]) -> dict[str, Failure]:
    """Return failures from their JSON form."""
    return {
        test: Failure(
            type=one["type"],
            message=one["message"],
            frames=tuple((path, line, name) for path, line, name in one["frames"]),
        )
        for test, one in found.items()
    }
