"""A campaign makes verified rows from packages. Its results are kept in a journal, so that it can be resumed.

``<package>-<version>.jsonl`` is the journal of a package: it holds one line for the test suite and one for
each candidate that was run. ``proofs.jsonl`` holds one line for each row that was verified. Candidates are
identified by their content, so a campaign for more rows, other kinds or another seed reuses earlier results.
If a package's archive or test suite has changed, its journal is started anew.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any  # Any: lines of a journal are JSON

from agentrl.env import Progress
from agentrl.errors import EnvError, SandboxError
from agentrl.sandbox import Sandboxes
from agentrl.types import SandboxSpec
from agentrl_environments.swe import splits
from agentrl_environments.swe.rows import Instance
from agentrl_environments.swe.synth import build, mutate, validate
from agentrl_environments.swe.synth.candidates import COMBINED, Candidate, CandidateOutcome, CheckedCandidate
from agentrl_environments.swe.synth.packages import PinnedPackage, Tree, UnusablePackage, fetch
from agentrl_environments.swe.synth.validate import SuiteBaseline

COMBINED_SHARE = 0.15
"""Share of a package's rows that have several bugs at once."""
ATTEMPTS = 4
"""Maximum number of attempts at a package; it is attempted again when a sandbox breaks."""
_SURPLUS = 1.4
"""Number of valid candidates to find per row that is wanted. The rows are chosen from these candidates so
that kinds and difficulties are balanced."""
_UNSPECIFIED = Candidate(kind="", edits=(), functions=(), spans=(), complexity=0)
"""Stands for the candidate of a result read from a journal, which holds only the candidate's id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignPlan:
    """What a campaign makes: packages, number and kinds of rows, and the resources to use."""

    packages: tuple[PinnedPackage, ...]
    per_package: int = 40
    """Number of rows to make per package."""
    seed: int = 0
    kinds: tuple[str, ...] = ()
    """Names of the kinds of single bugs to make. If there are none, all kinds are made."""
    max_failing: int = validate.MAX_FAILING
    """Maximum number of tests that the bug of a row may break."""
    narrow: bool = False
    """Whether rows are graded only by the test files that their bugs break."""
    workers: int = 2
    """Number of sandboxes that are open at the same time."""
    spec: SandboxSpec = validate.SPEC


@dataclass(slots=True)
class CampaignReport:
    """The results of a campaign: the rows, and what was left out, with the reason."""

    rows: list[Instance] = field(default_factory=list)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    """Number of candidates with each outcome, by the package's name."""
    unusable: dict[str, UnusablePackage] = field(default_factory=dict)
    """Reason why no task can be made from a package, by the package's name."""
    unverified: dict[str, str] = field(default_factory=dict)
    """Reason why a row failed verification by the official rule, by the row's id."""
    cpu_s: float = 0.0
    """Processor time of all runs of test suites with a candidate, in seconds."""


async def run(
    sandboxes: Sandboxes, plan: CampaignPlan, folder: Path, *, progress: Progress = lambda *_: None
) -> CampaignReport:
    """Make and verify rows of every package of a plan; resume an earlier campaign in ``folder``."""
    report = CampaignReport()
    for package in plan.packages:
        for attempt in range(ATTEMPTS):
            try:
                await _package(sandboxes, package, plan, folder, report, progress)
                break
            except UnusablePackage as problem:
                report.unusable[package.name] = problem
                break
            except SandboxError:  # the results so far are in the journal
                if attempt == ATTEMPTS - 1:
                    raise
    return report


async def _package(
    sandboxes: Sandboxes,
    package: PinnedPackage,
    plan: CampaignPlan,
    folder: Path,
    report: CampaignReport,
    progress: Progress,
) -> None:
    """Make and verify the rows of one package, and add them to the report."""
    tree = await asyncio.to_thread(fetch, package)
    baseline, results = await _search(sandboxes, tree, plan, Journal(folder, tree), progress)
    rows = [
        build.completed(build.instance(tree, checked), "", baseline.tests)
        for checked in _balanced(results, plan)
    ]
    rows = [build.narrowed(row) for row in rows] if plan.narrow else rows
    proofs = Proofs(folder)
    await _verify(sandboxes, rows, plan, proofs, progress)
    report.outcomes[package.name] = Counter(checked.outcome for checked in results)
    report.cpu_s += sum(checked.cpu_s for checked in results)
    for row in rows:
        proof = proofs.known[row.digest]
        if "base" in proof:
            report.rows.append(build.completed(row, proof["base"], row.pass_to_pass))
        else:
            report.unverified[row.id] = proof["problem"]


