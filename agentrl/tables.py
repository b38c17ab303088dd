"""What a person sees: tables of results, and a live view of a run; plain aligned lines where nobody's terminal is listening.

Plain output has no colour codes and does not flood a log file: a line per update, a line per evaluation, and a line for each tenth of
something slow.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TextIO

import rich.box
import rich.table
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from agentrl.evaluate import Comparison, Report
from agentrl.statistics import Interval
from agentrl.types import End, Trajectory


@dataclass(frozen=True, slots=True)
class Table:
    """A table to be shown; notes stand below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    left: tuple[int, ...] = (0,)
    """Columns of text, aligned on the left; the others are numbers, aligned on the right."""


def show(table: Table, stream: TextIO | None = None) -> None:
    """Write a table to ``stream`` (standard output): drawn in a terminal, plain elsewhere."""
    stream = stream or sys.stdout
    if stream.isatty():
        Console(file=stream).print(_drawn(table))
    else:
        stream.write(plain(table) + "\n")
    stream.flush()


def plain(table: Table) -> str:
    """Return a table as aligned lines.

    >>> print(plain(Table("apples", ("kind", "number"), (("red", "7"), ("green", "12")), ("as of today",))))
    apples
    kind   number
    red         7
    green      12
    as of today
    """
    lines = (table.columns, *table.rows)
    widths = [max(len(line[place]) for line in lines) for place in range(len(table.columns))]
    aligned = [
        "  ".join(
            cell.ljust(width) if place in table.left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join(line.rstrip() for line in (table.title, *aligned, *table.notes))


_RESULTS = (("success", ".2f"), ("return", ".2f"), ("turns", ".1f"), ("tokens", ".0f"), ("invalid", ".3f"))


def results_table(reports: Mapping[str, Report], *, title: str = "results") -> Table:
    """Return one row per report, in order: means over tasks, success with its 95% interval, and ``pass@k`` where it is known."""
    measured = {name: report.measures() for name, report in reports.items()}
    extra = tuple(
        (name, ".2f")
        for name in next(iter(measured.values()), {})
        if name.startswith("pass") and _in_all(name, measured)
    )
    columns = _RESULTS[:1] + extra + _RESULTS[1:]
    rows = []
    for name, report in reports.items():
        cells = [
            with_interval(measured[name][column], form)
            if column == "success"
            else number(measured[name][column].mean, form)
            for column, form in columns
        ]
        rows.append((name, *cells, str(report.num_episodes), str(report.lost)))
    panels = {report.panel for report in reports.values()}
    notes = ["success: mean over tasks with its 95% interval, clustered by task"]
    notes += (
        [f"panel {panel}" for panel in sorted(panels)]
        if len(panels) == 1
        else ["the rows were measured on different panels"]
    )
    return Table(
        title,
        ("policy", *(column for column, _ in columns), "episodes", "lost"),
        tuple(rows),
        tuple(notes if reports else ()),
    )


def comparison_table(comparison: Comparison) -> Table:
    """Return one row per measure: A, B, the paired difference with its 95% interval, and how surprising it is."""
    rows = [
        (
            row.measure,
            number(row.a, ".3f"),
            number(row.b, ".3f"),
            with_interval(row.difference, "+.3f"),
            "<0.0001" if row.p_value < 1e-4 else f"{row.p_value:.4f}",
            row.test,
        )
        for row in comparison.differences
    ]
    notes = [
        f"paired over {comparison.num_tasks} tasks; intervals are 95%, p is of no difference, two-sided, not corrected for many tests"
    ]
    if comparison.only_a or comparison.only_b:
        notes.append(
            f"left out: {comparison.only_a} tasks that only A played, {comparison.only_b} that only B played"
        )
    columns = ("measure", "A", "B", "B - A", "p", "test")
    return Table(f"A = {comparison.a}, B = {comparison.b}", columns, tuple(rows), tuple(notes))


def number(value: float, form: str) -> str:
    """Return a number, or a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:{form}}"


def with_interval(interval: Interval, form: str) -> str:
    """Return a mean and its interval, where it has one.

    >>> with_interval(Interval(0.5, 0.25, 0.75, 9), ".2f")
    '0.50 [0.25, 0.75]'
    """
    if not math.isfinite(interval.low) or not math.isfinite(interval.high):
        return number(interval.mean, form)
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def _in_all(measure: str, measured: Mapping[str, Mapping[str, Interval]]) -> bool:
    return all(measure in found for found in measured.values())


def _drawn(table: Table) -> Group:
    title = Text(table.title, style="bold")
    drawn = rich.table.Table(
        title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for place, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if place in table.left else "right")
    for row in table.rows:
        drawn.add_row(*map(Text, row))  # as text: a name may hold what reads as markup
    return Group(drawn, *map(Text, table.notes))


_SHOWN = (
    ("rollout/success", "success", ".2f"),
    ("reward/return", "return", ".2f"),
    ("rollout/turns", "turns", ".1f"),
    ("rollout/invalid", "invalid", ".2f"),
    ("rollout/failed", "failed", ".0f"),
    ("learner/loss", "loss", ".3f"),
    ("learner/entropy", "entropy", ".2f"),
    ("learner/grad_norm", "gradient", ".2f"),
    ("learner/tokens_per_s", "tokens/s", ",.0f"),
)
_ROWS = 12
_REFRESH_S = 0.2
_QUIET_S = 1.0


class Reporter:
    """Tells a person how a run goes: a live table with progress bars in a terminal, plain lines elsewhere. Used as a context.

    It redraws only when it is called: no thread of its own, so processes may be forked beside it and a debugger may stop it.
    """

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._console = Console(file=self._stream)
        self._live = Live(console=self._console, auto_refresh=False) if self._stream.isatty() else None
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            auto_refresh=False,
        )
        self._tasks: dict[str, TaskID] = {}
        self._tenths: dict[str, tuple[int, float]] = {}
        self._rows: deque[tuple[str, ...]] = deque(maxlen=_ROWS)
        self._ends: list[Trajectory] = []
        self._drawn_at = -math.inf

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._ends.clear()
            self._tasks.clear()
            self._draw(now=True)
            self._live.stop()

    def progress(self, what: str, done: int, total: int) -> None:
        """Say how far something slow has come."""
        if self._live is None:
            self._plain_progress(what, done, total)
            return
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(what))
        self._draw(now=done >= total)

    def episode(self, trajectory: Trajectory) -> None:
        """Count an episode that ended; shown until the next update or report."""
        if self._live is not None:
            self._ends.append(trajectory)
            self._draw()

    def update(self, update: int, stage: str, values: Mapping[str, float]) -> None:
        """Show the record of an update: the same arguments as ``MetricsLog.write``."""
        cells = [number(values.get(name, math.nan), form) for name, _, form in _SHOWN]
        self._ends.clear()
        if self._live is None:
            known = [
                f"{title} {cell}" for (_, title, _), cell in zip(_SHOWN, cells, strict=True) if cell != "-"
            ]
            self._line(f"{stage} {update}: " + ", ".join(known))
            return
        self._rows.append((f"{stage} {update}", *cells))
        self._draw(now=True)

    def report(self, report: Report) -> None:
        """Show the result of an evaluation in one line."""
        self._ends.clear()
        found = report.measures()
        line = f"evaluation {report.name}: success {with_interval(found['success'], '.2f')}, return {number(found['return'].mean, '.2f')}"
        line += f", turns {number(found['turns'].mean, '.1f')}, {report.num_episodes} episodes"
        self._line(line + (f", {report.lost} lost" if report.lost else ""))

    def say(self, line: str) -> None:
        """Write a line that stays: a warning, what was resumed, where results are."""
        self._line(line)

    def _line(self, line: str) -> None:
        if self._live is not None:
            self._console.print(line, markup=False, highlight=False)
            return
        self._stream.write(line + "\n")
        self._stream.flush()

    def _plain_progress(self, what: str, done: int, total: int) -> None:
        """Write a line for each tenth, at most one per second; the end always, unless it was over within a second."""
        now = self._clock()
        tenth, last = self._tenths.setdefault(what, (0, now))
        reached = 10 * done // max(1, total)
        if reached < tenth:  # begun again before it was over
            tenth = 0
        if (reached > tenth and now - last >= _QUIET_S) or (done >= total and tenth):
            self._line(f"{what}: {done} of {total}")
            self._tenths[what] = (reached, now)
        if done >= total:
            del self._tenths[what]

    def _draw(self, *, now: bool = False) -> None:
        if self._live is None or (not now and self._clock() - self._drawn_at < _REFRESH_S):
            return
        self._drawn_at = self._clock()
        parts: list[rich.table.Table | Progress | Text] = []
        if self._rows:
            parts.append(self._history())
        if self._ends:
            failed = sum(trajectory.end is End.FAILED for trajectory in self._ends)
            won = sum(trajectory.success for trajectory in self._ends)
            parts.append(
                Text(
                    f"playing: {len(self._ends)} episodes ended, {won} won"
                    + (f", {failed} failed" if failed else "")
                )
            )
        if self._tasks:
            parts.append(self._bars)
        self._live.update(Group(*parts), refresh=True)

    def _history(self) -> rich.table.Table:
        """Return the latest updates, without the columns that none of them has."""
        titles = ("update", *(title for _, title, _ in _SHOWN))
        shown = [place for place in range(len(titles)) if any(row[place] != "-" for row in self._rows)]
        table = rich.table.Table(box=None)
        for place in shown:
            table.add_column(titles[place], justify="right" if place else "left")
        for row in self._rows:
            table.add_row(*(Text(row[place]) for place in shown))
        return table
