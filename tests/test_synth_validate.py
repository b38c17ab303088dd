import asyncio

import pytest
import toy
from agentrl_environments.swe import sources
from agentrl_environments.swe.synth import validate
from agentrl_environments.swe.synth.candidates import Candidate, CandidateOutcome, CheckedCandidate
from agentrl_environments.swe.synth.packages import Tree, UnusablePackage
from agentrl_environments.swe.synth.validate import SuiteBaseline

BUGS = {
    CandidateOutcome.VALID: toy.bug("if value < low:", "if value < low + 60:"),
    CandidateOutcome.SURVIVED: toy.bug("return x + 1", "return x - 1", function="unused"),
    CandidateOutcome.DEAD: toy.bug("LIMIT = 100", "LIMIT = 1 / 0", function=""),
    CandidateOutcome.HUNG: toy.bug("return result", "while True:\n    pass", function="total"),
    CandidateOutcome.BROAD: toy.bug("return self.items.pop()", "import os\nos.abort()", function="Stack.pop"),
    CandidateOutcome.FLAKY: toy.bug(
        "return high", 'return 100 if sorted({"a", "b", "c", "d"}, key=lambda _: 0)[0] == FIRST else 0'
    ),
}


@pytest.fixture(autouse=True)
def _tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "tools", toy.tools)
    toy.path_first(monkeypatch)


def found(
    candidates: list[Candidate], tree: Tree | None = None, workers: int = 1, target: int = 99
) -> tuple[list[CheckedCandidate], SuiteBaseline]:
    async def work() -> list[CheckedCandidate]:
        async with toy.CleanProvider().serve() as sandboxes:
            searching = validate.search(
                sandboxes,
                tree or toy.tree(),
                candidates,
                target=target,
                workers=workers,
                on_baseline=clean.append,
            )
            return [finding async for finding in searching]

    clean: list[SuiteBaseline] = []
    return asyncio.run(work()), clean[0]


def test_a_bug_that_a_test_finds_is_valid_and_says_how_it_fails() -> None:
    (finding,), clean = found([toy.bug("if value > high:", "if value < high:")])
    assert finding.outcome is CandidateOutcome.VALID
    assert finding.fail_to_pass == (
        "tests/test_calc.py::test_clamp_high",
        "tests/test_calc.py::test_clamp_inside[0]",
        "tests/test_calc.py::test_clamp_inside[50]",
    )
    failure = finding.failures["tests/test_calc.py::test_clamp_high"]
    assert failure.type == "AssertionError"
    assert failure.message.splitlines()[0] == "assert 500 == 100"
    assert failure.frames[-1][0] == "tests/test_calc.py"
    assert len(clean.tests) == 10
    assert clean.num_flaky == 0


def test_what_is_no_task_is_told_by_its_kind() -> None:
    bugs = [
        BUGS[CandidateOutcome.SURVIVED],
        BUGS[CandidateOutcome.DEAD],
        BUGS[CandidateOutcome.HUNG],
        toy.bug("if value > high:", "if value < high:"),
    ]
    (survived, dead, hung, after), clean = found(
        bugs, toy.tree({"tests/test_calc.py": (toy.TESTS + toy.LITTER).encode()})
    )
    assert len(clean.tests) == 11, "a test that passes only in a clean folder passes again and again"
    assert [survived.outcome, dead.outcome, hung.outcome] == [
        CandidateOutcome.SURVIVED,
        CandidateOutcome.DEAD,
        CandidateOutcome.HUNG,
    ]
    assert after.outcome is CandidateOutcome.VALID, "what stood before must leave nothing behind"


def test_a_bug_that_ends_the_process_or_kills_the_runner_ends_nothing_else() -> None:
    aborts = toy.bug("return self.items.pop()", "import os\nos.abort()", function="Stack.pop")
    murders = toy.bug("return self.items.pop()", "import os\nos.kill(os.getppid(), 9)", function="Stack.pop")
    first, second, after = found([aborts, murders, BUGS[CandidateOutcome.VALID]])[0]
    assert (first.outcome, second.outcome, after.outcome) == (
        CandidateOutcome.DEAD,
        CandidateOutcome.DEAD,
        CandidateOutcome.VALID,
    )


