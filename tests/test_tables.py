import io
import re

from agentrl.commands.reporter import ConsoleReporter
from agentrl.commands.tables import comparison_table, number, plain, results_table, show, with_interval
from agentrl.evaluation.report import MEASURES, Report, TaskResult, compare
from agentrl.evaluation.statistics import Interval
from agentrl.types import End, Task, Trajectory


class Terminal(io.StringIO):
    def isatty(self):
        return True


def made(name, successes, *, lost=0):
    zero = {measure: (0.0 if measure == "truncated" else 2.0,) * len(successes[0]) for measure in MEASURES}
    results = [
        TaskResult(f"t{n}", "c", zero | {"success": tuple(map(float, s))}) for n, s in enumerate(successes)
    ]
    return Report(
        name=name, panel="abc", seed=0, episodes_per_task=len(successes[0]), results=tuple(results), lost=lost
    )


def test_results_are_aligned_lines_without_colour_codes():
    stream = io.StringIO()
    show(
        results_table(
            {"random": made("random", [[0]] * 9 + [[1]]), "after": made("after", [[1]] * 10, lost=1)}
        ),
        stream,
    )
    lines = stream.getvalue().splitlines()
    assert lines[0] == "results"
    assert re.split(r"\s{2,}", lines[1]) == [
        "policy",
        "success",
        "return",
        "turns",
        "tokens",
        "invalid",
        "episodes",
        "lost",
    ]
    assert re.split(r"\s{2,}", lines[2]) == [
        "random",
        "0.10 [0.02, 0.40]",
        "2.00",
        "2.0",
        "2",
        "2.000",
        "10",
        "0",
    ]
    assert lines[3].startswith("after   1.00 [0.72, 1.00]")
    assert len(lines[2]) == len(lines[3])
    assert "panel abc" in lines
    assert "\x1b" not in stream.getvalue()


def test_pass_at_k_is_shown_where_every_row_has_it():
    twice = made("a", [[0, 1]] * 4)
    assert "pass@2" in results_table({"a": twice}).columns
    assert "pass@2" not in results_table({"a": twice, "b": made("b", [[1]] * 4)}).columns


def test_a_terminal_gets_a_drawn_table():
    stream = Terminal()
    show(results_table({"after": made("after", [[1]] * 10)}), stream)
    assert "1.00 [0.72, 1.00]" in stream.getvalue()
    assert "───" in stream.getvalue()


def test_a_comparison_says_what_was_paired_and_what_was_not():
    text = plain(comparison_table(compare(made("before", [[0]] * 12 + [[1]] * 2), made("after", [[1]] * 13))))
    assert text.startswith("A = before, B = after")
    assert re.search(
        r"success +0\.077 +1\.000 +\+0\.923 \[\+0\.\d+, \+1\.\d+\] +0\.0005 +McNemar, exact", text
    )
    assert "left out: 1 tasks that only A played, 0 that only B played" in text
    assert "paired over 13 tasks" in text


def test_no_results_make_an_empty_table():
    assert plain(results_table({})).startswith("results\npolicy")


def test_what_is_not_known_is_a_dash():
    assert number(float("nan"), ".2f") == "-"
    assert with_interval(Interval(0.5, float("-inf"), float("inf"), 1), ".2f") == "0.50"


def test_plain_output_is_a_line_per_update_and_report():
    stream = io.StringIO()
    with ConsoleReporter(stream) as reporter:
        for update in range(3):
            reporter.episode(Trajectory(Task("a"), (), End.FAILED))
            reporter.update(
                update,
                "rl",
                {"rollout/success": 0.5, "learner/tokens_per_s": 12345.0, "credit/advantage_std": 1.0},
            )
        reporter.report(made("after", [[1]] * 10, lost=2))
        reporter.say("warning: [torch] differs")
    lines = stream.getvalue().splitlines()
    assert lines[2] == "rl 2: success 0.50, tokens/s 12,345"
    assert (
        lines[3] == "evaluation after: success 1.00 [0.72, 1.00], return 2.00, turns 2.0, 10 episodes, 2 lost"
    )
    assert lines[4:] == ["warning: [torch] differs"]


def test_plain_progress_is_a_line_per_tenth_and_nothing_for_what_is_quick():
    now = 0.0
    stream = io.StringIO()
    reporter = ConsoleReporter(stream, clock=lambda: now)
    for done in range(1, 1001):
        now += 0.05
        reporter.progress("games", done, 1000)
    lines = stream.getvalue().splitlines()
    assert lines == [f"games: {done} of 1000" for done in range(100, 1001, 100)]
    for done in range(1, 4):
        now += 0.9
        reporter.progress("short", done, 3)
    assert stream.getvalue().splitlines()[len(lines) :] == ["short: 3 of 3"]
    lines = stream.getvalue().splitlines()
    for done in range(1, 1001):
        now += 0.0001
        reporter.progress("quick", done, 1000)
    assert len(stream.getvalue().splitlines()) == len(lines)


def test_a_live_view_shows_updates_episodes_and_bars_and_leaves_lines_above():
    stream = Terminal()
    with ConsoleReporter(stream, clock=iter(range(10_000)).__next__) as reporter:
        reporter.progress("games", 3, 10)
        reporter.episode(Trajectory(Task("a"), (), End.FAILED))
        assert "3/10" in stream.getvalue()
        assert "1 episodes ended, 0 won, 1 failed" in stream.getvalue()
        reporter.progress("games", 10, 10)
        reporter.update(7, "rl", {"rollout/success": 0.625})
        reporter.report(made("after", [[1]] * 10))
    text = stream.getvalue()
    assert "rl 7" in text
    assert "0.62" in text
    assert "evaluation after: success 1.00 [0.72, 1.00]" in text
    last = text[text.rindex("rl 7") :]
    assert "games" not in last
    assert "playing" not in last
