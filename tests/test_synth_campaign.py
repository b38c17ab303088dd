import asyncio
import dataclasses
import json

import pytest
import toy
from agentrl_environments.swe import Swe, rows, sources
from agentrl_environments.swe.cli import app
from agentrl_environments.swe.rows import Instance
from agentrl_environments.swe.synth import build, campaign, packages
from agentrl_environments.swe.synth.candidates import COMBINED, CandidateOutcome, CheckedCandidate, Failure
from agentrl_environments.swe.synth.packages import PinnedPackage
from agentrl_environments.swe.synth.statements import leaks
from typer.testing import CliRunner

pytest.importorskip("libcst", reason="making tasks needs libcst")
TOY = PinnedPackage(name="toy", version="1.0")


@pytest.fixture
def cache(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """A cache that holds the toy as a source distribution, and a pip that fetches nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(sources, "tools", toy.tools)
    toy.path_first(monkeypatch)
    folder = packages.cache_folder()
    folder.mkdir(parents=True)
    (folder / "toy-1.0.tar.gz").write_bytes(toy.sdist())
    return folder


def run(plan: campaign.CampaignPlan, folder) -> campaign.CampaignReport:
    async def work() -> campaign.CampaignReport:
        async with toy.CleanProvider().serve() as sandboxes:
            return await campaign.run(sandboxes, plan, folder)

    return asyncio.run(work())


@pytest.mark.slow
def test_a_campaign_makes_rows_that_stand_the_official_rule_and_goes_on_where_it_was_stopped(
    cache, tmp_path
) -> None:
    plan = campaign.CampaignPlan(
        packages=(TOY, PinnedPackage(name="absent", version="1.0")), per_package=8, workers=2
    )
    first = run(plan, tmp_path / "findings")
    assert len(first.rows) >= 7
    assert first.unverified == {}
    assert first.unusable["absent"].reason == "download"
    assert first.outcomes["toy"][CandidateOutcome.VALID] >= 8
    assert COMBINED in {row.kind for row in first.rows}
    for row in first.rows:
        assert row.patch.startswith("diff --git a/toy/calc.py")
        assert len(row.base_commit) == 40
        assert row.fail_to_pass
        assert set(row.fail_to_pass).isdisjoint(row.pass_to_pass)
        assert not leaks(row.problem_statement, row.patch)
        for test in row.fail_to_pass:
            assert (
                f"+{'    ' * ('::TestStack' in test)}def {test.rpartition('::')[2].partition('[')[0]}("
                in row.test_patch
            )
    rows.write(tmp_path / "rows.jsonl", first.rows)
    assert rows.load(tmp_path / "rows.jsonl") == tuple(first.rows)
    journal = tmp_path / "findings" / "toy-1.0.jsonl"
    before = journal.read_text()
    journal.write_text(before[:-20])  # as if it had been killed in the middle of a line
    (tmp_path / "findings" / "proofs.jsonl").write_text(
        (tmp_path / "findings" / "proofs.jsonl").read_text()[:-20]
    )
    again = run(plan, tmp_path / "findings")
    assert again.rows == first.rows
    assert [json.loads(line)["id"] for line in journal.read_text().splitlines()[1:]] == [
        json.loads(line)["id"] for line in before.splitlines()[1:]
    ]


@pytest.mark.slow
def test_the_command_line_makes_and_proves_rows_and_says_which_do_not_hold(
    cache, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    options = [
        "synth",
        str(out),
        "--package",
        "toy==1.0",
        "--per-package",
        "3",
        "--sandbox",
        "toy:CleanProvider",
    ]
    made = CliRunner().invoke(app, options)
    assert made.exit_code == 0, made.output
    assert "3 rows in" in made.output
    splits = [
        rows.load(out / f"{split}.jsonl") for split in Swe().splits if (out / f"{split}.jsonl").stat().st_size
    ]
    assert sorted(row.id for some in splits for row in some) == sorted(
        row.id for row in rows.load(out / "tasks.jsonl")
    )
    good, *_ = rows.load(out / "tasks.jsonl")
    lying = dataclasses.replace(
        good, id="toy-lying", fail_to_pass=(*good.fail_to_pass, good.pass_to_pass[0]), pass_to_pass=()
    )
    rows.write(tmp_path / "two.jsonl", [good, lying])
    proved = CliRunner().invoke(
        app, ["verify", str(tmp_path / "two.jsonl"), "--sandbox", "toy:CleanProvider"]
    )
    assert proved.exit_code == 1
    assert "1 of 2 rows hold" in proved.output
    assert "toy-lying: without the fix" in " ".join(proved.output.split())


def finding(
    kind: str, number: int, *, tests: int = 1, function: str = "f", complexity: int = 1
) -> CheckedCandidate:
    bug = toy.bug("if value < low:", f"if value < low + {number}:", kind=kind, function=function)
    names = tuple(f"t.py::test_{index}" for index in range(tests))
    failures = {
        name: Failure(type="KeyError", message="", frames=(("toy/calc.py", 10, "clamp"),)) for name in names
    }
    return CheckedCandidate(
        candidate=dataclasses.replace(bug, complexity=complexity),
        outcome=CandidateOutcome.VALID,
        fail_to_pass=names,
        failures=failures,
    )


def test_the_choice_is_even_over_kinds_and_then_over_difficulties() -> None:
    many = [finding("change_return", number, tests=5) for number in range(30)]
    many += [finding("change_return", 100 + number, tests=1, complexity=9) for number in range(3)]
    many += [finding("off_by_one", 200 + number) for number in range(4)]
    chosen = build.choose(many, 8, seed=0)
    kinds = [one.candidate.kind for one in chosen]
    assert (kinds.count("change_return"), kinds.count("off_by_one")) == (4, 4)
    returns = [build.difficulty(one) for one in chosen if one.candidate.kind == "change_return"]
    assert sorted(returns) == ["easy", "easy", "medium", "medium"]
    assert build.choose(many, 8, seed=0) == chosen
    assert len(build.choose(many, 99, seed=0)) == 37


def test_difficulty_counts_what_makes_a_bug_hard_to_find() -> None:
    assert build.difficulty(finding("off_by_one", 1, tests=5)) == "easy"
    assert build.difficulty(finding("off_by_one", 1, tests=2)) == "easy"
    assert build.difficulty(finding("off_by_one", 1, tests=2, complexity=8)) == "medium"
    unseen = dataclasses.replace(finding("off_by_one", 1, tests=2, complexity=8), failures={})
    assert build.difficulty(unseen) == "hard"
    assert build.difficulty(finding("remove_body", 1, tests=2, complexity=8)) == "hard"


def test_a_row_hides_the_tests_that_its_bug_breaks_and_names_nothing_of_the_fix() -> None:
    tree = toy.tree()
    bug = toy.bug("if value > high:", "if value < high:")
    failing = ("tests/test_calc.py::test_clamp_high", "tests/test_calc.py::test_clamp_inside[0]")
    failure = Failure(
        type="AssertionError",
        message="assert 500 == 100",
        frames=(("tests/test_calc.py", 10, "test_clamp_high"),),
    )
    row = build.instance(
        tree,
        CheckedCandidate(
            candidate=bug,
            outcome=CandidateOutcome.VALID,
            fail_to_pass=failing,
            failures={failing[0]: failure},
        ),
    )
    assert "+def test_clamp_high" in row.test_patch
    assert "+def test_clamp_inside" in row.test_patch
    assert "test_clamp_low():" not in [line[1:] for line in row.test_patch.splitlines() if line[0] in "+-"]
    assert row.patch.count("\n-        return") == 0
    assert "-    if value < high:\n+    if value > high:\n" in row.patch
    assert row.solved
    assert row.site == "toy/calc.py::clamp"
    assert "value > high" not in row.problem_statement


def test_no_function_is_in_two_splits() -> None:
    spec = Swe()
    base = Instance(id="", repo="toy", problem_statement="", patch="")
    placed = {
        spec.split_of(dataclasses.replace(base, id=str(number), site="toy/calc.py::f"))
        for number in range(50)
    }
    assert len(placed) == 1
    everywhere = {
        spec.split_of(dataclasses.replace(base, site=f"toy/calc.py::f{number}")) for number in range(200)
    }
    assert everywhere == {"train", "valid", "test"}
    assert spec.split_of(dataclasses.replace(base, repo="toolz", site="x")) == "held-out"


def test_rows_are_packed_to_the_same_bytes_and_read_back(tmp_path) -> None:
    failure = Failure(type="AssertionError", message="assert 500 == 100")
    bug = CheckedCandidate(
        candidate=toy.bug("if value > high:", "if value < high:"),
        outcome=CandidateOutcome.VALID,
        fail_to_pass=("tests/test_calc.py::test_clamp_high",),
        failures={"tests/test_calc.py::test_clamp_high": failure},
    )
    row = build.completed(
        build.instance(toy.tree(), bug),
        "0" * 40,
        ("tests/test_calc.py::test_total", "tests/test_calc.py::test_clamp_high"),
    )
    assert row.pass_to_pass == ("tests/test_calc.py::test_total",)
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        rows.write(tmp_path / name, [row])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert rows.load(tmp_path / "a.jsonl.gz") == (row,)
    narrow = build.narrowed(row)
    assert narrow.command == f"{row.command} tests/test_calc.py"
    few = dataclasses.replace(row, pass_to_pass=("other.py::test_x",))
    assert build.narrowed(few) == few
