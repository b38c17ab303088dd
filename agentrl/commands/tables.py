"""Tables of results: drawn in a terminal, plain aligned lines without colour codes elsewhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO

import rich.box
import rich.table
from rich.console import Console, Group
from rich.text import Text

from agentrl.evaluation.report import Comparison, Report
from agentrl.evaluation.statistics import Interval


@dataclass(frozen=True, slots=True)
class Table:
    """A table to be shown, with ``notes`` below it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    left: tuple[int, ...] = (0,)
    """Indices of the columns of text, aligned left; the other columns are numbers, aligned right."""


def show(table: Table, stream: TextIO | None = None) -> None:
    """Write a table to ``stream`` (by default standard output): drawn in a terminal, plain elsewhere."""
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
    widths = [max(len(line[index]) for line in lines) for index in range(len(table.columns))]
    aligned = [
        "  ".join(
            cell.ljust(width) if index in table.left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join(line.rstrip() for line in (table.title, *aligned, *table.notes))


_RESULTS = (("success", ".2f"), ("return", ".2f"), ("turns", ".1f"), ("tokens", ".0f"), ("invalid", ".3f"))


def results_table(reports: Mapping[str, Report], *, title: str = "results") -> Table:
    """Return one row per report, in order: means over tasks, and success with its 95% interval.

    ``pass@k`` has a column if every report has it.
    """
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
    """Return one row per measure: means of A and B, paired difference with its 95% interval, p-value."""
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
        f"paired over {comparison.num_tasks} tasks; intervals are 95%; p is for no difference, two-sided, "
        "not corrected for multiple tests"
    ]
    if comparison.only_a or comparison.only_b:
        notes.append(
            f"left out: {comparison.only_a} tasks that only A played, {comparison.only_b} that only B played"
        )
    columns = ("measure", "A", "B", "B - A", "p", "test")
    return Table(f"A = {comparison.a}, B = {comparison.b}", columns, tuple(rows), tuple(notes))


def number(value: float, form: str) -> str:
    """Return ``value`` in the format ``form``, or a dash if it is NaN."""
    return "-" if math.isnan(value) else f"{value:{form}}"


def with_interval(interval: Interval, form: str) -> str:
    """Return a mean with its interval, or without it if the interval is not finite.

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
    for index, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if index in table.left else "right")
    for row in table.rows:
        drawn.add_row(*map(Text, row))  # Text: brackets in a name must not be read as markup
    return Group(drawn, *map(Text, table.notes))
