"""What a run tells while it goes on. The reporter that says nothing is the default; the command line has one that draws."""

from __future__ import annotations

from collections.abc import Mapping

from agentrl.evaluation.report import Report
from agentrl.types import Trajectory


class Reporter:
    """Hears how a run goes. Each method does nothing: a subclass overrides those that it wants to hear."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Hear that ``done`` of ``total`` steps of something slow are made."""

    def episode(self, trajectory: Trajectory) -> None:
        """Hear of an episode that ended, failed attempts included."""

    def update(self, update: int, stage: str, values: Mapping[str, float]) -> None:
        """Hear the metrics of an update, as ``MetricsLog.write`` gets them."""

    def report(self, report: Report) -> None:
        """Hear the result of an evaluation."""

    def say(self, line: str) -> None:
        """Hear a warning, or what was resumed."""