def test_a_bug_that_breaks_most_tests_is_too_broad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "MAX_FAILING", 2)
    (finding,), _ = found([toy.bug("if value > high:", "if value < high:")])
    assert finding.outcome is CandidateOutcome.BROAD


def test_a_bug_that_depends_on_the_order_of_a_set_is_flaky() -> None:
    bugs = [
        toy.bug("return high", f'return 100 if next(iter({{"a", "b", "c", "d"}})) == "{letter}" else 0')
        for letter in "abcd"
    ]
    outcomes = {finding.outcome for finding in found(bugs)[0]}
    assert outcomes <= {CandidateOutcome.FLAKY, CandidateOutcome.VALID, CandidateOutcome.SURVIVED}
    assert CandidateOutcome.FLAKY in outcomes


def test_the_number_of_workers_changes_nothing_and_the_target_ends_the_search() -> None:
    bugs = [
        BUGS[CandidateOutcome.SURVIVED],
        BUGS[CandidateOutcome.VALID],
        toy.bug("if value > high:", "if value < high:"),
        BUGS[CandidateOutcome.DEAD],
    ]
    one, two = (found(bugs, workers=workers, target=2)[0] for workers in (1, 2))
    plain = [
        [(finding.candidate.id, finding.outcome, finding.fail_to_pass) for finding in findings]
        for findings in (one, two)
    ]
    assert plain[0] == plain[1]
    assert [finding.outcome for finding in one] == [
        CandidateOutcome.SURVIVED,
        CandidateOutcome.VALID,
        CandidateOutcome.VALID,
    ]


def test_what_is_known_is_not_run_again() -> None:
    bug = BUGS[CandidateOutcome.VALID]
    known = {bug.id: CheckedCandidate(candidate=BUGS[CandidateOutcome.DEAD], outcome=CandidateOutcome.BROAD)}

    async def work() -> list[CheckedCandidate]:
        async with toy.CleanProvider().serve() as sandboxes:
            return [
                finding
                async for finding in validate.search(
                    sandboxes, toy.tree(), [bug], target=1, known=known, on_checked=made.append
                )
            ]

    made: list[CheckedCandidate] = []
    (finding,) = asyncio.run(work())
    assert (finding.candidate, finding.outcome, made) == (bug, CandidateOutcome.BROAD, [])


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        ("def test_a():\n    assert False\n", "1 of 1 tests of toy==1.0 fail"),
        ("import no_such_module\n", "do not run without any bug: tests/test_calc.py"),
        ("x = 1\n", "do not run without any bug"),
    ],
)
def test_a_package_whose_suite_does_not_pass_is_refused(tests: str, why: str) -> None:
    with pytest.raises(UnusablePackage, match=why) as refused:
        found([], toy.tree({"tests/test_calc.py": tests.encode()}))
    assert refused.value.reason == "suite"


def test_tests_that_pass_now_and_then_are_left_out() -> None:
    flaky = b"import os\ndef test_a():\n    pass\ndef test_b():\n    pass\n" + b"".join(
        b"def test_seed_%d():\n    assert next(iter({'a', 'b', 'c', 'd'})) != '%s'\n" % (number, letter)
        for number, letter in enumerate([b"a", b"b", b"c", b"d"])
    )
    many = flaky + b"".join(b"def test_more_%d():\n    pass\n" % number for number in range(60))
    _, clean = found([], toy.tree({"tests/test_calc.py": many}))
    assert clean.num_flaky == 2
    assert len(clean.tests) == 64


def test_names_that_no_log_can_carry_are_left_out() -> None:
    odd = b"import pytest\n@pytest.mark.parametrize('x', ['a b', 'c] - d', 'e'], ids=str)\n"
    odd += b"def test_x(x):\n    pass\n"
    _, clean = found([], toy.tree({"tests/test_calc.py": odd}))
    assert "tests/test_calc.py::test_x[e]" in clean.tests
    assert len(clean.tests) == 2
