"""Payment: a stage's reward, then transforms of its ledger, then filters over groups."""

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
"""What transforms told, one number for each episode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """How trajectories become paid groups: a reward, then transforms of its ledger, then filters over groups."""

    reward: Reward
    transforms: tuple[Transform, ...] = ()
    filters: tuple[Filter, ...] = ()

    def pay(self, groups: Sequence[Group]) -> list[ScoredGroup]:
        """Return the groups with their ledgers, and only those that every filter keeps."""
        return self.keep(self.score(groups))

    async def inquire(self, groups: Sequence[Group]) -> tuple[list[Group], dict[str, float]]:
        """Let the reward ask whoever it has to; return the groups without the episodes that nobody could judge, and counts."""
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
        """Return the groups with their ledgers; what transforms tell of their decisions is added to ``gauges``."""
        return [
            tuple(Scored(trajectory, self._ledger(trajectory, gauges)) for trajectory in group)
            for group in groups
        ]

    def keep(self, scored: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Return what every filter keeps."""
        kept = list(scored)
        for chosen in self.filters:
            kept = chosen(kept)
        return kept

    @property
    def remembering(self) -> list[Transform]:
        """The transforms that learn from update to update."""
        return [transform for transform in self.transforms if transform.remembers]

    def observe(self, gauges: Gauges) -> list[Mapping[str, Json]]:
        """Show the transforms that remember an update's gauges, once all of it is paid; return what they remember then."""
        means = {name: fmean(values) for name, values in gauges.items()}
        for transform in self.remembering:
            transform.observe(means)
        return self.memory()

    def memory(self) -> list[Mapping[str, Json]]:
        """Return what the transforms remember, as ``recall`` takes it back."""
        return [copy.deepcopy(transform.state_dict()) for transform in self.remembering]

    def recall(self, memory: Sequence[Mapping[str, Json]]) -> None:
        """Take back what the transforms remembered."""
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
