import pytest
import toy
from agentrl_environments.swe.synth.candidates import REMOVE_BODY, CandidateOutcome, CheckedCandidate, Failure
from agentrl_environments.swe.synth.statements import describe, example, leaks, statement, without_functions

TESTS = {"tests/test_calc.py": toy.TESTS}


def finding(
    failures: dict[str, Failure],
    old: str = "if value > high:",
    new: str = "if value < high:",
    kind: str = "change_operator",
) -> CheckedCandidate:
    return CheckedCandidate(
        candidate=toy.bug(old, new, kind=kind),
        outcome=CandidateOutcome.VALID,
        fail_to_pass=tuple(failures),
        failures=failures,
    )


def told(one: CheckedCandidate) -> str:
    files = {"toy/calc.py": toy.CALC}
    return statement("toy", one, TESTS, one.candidate.fix(files), one.candidate.apply(files))


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(toy.TESTS.splitlines(), 1) if line.strip() == text)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (
            Failure(type="AssertionError", message="assert 500 == 100\n +  where 500 = clamp(500)"),
            "Expected `100`, but got `500`, where `500 = clamp(500)`.",
        ),
        (Failure(type="AssertionError", message="1 != 2"), "`1` and `2` should be equal, and are not."),
        (Failure(type="AssertionError", message="assert not True"), "What should hold does not: `not True`."),
        (Failure(type="AssertionError", message=""), "The assertion does not hold."),
        (
            Failure(type="Failed", message="DID NOT RAISE <class 'ValueError'>"),
            "`ValueError` should be raised, and is not.",
        ),
        (
            Failure(type="Failed", message="DID NOT RAISE <class 'h11._util.LocalProtocolError'>"),
            "`LocalProtocolError` should be raised, and is not.",
        ),
        (
            Failure(type="TypeError", message="no `x`\nmore"),
            "It should work, but raises `TypeError: no 'x'`.",
        ),
        (Failure(type="KeyError", message=""), "It should work, but raises `KeyError`."),
        (
            Failure(type="ValueError", message="<A at 0x7fa154675210>"),
            "It should work, but raises `ValueError: <A at 0x...>`.",
        ),
    ],
)
def test_what_happened_is_said_in_words(failure: Failure, words: str) -> None:
    assert describe(failure) == words


def test_an_example_is_the_failing_line_and_what_it_depends_on() -> None:
    at = line_of("assert total(values) == 6")
    failure = Failure(type="AssertionError", message="", frames=(("tests/test_calc.py", at, "test_total"),))
    assert (
        example("tests/test_calc.py::test_total", failure, TESTS)
        == "values = [1, 2, 3]\nassert total(values) == 6"
    )


def test_calls_on_what_is_needed_and_blocks_around_are_part_of_an_example() -> None:
    at = line_of("assert stack.pop() == 7")
    failure = Failure(
        type="IndexError", message="", frames=(("tests/test_calc.py", at, "test_push_and_pop"),)
    )
    code = example("tests/test_calc.py::TestStack::test_push_and_pop", failure, TESTS)
    assert code == "stack = Stack()\nstack.push(7)\nassert stack.pop() == 7"
    at = line_of("total([-1])")
    failure = Failure(type="Failed", message="", frames=(("tests/test_calc.py", at, "test_total_refuses"),))
    assert (
        example("tests/test_calc.py::test_total_refuses", failure, TESTS)
        == "with pytest.raises(ValueError):\n    total([-1])"
    )


def test_an_example_that_cannot_be_told_is_empty() -> None:
    failure = Failure(type="KeyError", message="")
    assert example("tests/test_calc.py::test_total", failure, TESTS) == ""
    assert example("tests/test_calc.py::test_nowhere", failure, TESTS) == ""
    assert example("README.md", failure, TESTS) == ""


def test_a_statement_tells_call_expectation_and_result_once_each_and_counts_the_rest() -> None:
    at = line_of("assert clamp(500) == 100")
    message = "assert 500 == 100\n +  where 500 = clamp(500)"
    first = Failure(
        type="AssertionError", message=message, frames=(("tests/test_calc.py", at, "test_clamp_high"),)
    )
    text = told(
        finding(
            {"tests/test_calc.py::test_clamp_high": first, "tests/test_calc.py::test_clamp_inside[0]": first}
        )
    )
    assert "```python\nassert clamp(500) == 100\n```" in text
    assert text.count("Expected `100`, but got `500`") == 1
    assert "1 more check of this behaviour fails." in text


def test_a_statement_that_would_hold_a_line_of_the_fix_is_written_with_less() -> None:
    failure = Failure(type="AssertionError", message="assert if value > high: == 1")
    text = told(finding({"tests/test_calc.py::test_clamp_high": failure}))
    assert "value > high" not in text
    assert "test_clamp_high" in text


def test_a_missing_function_is_described_by_its_signature_and_its_own_words() -> None:
    failure = Failure(type="NotImplementedError", message="")
    removed = toy.bug("if value > high:", "raise NotImplementedError", kind=REMOVE_BODY)
    one = CheckedCandidate(
        candidate=removed, outcome=CandidateOutcome.VALID, fail_to_pass=("a",), failures={"a": failure}
    )
    files = {"toy/calc.py": toy.CALC}
    text = statement("toy", one, TESTS, one.candidate.fix(files), files)
    assert "`clamp` in `toy/calc.py` is not implemented" in text
    assert "def clamp(value: int, low: int=0, high: int=LIMIT) -> int:" in text
    assert "never below low nor above high" in text


def test_lines_that_say_nothing_do_not_leak() -> None:
    fix = (
        "--- a/m.py\n+++ b/m.py\n@@ -1,2 +1,2 @@\n-    return None\n-    else:\n+    return None\n+    pass\n"
    )
    assert not leaks("it may return None, or else: pass", fix)


def test_test_functions_are_taken_out_with_their_decorators_and_classes_stay_whole() -> None:
    text = without_functions(toy.TESTS, [["test_clamp_inside"], ["TestStack", "test_empty"]])
    assert "test_clamp_inside" not in text
    assert "parametrize" not in text
    assert "test_empty" not in text
    assert "test_push_and_pop" in text
    compile(text, "x", "exec")
    empty = without_functions(toy.TESTS, [["TestStack", "test_empty"], ["TestStack", "test_push_and_pop"]])
    assert "class TestStack:\n    pass\n" in empty
    compile(empty, "x", "exec")


def test_an_inherited_test_is_found_in_the_base_class() -> None:
    text = "class Base:\n    def test_a(self):\n        pass\n\n    def test_b(self):\n        pass\n\n\n"
    text += "class TestX(Base):\n    x = 1\n"
    assert "test_a" not in without_functions(text, [["TestX", "test_a"]])
    assert "test_b" in without_functions(text, [["TestX", "test_a"]])
