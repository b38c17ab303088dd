"""Demonstrations where the agent has nothing to learn from itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from agentrl.errors import ConfigError
from agentrl.policy import ExpertPolicy, Policy
from agentrl.recipe import Stage
from agentrl.sources.guided import Guided, Lesson, again, needs_given, needs_origin, place
from agentrl.types import ScoredGroup, stand_in


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationGate(Guided):
    """Imitate where at most ``gate`` of a group succeeded, reinforce where more did (HPT, Lv et al. 2025, "unified post-training").

    A group under the gate gives way to one demonstration of its task by ``policy``; where that does not succeed, the group stays. The
    published gates are 0 and 2 of 8 successes, with an imitation weight of 1, or 0.3 for a small model: ``Given(..., given)``.

    Counted: ``guidance/gated`` groups at or under the gate, ``guidance/demonstrated`` of them that gave way.

    Raises:
        ConfigError: there was something to demonstrate, and not one demonstration could be played.
    """

    gate: float = 0.0
    policy: Policy = field(default_factory=ExpertPolicy)

    def misfits(self, stage: Stage) -> Iterator[str]:
        """Ask for a loss and an advantage of its own for what is demonstrated."""
        if not 0.0 <= self.gate < 1.0:
            yield f"source.gate is {self.gate:g}; it is a share of successes, at least 0 and below 1"
        yield from needs_origin(self, stage)
        yield from needs_given(self, stage)

    def imitates(self, successes: int, episodes: int) -> bool:
        """Return whether a group is to be replaced.

        >>> [DemonstrationGate(source=None, gate=0.25).imitates(n, 8) for n in (0, 2, 3)]
        [True, True, False]
        """
        return successes <= self.gate * episodes

    async def guide(self, lesson: Lesson, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Replace the groups that a demonstration is there for."""
        gated = [
            group
            for group in groups
            if self.imitates(sum(scored.trajectory.success for scored in group), len(group))
        ]
        found = await lesson.play([again(group[0]) for group in gated], policy=self.policy)
        if gated and not found:
            raise ConfigError(
                f"none of {len(gated)} demonstrations could be played; the last attempt: {lesson.collected.failures[-1].error}. "
                "Give DemonstrationGate another policy, or switch the environment's expert on"
            )
        shown = {}
        for (task, sample), scored in found.items():
            if scored.trajectory.success:
                trajectory = lesson.ground.renderer.tokenise(scored.trajectory)
                shown[task, stand_in(sample)] = (replace(scored, trajectory=trajectory),)
        lesson.count("guidance/gated", len(gated))
        lesson.count("guidance/demonstrated", len(shown))
        return [shown.get(place(group[0]), group) for group in groups]
