"""Demonstrations for groups with so few successes that the agent cannot learn from its own episodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from agentrl.errors import ConfigError
from agentrl.policy import ExpertPolicy, Policy
from agentrl.recipe import Stage
from agentrl.sources.guided import Guided, Lesson, credit_problems, draw_again, episode_key, loss_problems
from agentrl.types import ScoredGroup, stand_in


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationGate(Guided):
    """Imitate demonstrations of tasks that the agent rarely solves, and reinforce the others (HPT).

    HPT is Lv et al. 2025, "unified post-training". A group in which at most a share ``gate`` of the episodes
    succeeded is replaced by one demonstration of its task; if the demonstration does not succeed, the group
    stays. The published gates are 0 and 2 successes of 8, with an imitation weight of 1, or 0.3 for a small
    model. The weight is the argument ``given`` of ``Given``.

    Metrics: ``guidance/gated`` counts the groups at or under the gate, ``guidance/demonstrated`` counts
    how many of them were replaced.

    Raises:
        ConfigError: groups are at or under the gate, and none of their demonstrations could be played.
    """

    gate: float = 0.0
    """A group is replaced if its share of successes is at most this; at least 0 and below 1."""
    policy: Policy = field(default_factory=ExpertPolicy)
    """Plays the demonstrations."""

    def own_problems(self, stage: Stage) -> Iterator[str]:
        """Check ``gate``, and that the stage has a loss and an advantage for demonstrations."""
        if not 0.0 <= self.gate < 1.0:
            yield f"source.gate is {self.gate:g}; it is a share of successes, at least 0 and below 1"
        yield from loss_problems(self, stage)
        yield from credit_problems(self, stage)

    def imitates(self, successes: int, episodes: int) -> bool:
        """Return whether a group with ``successes`` successes among its ``episodes`` is replaced.

        >>> [DemonstrationGate(source=None, gate=0.25).imitates(n, 8) for n in (0, 2, 3)]
        [True, True, False]
        """
        return successes <= self.gate * episodes

    async def guide(self, lesson: Lesson, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Replace the groups at or under the gate whose demonstration succeeded."""
        gated = [
            group
            for group in groups
            if self.imitates(sum(scored.trajectory.success for scored in group), len(group))
        ]
        before = len(lesson.collected.failures)
        found = await lesson.play([draw_again(group[0]) for group in gated], policy=self.policy)
        if gated and not found:
            failed = lesson.collected.failures[before:]
            fate = f"played; the last attempt: {failed[-1].error}" if failed else "judged"
            raise ConfigError(
                f"none of {len(gated)} demonstrations could be {fate}. Give "
                "DemonstrationGate another policy, or switch on the environment's expert"
            )
        demonstrated = {}
        for (task, sample), scored in found.items():
            if scored.trajectory.success:
                trajectory = lesson.ground.renderer.tokenise(scored.trajectory)
                demonstrated[task, stand_in(sample)] = (replace(scored, trajectory=trajectory),)
        lesson.count("guidance/gated", len(gated))
        lesson.count("guidance/demonstrated", len(demonstrated))
        return [demonstrated.get(episode_key(group[0]), group) for group in groups]
