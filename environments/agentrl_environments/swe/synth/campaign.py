"""A campaign: packages in, verified rows out. What was found is kept in a journal, so that a campaign that was stopped goes on.

`X` holds one line for the suite and one for each candidate that was run, ``proofs.jsonl`` one for each row that was
verified. A candidate is known again by its id, so more rows, other kinds or another seed use what is there; another archive or another
suite does not.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any  # Any: lines of a journal, before they are read

from agentrl.errors import EnvError, SandboxError
from agentrl.sandbox import Sandboxes
from agentrl.types import SandboxSpec
from agentrl_environments.swe import Swe
from agentrl_environments.swe.rows import Instance
from agentrl_environments.swe.synth import build, mutate, validate
from agentrl_environments.swe.synth.mutate import COMBINED, Candidate
from agentrl_environments.swe.synth.packages import Package, Refused, Tree, fetch
from agentrl_environments.swe.synth.validate import Baseline, Finding, Outcome

COMBINED_SHARE = 0.15
"""Share of the rows that have several bugs at once."""
ATTEMPTS = 4
"""Times that a package is begun whose sandboxes break."""
_SURPLUS = 1.4
"""Valid findings to look for, for each row: the surplus is what balance is made of."""
_NOBODY = Candidate(kind="", edits=(), functions=(), spans=(), complexity=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to make."""

    packages: tuple[Package, ...]
    per_package: int = 40
    seed: int = 0
    kinds: tuple[str, ...] = ()
    """Kinds of single bugs; empty: all."""
    max_failing: int = validate.MAX_FAILING
    """Most tests that the bug of a row may break."""
    narrow: bool = False
    """Whether rows are graded by the test files alone that their bugs break."""
    workers: int = 2
    spec: SandboxSpec = validate.SPEC


@dataclass(slots=True)
class Report:
    """What came of it. Nothing is silent: every candidate, package and row that fell out is counted under its reason."""

    rows: list[Instance] = field(default_factory=list)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    """By package: how many candidates came to what."""
    refused: dict[str, Refused] = field(default_factory=dict)
    """Packages that no task could be made of."""
    unverified: dict[str, str] = field(default_factory=dict)
    """Rows that did not stand the official rule, and why."""
    cpu_s: float = 0.0
    """Processor time of the suites' runs."""


Progress = Callable[[str, int, int], None]


async def run(
    sandboxes: Sandboxes, plan: Plan, folder: Path, *, progress: Progress = lambda *_: None
) -> Report:
    """Make and verify rows of every package of a plan; go on where ``folder`` holds an earlier one."""
    report = Report()
    for package in plan.packages:
        for attempt in range(ATTEMPTS):
            try:
                await _package(sandboxes, package, plan, folder, report, progress)
                break
            except Refused as problem:
                report.refused[package.name] = problem
                break
            except SandboxError:  # what was found until now is in the journal
                if attempt == ATTEMPTS - 1:
                    raise
    return report


async def _package(
    sandboxes: Sandboxes, package: Package, plan: Plan, folder: Path, report: Report, progress: Progress
) -> None:
    """Add the rows of one package to the report."""
    tree = await asyncio.to_thread(fetch, package)
    clean, findings = await _search(sandboxes, tree, plan, Journal(folder, tree), progress)
    rows = [
        build.completed(build.instance(tree, finding), "", clean.tests)
        for finding in _balanced(findings, plan)
    ]
    rows = [build.narrowed(row) for row in rows] if plan.narrow else rows
    proofs = Proofs(folder)
    await _verify(sandboxes, rows, plan, proofs, progress)
    report.outcomes[package.name] = Counter(finding.outcome for finding in findings)
    report.cpu_s += sum(finding.cpu_s for finding in findings)
    for row in rows:
        proof = proofs.known[row.digest]
        if "base" in proof:
            report.rows.append(build.completed(row, proof["base"], row.pass_to_pass))
        else:
            report.unverified[row.id] = proof["problem"]


