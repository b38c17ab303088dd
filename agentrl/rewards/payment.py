"""Payment: a stage's reward, then transforms of the ledger, then filters over groups."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from agentrl.errors import Unjudged
from agentrl.rewards import Reward, Transform, check_ledger
from agentrl.samplers import Filter
from agentrl.types import Group, Json, Ledger, Scored, ScoredGroup, Trajectory

Gauges = dict[str, list[float]]
"""Numbers that transforms report about their decisions, by name: one number for each episode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """How trajectories become paid groups: a reward, then transforms of ledgers, then filters of groups."""

    reward: Reward
    """Makes the ledger of each episode."""
    transforms: tuple[Transform, ...] = ()
    """Change the ledger of each episode, in this order."""
    filters: tuple[Filter, ...] = ()
    """Choose which paid groups are kept, in this order."""

    def pay(self, groups: Sequence[Group]) -> list[ScoredGroup]:
        """Return the groups that every filter keeps, with the ledger of each episode."""
        return self.keep(self.score(groups))

    async def judge(self, groups: Sequence[Group]) -> tuple[list[Group], dict[str, float]]:
        """Let the reward ask its judges, if it has any, and leave out episodes that could not be judged.

        Return the groups without those episodes, and counts of questions and episodes by metric name. There
        is one group for each of ``groups``; it is empty if none of its episodes could be judged.
        """
        counts = dict(await self.reward.ask(groups))
        judged = [tuple(trajectory for trajectory in group if self._judged(trajectory)) for group in groups]
        unjudged = sum(map(len, groups)) - sum(map(len, judged))
        if counts or unjudged:
            counts["judge/unjudged"] = float(unjudged)
        return judged, counts

    def _judged(self, trajectory: Trajectory) -> bool:
        try:
            self.reward(trajectory)
        except Unjudged:
            return False
        return True

    def score(self, groups: Sequence[Group], gauges: Gauges | None = None) -> list[ScoredGroup]:
        """Return the groups with the ledger of each episode.

        If ``gauges`` are passed, what the transforms report about each episode is added to them.
        """
        return [
            tuple(Scored(trajectory, self._ledger(trajectory, gauges)) for trajectory in group)
            for group in groups
        ]

    def keep(self, scored: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Return the groups that every filter keeps."""
        kept = list(scored)
        for chosen in self.filters:
            kept = chosen(kept)
        return kept

    @property
    def remembering(self) -> list[Transform]:
        """The transforms that have a state: they learn from update to update."""
        return [transform for transform in self.transforms if transform.remembers]

    def observe(self, gauges: Gauges) -> list[Mapping[str, Json]]:
        """Show the mean gauges of a paid update to the transforms that learn, and return their new states."""
        means = {name: fmean(values) for name, values in gauges.items()}
        for transform in self.remembering:
            transform.observe(means)
        return self.memory()

    def memory(self) -> list[Mapping[str, Json]]:
        """Return the states of the transforms that learn, in the form that ``recall`` takes."""
        return [copy.deepcopy(transform.state_dict()) for transform in self.remembering]

    def recall(self, memory: Sequence[Mapping[str, Json]]) -> None:
        """Restore the states of the transforms that learn, as the method ``memory`` returned them."""
        for transform, state in zip(self.remembering, memory, strict=True):
            transform.load_state_dict(state)

    def _ledger(self, trajectory: Trajectory, gauges: Gauges | None) -> Ledger:
        ledger = self.reward(trajectory)
        for transform in self.transforms:
            if gauges is not None:
                for name, value in transform.gauge(trajectory, ledger).items():
                    gauges.setdefault(name, []).append(value)
            ledger = transform(trajectory, ledger)
        return check_ledger(ledger, trajectory)
