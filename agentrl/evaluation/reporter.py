"""Reporters receive the events of a run. The default ignores them; the command line's reporter shows them."""

from __future__ import annotations

from collections.abc import Mapping

from agentrl.evaluation.report import Report
from agentrl.types import Trajectory


class Reporter:
    """Receives the events of a run. Every method does nothing; a subclass overrides those it needs."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Receive the progress of a slow operation: ``done`` of ``total`` steps of ``what`` are finished."""

    def episode(self, trajectory: Trajectory) -> None:
        """Receive an episode when it ends, including failed attempts."""

    def update(self, update: int, stage: str, values: Mapping[str, float]) -> None:
        """Receive the metrics of an update, the same that ``MetricsLog.write`` receives."""

    def report(self, report: Report) -> None:
        """Receive the result of an evaluation."""

    def say(self, line: str) -> None:
        """Receive a line of text: a warning, or a note such as which update a run resumes at."""