async def _search(
    sandboxes: Sandboxes, tree: Tree, plan: Plan, journal: Journal, progress: Progress
) -> tuple[Baseline, list[Finding]]:
    """Find enough valid bugs of one package: single ones, then combinations of those."""
    cleans: list[Baseline] = []
    known = journal.read()

    def met(clean: Baseline) -> None:
        cleans[:] = [clean]
        if journal.begin(clean):
            known.clear()

    async def collect(
        candidates: Any, target: int, what: str
    ) -> list[Finding]:  # Any: any iterable of candidates
        findings: list[Finding] = []
        found = validate.search(
            sandboxes,
            tree,
            candidates,
            target=target,
            workers=plan.workers,
            spec=plan.spec,
            known=known,
            on_baseline=met,
            on_finding=journal.write,
        )
        async for finding in found:
            findings.append(finding)
            valid = sum(one.outcome is Outcome.VALID for one in findings)
            progress(f"{what} of {tree.package.pin}", valid, target)
        return findings

    target = -(-int(plan.per_package * _SURPLUS * 100) // 100)
    singles = await collect(mutate.candidates(tree, seed=plan.seed, kinds=plan.kinds), target, "bugs")
    valid = [finding.candidate for finding in singles if finding.outcome is Outcome.VALID]
    by_split: dict[str, list[Candidate]] = {}
    for one in valid:
        by_split.setdefault(_split(tree, one), []).append(one)
    pairs = [
        pair for split in sorted(by_split) for pair in mutate.combinations(by_split[split], seed=plan.seed)
    ]
    wanted = int(plan.per_package * COMBINED_SHARE)
    combined = await collect(pairs, wanted, "combined bugs") if wanted and pairs else []
    return cleans[0], singles + combined


def _split(tree: Tree, candidate: Candidate) -> str:
    """Return the split that the environment will place a bug in."""
    row = Instance(id="", repo=tree.package.name, problem_statement="", patch="", site=build.site(candidate))
    return Swe().split_of(row)


def _balanced(findings: Sequence[Finding], plan: Plan) -> list[Finding]:
    findings = [finding for finding in findings if len(finding.fail_to_pass) <= plan.max_failing]
    combined = [finding for finding in findings if finding.candidate.kind == COMBINED]
    singles = [finding for finding in findings if finding.candidate.kind != COMBINED]
    some = build.choose(combined, int(plan.per_package * COMBINED_SHARE), seed=plan.seed)
    return build.choose(singles, plan.per_package - len(some), seed=plan.seed) + some


async def _verify(
    sandboxes: Sandboxes, rows: Sequence[Instance], plan: Plan, proofs: Proofs, progress: Progress
) -> None:
    """Prove every row that is not proved yet by the official rule."""
    queue = [row for row in reversed(rows) if row.digest not in proofs.known]

    async def work() -> None:
        while queue:
            async with sandboxes.open(plan.spec) as sandbox:
                while queue:
                    row = queue.pop()
                    try:
                        proofs.write(row, base=await build.verify(sandbox, row))
                    except EnvError as problem:
                        proofs.write(row, problem=str(problem))
                    progress(f"verified rows of {row.repo}", len(rows) - len(queue), len(rows))

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(plan.workers, len(queue))):
                tasks.create_task(work())

    try:
        await all_of_them()
    except ExceptionGroup as group:  # one sandbox that broke says it for all
        raise group.exceptions[0] from group


class Proofs:
    """Which rows were verified, by their content: what was proved once is not proved again."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "proofs.jsonl"
        lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        self.known: dict[str, dict[str, str]] = {}
        for line in lines:
            if line.endswith("\n") and line.startswith("{"):
                proof = json.loads(line)
                self.known[proof.pop("digest")] = proof

    def write(self, row: Instance, **proof: str) -> None:
        """Add a row's ``base`` commit, or its ``problem``."""
        self.known[row.digest] = proof
        with self._path.open("a") as file:
            file.write(json.dumps({"digest": row.digest, **proof}) + "\n")


class Journal:
    """What was found about one package, line by line."""

    def __init__(self, folder: Path, tree: Tree) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{tree.package.name}-{tree.package.version}.jsonl"
        self._head: dict[str, object] = {"sha256": tree.source.sha256}

    def read(self) -> dict[str, Finding]:
        """Return what is known, by candidate; a last line that was cut off is not."""
        known: dict[str, Finding] = {}
        lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        for line in lines[1:]:
            if line.endswith("\n"):
                known.update([_finding(json.loads(line))])
        return known

    def begin(self, clean: Baseline) -> bool:
        """Start anew where the journal is of another archive or suite; return whether that was so."""
        head = json.dumps(self._head | {"tests": clean.tests}) + "\n"
        text = self._path.read_text() if self._path.exists() else ""
        if text.startswith(head):
            if not text.endswith("\n"):  # whoever wrote it was killed
                self._path.write_text(text[: text.rindex("\n") + 1])
            return False
        self._path.write_text(head)
        return True

    def write(self, finding: Finding) -> None:
        """Add a finding."""
        failures = {test: asdict(failure) for test, failure in finding.failures.items()}
        line = {"id": finding.candidate.id, "outcome": finding.outcome, "cpu_s": finding.cpu_s}
        with self._path.open("a") as file:
            file.write(json.dumps(line | {"fail_to_pass": finding.fail_to_pass, "failures": failures}) + "\n")


def _finding(line: Mapping[str, Any]) -> tuple[str, Finding]:
    finding = Finding(
        candidate=_NOBODY,
        outcome=Outcome(line["outcome"]),
        fail_to_pass=tuple(line["fail_to_pass"]),
        failures=validate.read_failures(line["failures"]),
        cpu_s=line["cpu_s"],
    )
    return line["id"], finding
