"""The reporter of the command line: a live view of a run in a terminal, plain lines elsewhere.

Plain lines do not flood a log file: there is one per update, one per evaluation, and one per tenth of a slow
task.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self, TextIO

import rich.table
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from agentrl.commands.tables import number, with_interval
from agentrl.evaluation.report import Report
from agentrl.evaluation.reporter import Reporter
from agentrl.types import End, Trajectory

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


class ConsoleReporter(Reporter):
    """Shows the progress of a run: a live table with progress bars in a terminal, plain lines elsewhere.

    A context manager. It redraws only when it is called and has no thread, so that the process can be forked
    and stopped in a debugger.
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
        """Show that ``done`` of ``total`` steps of the slow task ``what`` are complete."""
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
        """Count an episode that ended; the count is shown and starts anew after the next update or report."""
        if self._live is not None:
            self._ends.append(trajectory)
            self._draw()

    def update(self, update: int, stage: str, values: Mapping[str, float]) -> None:
        """Show the metrics of an update; the arguments are those of ``MetricsLog.write``."""
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
        line = f"evaluation {report.name}: success {with_interval(found['success'], '.2f')}"
        line += f", return {number(found['return'].mean, '.2f')}"
        line += f", turns {number(found['turns'].mean, '.1f')}, {report.num_episodes} episodes"
        self._line(line + (f", {report.lost} lost" if report.lost else ""))

    def say(self, line: str) -> None:
        """Write a line that stays on the screen, for example a warning or that a run was resumed."""
        self._line(line)

    def _line(self, line: str) -> None:
        if self._live is not None:
            self._console.print(line, markup=False, highlight=False)
            return
        self._stream.write(line + "\n")
        self._stream.flush()

    def _plain_progress(self, what: str, done: int, total: int) -> None:
        """Write a line for each tenth of the task that is complete, at most one per second.

        The last line is written only if there was an earlier one or the task took longer than a second.
        """
        now = self._clock()
        tenth, last = self._tenths.setdefault(what, (0, now))
        reached = 10 * done // max(1, total)
        if reached < tenth:  # the task was restarted before it was complete
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
        """Return a table of the latest updates, without columns that are empty in all of them."""
        titles = ("update", *(title for _, title, _ in _SHOWN))
        shown = [index for index in range(len(titles)) if any(row[index] != "-" for row in self._rows)]
        table = rich.table.Table(box=None)
        for index in shown:
            table.add_column(titles[index], justify="right" if index else "left")
        for row in self._rows:
            table.add_row(*(Text(row[index]) for index in shown))
        return table
