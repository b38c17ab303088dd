"""Hints where a whole group failed, at rising levels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agentrl.errors import ConfigError
from agentrl.learner.spec import Information
from agentrl.recipe import Stage
from agentrl.sources.guided import Guided, Lesson, again, place
from agentrl.types import ScoredGroup, Trajectory, stand_in


@dataclass(frozen=True, slots=True)
class PlanShare:
    """Tell the first ``share`` of the plan that an expert had before the first action, at least one action of it."""

    share: float

    def __call__(self, trajectory: Trajectory) -> str:
        """Return the hint; empty where there is no plan."""
        plan = trajectory.turns[0].observation.plan if trajectory.turns else ()
        return "hint: " + "; ".join(plan[: math.ceil(self.share * len(plan))]) + "\n" if plan else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaffold(Guided):
    """Where all of a group failed, play again with a hint, the smallest first; a success takes the place of a failure (Scaf-GRPO, 2025).

    The hint is observation, so the success is trained in the context that it was sampled in, and compared with the failures of its group.
    Where no level helps, the group stays as it is. The published method has three kinds of hints with four levels each, written beforehand;
    here the levels are parts of the expert's plan unless ``hints`` says otherwise. Agents are evaluated without any.

    Counted: ``guidance/stuck`` groups that all failed, ``guidance/hinted`` of them that a hint helped, ``guidance/hint_plays`` episodes.

    Raises:
        ConfigError: groups failed, and there is no hint for any of them: the environment knows no plan.
    """

    hints: tuple[Information, ...] = (PlanShare(0.25), PlanShare(0.5), PlanShare(0.75), PlanShare(1.0))
    since: int = 0
    """The stage's updates without hints; the paper's are the first 15 percent."""

    def misfits(self, stage: Stage) -> Iterator[str]:
        """Look for hints, and whether they begin within the stage."""
        if not self.hints:
            yield "source.hints is empty; Scaffold needs at least one"
        if self.since >= stage.updates:
            yield f"source.since is {self.since}; the stage has {stage.updates} updates, so no hint would ever be given"

    async def guide(self, lesson: Lesson, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Replace the last failure of each group that a hint helps."""
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
        hinted = 0
        for level, hint in enumerate(self.hints):
            told = {index: hint(groups[index][-1].trajectory) for index in stuck}
            draws = [again(groups[index][-1], told=text) for index, text in told.items() if text]
            hinted += len(draws)
            found = await lesson.play(draws, part=level)
            for index in list(told):
                task, sample = place(groups[index][-1])
                success = found.get((task, stand_in(sample)))
                if success is not None and success.trajectory.success:
                    result[index] = (*groups[index][:-1], success)
                    stuck.remove(index)
                    lesson.count("guidance/hinted")
        lesson.count("guidance/hint_plays", hinted)
        if stuck and not hinted:
            raise ConfigError(
                f"task {groups[stuck[0]][-1].trajectory.task.id!r} was never solved and there is no hint for it: its observations carry no "
                "plan; switch the environment's expert on, or give Scaffold hints of your own"
            )
        return result
