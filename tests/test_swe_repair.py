import asyncio
import dataclasses

import pytest
import toy
from agentrl_environments.swe import rows, sources
from agentrl_environments.swe.repair import Repair, menu
from agentrl_environments.swe.rows import Instance
from agentrl_environments.swe.synth import build
from agentrl_environments.swe.synth.candidates import Candidate, CandidateOutcome, CheckedCandidate, Failure
from agentrl_environments.swe.synth.validate import SPEC

from agentrl.types import Observation, Step

pytest.importorskip("libcst", reason="the menu needs libcst")
BUG = toy.bug("if value > high:", "if value < high:")
FAILING = (
    "tests/test_calc.py::test_clamp_high",
    "tests/test_calc.py::test_clamp_inside[0]",
    "tests/test_calc.py::test_clamp_inside[50]",
)
BASE = BUG.apply({"toy/calc.py": toy.CALC})["toy/calc.py"]


def row(bug: Candidate = BUG) -> Instance:
    failures = {test: Failure(type="AssertionError", message="") for test in FAILING}
    made = build.instance(
        toy.tree(),
        CheckedCandidate(
            candidate=bug, outcome=CandidateOutcome.VALID, fail_to_pass=FAILING, failures=failures
        ),
    )
    return dataclasses.replace(
        build.narrowed(build.completed(made, "", (*FAILING, "tests/test_calc.py::test_total"))), repo="toolz"
    )


@pytest.fixture
def env(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Repair:
    """The environment over two rows, one of which can be mended from a menu."""
    monkeypatch.setattr(sources, "archive", lambda source, cache="": sources.tar(toy.FILES))
    monkeypatch.setattr(sources, "tools", toy.tools)
    toy.path_first(monkeypatch)
    two = toy.bug("return result", "return None", kind="change_return", function="total")
    rows.write(
        tmp_path / "rows.jsonl", [dataclasses.replace(one, base_commit="0" * 40) for one in (row(), row(two))]
    )
    return Repair(rows=str(tmp_path / "rows.jsonl"))


def play(spec: Repair, actions: list[str]) -> tuple[Observation, list[Step]]:
    async def work() -> tuple[Observation, list[Step]]:
        async with toy.CleanProvider().serve() as sandboxes:
            (task,) = spec.tasks("held-out")
            assert task.sandbox
            async with sandboxes.open(task.sandbox) as sandbox, spec.open(task, sandbox, None) as episode:
                first = await episode.reset()
                return first, [await episode.step(action) for action in actions]

    return asyncio.run(work())


def proved() -> Instance:
    """Return the row with its base commit, which holds."""

    async def work() -> Instance:
        async with toy.CleanProvider().serve() as sandboxes, sandboxes.open(SPEC) as sandbox:
            return dataclasses.replace(row(), base_commit=await build.verify(sandbox, row()))

    return asyncio.run(work())


def test_the_menu_holds_the_fix_once_and_only_edits_of_the_broken_function() -> None:
    edits = menu(row(), BASE, 6)
    assert [patch for _, patch in edits].count(row().patch) == 1
    told = {text for text, _ in edits}
    assert "if value < high: -> if value > high:" in told
    assert all("value" in text for text in told), "clamp is the only function with such lines"
    assert menu(row(), BASE, 6) == edits
    assert len(menu(row(), BASE, 1)) == 1
    assert len({tuple(menu(row(), BASE, 4, str(order))) for order in range(8)}) > 1


def test_the_fix_is_on_the_menu_even_where_no_edit_of_the_kind_makes_it() -> None:
    other = dataclasses.replace(row(), kind="off_by_one")
    assert [patch for _, patch in menu(other, BASE, 6)].count(other.patch) == 1


def test_only_bugs_that_can_be_taken_back_are_tasks(env: Repair) -> None:
    assert [task.id for task in env.tasks("held-out")] == [f"{row().id}#0"]


@pytest.mark.slow
def test_a_wrong_edit_fails_the_right_one_passes_and_each_try_stands_alone(env: Repair) -> None:
    rows.write(env.rows, [proved()])
    first, steps = play(env, ["try 99", "hello"])
    right = first.plan[0]
    lines = first.messages[-1].content.splitlines()  # another edit of the same line may mend it as well
    wrong = next(f"try {line.split(' ', 1)[0]}" for line in lines if "if value < low:" in line)
    assert [step.info["valid"] for step in steps] == [0.0, 0.0]
    _, (bad, good, end) = play(env, [wrong, right, "submit"])
    assert bad.observation.messages[-1].content.startswith("failed")
    assert bad.info["nonempty"] == 1.0
    assert good.observation.messages[-1].content == "passed"
    assert good.info["passed"] == 1.0
    assert good.observation.plan == ("submit",)
    assert end.terminated
    assert end.info["success"] == 1.0
    _, (_, lost) = play(env, [wrong, "submit"])
    assert lost.info["success"] == 0.0
    assert lost.info["submitted"] == 1.0