async def _search(
    sandboxes: Sandboxes, tree: Tree, plan: CampaignPlan, journal: Journal, progress: Progress
) -> tuple[SuiteBaseline, list[CheckedCandidate]]:
    """Find enough valid bugs of one package: first single bugs, then combinations of valid single bugs.

    Return the measurements of the suite, and all candidates that were run.
    """
    baselines: list[SuiteBaseline] = []
    known = journal.read()

    def on_baseline(baseline: SuiteBaseline) -> None:
        baselines[:] = [baseline]
        if journal.begin(baseline):
            known.clear()

    async def collect(candidates: Iterable[Candidate], target: int, what: str) -> list[CheckedCandidate]:
        results: list[CheckedCandidate] = []
        search = validate.search(
            sandboxes,
            tree,
            candidates,
            target=target,
            workers=plan.workers,
            spec=plan.spec,
            known=known,
            on_baseline=on_baseline,
            on_checked=journal.write,
        )
        async for checked in search:
            results.append(checked)
            valid = sum(one.outcome is CandidateOutcome.VALID for one in results)
            progress(f"{what} of {tree.package.pin}", valid, target)
        return results

    target = math.ceil(int(plan.per_package * _SURPLUS * 100) / 100)
    singles = await collect(mutate.candidates(tree, seed=plan.seed, kinds=plan.kinds), target, "bugs")
    valid = [checked.candidate for checked in singles if checked.outcome is CandidateOutcome.VALID]
    by_split: dict[str, list[Candidate]] = {}
    for one in valid:
        by_split.setdefault(_split(tree, one), []).append(one)
    pairs = [
        pair for split in sorted(by_split) for pair in mutate.combinations(by_split[split], seed=plan.seed)
    ]
    wanted = int(plan.per_package * COMBINED_SHARE)
    combined = await collect(pairs, wanted, "combined bugs") if wanted and pairs else []
    return baselines[0], singles + combined


def _split(tree: Tree, candidate: Candidate) -> str:
    """Return the split to which a task with this bug will belong."""
    site = build.broken_function(candidate)
    return splits.split_of(Instance(id="", repo=tree.package.name, problem_statement="", patch="", site=site))


def _balanced(results: Sequence[CheckedCandidate], plan: CampaignPlan) -> list[CheckedCandidate]:
    """Choose the candidates that become rows, balanced over kinds and difficulties."""
    results = [checked for checked in results if len(checked.fail_to_pass) <= plan.max_failing]
    combined = [checked for checked in results if checked.candidate.kind == COMBINED]
    singles = [checked for checked in results if checked.candidate.kind != COMBINED]
    some = build.choose(combined, int(plan.per_package * COMBINED_SHARE), seed=plan.seed)
    return build.choose(singles, plan.per_package - len(some), seed=plan.seed) + some


async def _verify(
    sandboxes: Sandboxes, rows: Sequence[Instance], plan: CampaignPlan, proofs: Proofs, progress: Progress
) -> None:
    """Verify by the official rule those rows that have no entry in ``proofs`` yet."""
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

    async def work_in_parallel() -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(plan.workers, len(queue))):
                tasks.create_task(work())

    try:
        await work_in_parallel()
    except ExceptionGroup as group:  # report the first sandbox that broke
        raise group.exceptions[0] from group


class Proofs:
    """The file ``proofs.jsonl``: what verification found, by the row's content hash.

    It keeps any row from being verified twice.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "proofs.jsonl"
        self.known: dict[str, dict[str, str]] = {}
        for line in _complete_lines(self._path):
            if line.startswith("{"):
                proof = json.loads(line)
                self.known[proof.pop("digest")] = proof

    def write(self, row: Instance, **proof: str) -> None:
        """Add what verification found: the row's ``base`` commit, or the ``problem`` if the row failed."""
        self.known[row.digest] = proof
        with self._path.open("a") as file:
            file.write(json.dumps({"digest": row.digest, **proof}) + "\n")


class Journal:
    """The journal of one package: a file with a line for the suite, then one for each candidate's result."""

    def __init__(self, folder: Path, tree: Tree) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{tree.package.name}-{tree.package.version}.jsonl"
        self._head: dict[str, object] = {"sha256": tree.source.sha256}

    def read(self) -> dict[str, CheckedCandidate]:
        """Return the results in the journal, by the candidate's id."""
        return dict(_read_result(json.loads(line)) for line in _complete_lines(self._path)[1:])

    def begin(self, baseline: SuiteBaseline) -> bool:
        """Start the journal anew if it belongs to another archive or suite; return whether that was done."""
        head = json.dumps(self._head | {"tests": baseline.tests}) + "\n"
        text = self._path.read_text() if self._path.exists() else ""
        if text.startswith(head):
            if not text.endswith("\n"):  # the writer was killed within a line
                self._path.write_text(text[: text.rindex("\n") + 1])
            return False
        self._path.write_text(head)
        return True

    def write(self, checked: CheckedCandidate) -> None:
        """Add the result of a candidate."""
        failures = {test: asdict(failure) for test, failure in checked.failures.items()}
        line = {"id": checked.candidate.id, "outcome": checked.outcome, "cpu_s": checked.cpu_s}
        with self._path.open("a") as file:
            file.write(json.dumps(line | {"fail_to_pass": checked.fail_to_pass, "failures": failures}) + "\n")


def _complete_lines(path: Path) -> list[str]:
    """Return the lines of a file, without a last line that was cut off; none if there is no file."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def _read_result(line: Mapping[str, Any]) -> tuple[str, CheckedCandidate]:
    """Return the candidate's id and the candidate's result that a line of the journal holds."""
    checked = CheckedCandidate(
        candidate=_UNSPECIFIED,
        outcome=CandidateOutcome(line["outcome"]),
        fail_to_pass=tuple(line["fail_to_pass"]),
        failures=validate.read_failures(line["failures"]),
        cpu_s=line["cpu_s"],
    )
    return line["id"], checked
