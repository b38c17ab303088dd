"""Hints for groups in which every episode failed, at rising levels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from agentrl.errors import ConfigError
from agentrl.learner.spec import Information
from agentrl.recipe import Stage
from agentrl.sources.guided import Guided, Lesson, draw_again, episode_key
from agentrl.types import Scored, ScoredGroup, Trajectory, stand_in


@dataclass(frozen=True, slots=True)
class PlanShare:
    """A hint: the first part, at least one action, of the plan that an expert makes at the start."""

    share: float
    """Share of the plan's actions, above 0 and at most 1."""

    def __call__(self, trajectory: Trajectory) -> str:
        """Return the hint; empty if the first observation has no plan."""
        plan = trajectory.turns[0].observation.plan if trajectory.turns else ()
        if not plan:
            return ""
        return "hint: " + "; ".join(plan[: math.ceil(self.share * len(plan))]) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaffold(Guided):
    """Play again with a hint if a whole group failed, and with larger hints until one helps (Scaf-GRPO).

    Scaf-GRPO was published in 2025. The first success replaces a failure of the group. The hint is part of
    the observation, so the success is trained in the context that it was sampled in, and compared with the
    failures of its group. If no level leads to a success, the group stays as it is. The published method has
    three kinds of hints with four levels each, written in advance. Here, by default, the levels are
    growing parts of the expert's plan. Agents are evaluated without hints.

    Metrics: ``guidance/stuck`` counts the groups in which every episode failed, ``guidance/hinted`` counts
    how many of them a hint led to a success, and ``guidance/hint_plays`` counts the episodes that were played
    with a hint.

    Raises:
        ConfigError: groups failed, and there is no hint for any of them: the environment has no plan.
    """

    hints: tuple[Information, ...] = (PlanShare(0.25), PlanShare(0.5), PlanShare(0.75), PlanShare(1.0))
    """One function per level, from the smallest hint to the largest.

    Each takes a failed trajectory and returns the hint's text; an empty text means that there is no hint."""
    since: int = 0
    """Number of updates at the start of the stage without hints. The paper uses the first 15 percent."""

    def own_problems(self, stage: Stage) -> Iterator[str]:
        """Check that there are hints, and that they begin within the stage."""
        if not self.hints:
            yield "source.hints is empty; Scaffold needs at least one"
        if self.since >= stage.updates:
            yield (
                f"source.since is {self.since}; the stage has {stage.updates} updates, so no hint would ever "
                "be given; choose a smaller number"
            )

    async def guide(self, lesson: Lesson, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """In each group in which a hint leads to a success, replace the last failure with that success."""
        result = list(groups)
        if lesson.update < self.since:
            return result
        stuck = [
            index
            for index, group in enumerate(groups)
            if not any(scored.trajectory.success for scored in group)
        ]
        lesson.count("guidance/stuck", len(stuck))
        lesson.count("guidance/hinted", 0)
        num_played = 0
        for level, hint in enumerate(self.hints):
            failures = [groups[index][-1] for index in stuck]
            hints = [hint(failure.trajectory) for failure in failures]
            draws = [
                draw_again(failure, preamble=text)
                for failure, text in zip(failures, hints, strict=True)
                if text
            ]
            num_played += len(draws)
            found = await lesson.play(draws, part=level)
            still_stuck = []
            for index in stuck:
                success = _success_for(groups[index][-1], found)
                if success is None:
                    still_stuck.append(index)
                else:
                    result[index] = (*groups[index][:-1], success)
                    lesson.count("guidance/hinted")
            stuck = still_stuck
        lesson.count("guidance/hint_plays", num_played)
        if stuck and not num_played:
            task = groups[stuck[0]][-1].trajectory.task
            raise ConfigError(
                f"task {task.id!r} was never solved and there is no hint for it: its observations carry no "
                "plan; switch on the environment's expert, or give Scaffold hints of your own"
            )
        return result


def _success_for(failure: Scored, found: Mapping[tuple[str, int], Scored]) -> Scored | None:
    """Return the episode that stands in for ``failure``, if it succeeded."""
    task, sample = episode_key(failure)
    scored = found.get((task, stand_in(sample)))
    return scored if scored is not None and scored.trajectory.success else None
