"""Refinements: a failed episode is criticised, and its task is played again with the critique in view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from agentrl.learner.spec import Information
from agentrl.recipe import Stage
from agentrl.sources.guided import (
    Guided,
    Lesson,
    draw_again,
    episode_key,
    loss_problems,
    without_preamble,
)
from agentrl.types import ScoredGroup, Trajectory, stand_in


def last_attempt(trajectory: Trajectory) -> str:
    """Return a critique from the environment's signals alone: the actions, and which of them were refused."""
    actions = []
    for turn in trajectory.turns:
        refused = turn.info.get("valid", 1.0) <= 0.0
        actions.append(turn.action.text + (" (refused)" if refused else ""))
    if not actions:
        return ""
    return "failed before: " + "; ".join(actions) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refined(Guided):
    """Play failures again with a critique in the prompt, and add them to their groups (Critique-GRPO).

    Critique-GRPO is Zhang et al. 2025. A refinement is trained in the context *without* the critique: it is
    given and off-policy, and its loss is ``CritiqueShaped``, set with ``ByOrigin(own=Clip(),
    given=CritiqueShaped())``. Credit compares it with the other episodes of its group; the published groups
    hold seven episodes and one refinement.

    Metrics: ``guidance/refined`` counts the refinements, ``guidance/refined_success`` counts how many
    of them solved the task.
    """

    critique: Information = last_attempt
    """A function from a failed trajectory to its critique, such as a judge's words. An empty text means
    that there is no refinement."""
    refinements: int = 1
    """Maximum number of failures that are refined per group."""

    def own_problems(self, stage: Stage) -> Iterator[str]:
        """Check ``refinements``, and that the stage has a loss for them."""
        if self.refinements < 1:
            yield f"source.refinements is {self.refinements}; at least 1 is needed"
        yield from loss_problems(self, stage)

    async def guide(self, lesson: Lesson, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Add the refinements at the end of their groups."""
        failures = [
            [scored for scored in group if not scored.trajectory.success][: self.refinements]
            for group in groups
        ]
        critiques = {}
        draws = []
        for failure in chain.from_iterable(failures):
            critique = self.critique(failure.trajectory)
            critiques[episode_key(failure)] = critique
            if critique:
                draws.append(draw_again(failure, preamble=critique))
        found = await lesson.play(draws)
        result = []
        for group, chosen in zip(groups, failures, strict=True):
            refined = []
            for task, sample in map(episode_key, chosen):
                refinement = found.get((task, stand_in(sample)))
                if refinement is not None:
                    trajectory = without_preamble(
                        refinement.trajectory, critiques[task, sample], lesson.ground.renderer
                    )
                    refined.append(replace(refinement, trajectory=trajectory))
            result.append((*group, *refined))
            lesson.count("guidance/refined", len(refined))
            lesson.count("guidance/refined_success", sum(scored.trajectory.success for scored in refined))
        return result
