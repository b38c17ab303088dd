"""Refinements: a failure is criticised, and played again with the critique in the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from agentrl.learner.spec import Information
from agentrl.recipe import Stage
from agentrl.sources.guided import Guided, Lesson, again, needs_origin, place, untold
from agentrl.types import ScoredGroup, Trajectory, stand_in


def last_attempt(trajectory: Trajectory) -> str:
    """Criticise by the environment's own signals alone: what was done, what of it was refused, and that it failed."""
    said = [
        turn.action.text + (" (refused)" if turn.info.get("valid", 1.0) <= 0.0 else "")
        for turn in trajectory.turns
    ]
    return "failed before: " + "; ".join(said) + "\n" if said else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refined(Guided):
    """Add refinements to each group: failures played again with a critique in the prompt (Critique-GRPO, Zhang et al. 2025).

    A refinement is trained in the context *without* the critique: it is given, off-policy, and its loss is ``CritiqueShaped``:
    ``ByOrigin(own=Clip(), given=CritiqueShaped())``. It is compared within its group like any other; the published groups are seven
    episodes and one refinement. ``critique`` makes a text of a failed trajectory, such as a judge's words; empty: no refinement.

    Counted: ``guidance/refined`` refinements, ``guidance/refined_success`` of them that solved the task.
    """

    critique: Information = last_attempt
    refinements: int = 1
    """Most failures of a group that are refined."""

    def misfits(self, stage: Stage) -> Iterator[str]:
        """Ask for a loss of its own for refinements."""
        if self.refinements < 1:
            yield f"source.refinements is {self.refinements}; at least 1 is needed"
        yield from needs_origin(self, stage)

    async def guide(self, lesson: Lesson, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Add them at the end of their groups."""
        failed = [
            [scored for scored in group if not scored.trajectory.success][: self.refinements]
            for group in groups
        ]
        texts = {place(scored): self.critique(scored.trajectory) for chosen in failed for scored in chosen}
        draws = [
            again(scored, told=texts[place(scored)])
            for chosen in failed
            for scored in chosen
            if texts[place(scored)]
        ]
        found = await lesson.play(draws)
        result = []
        for group, chosen in zip(groups, failed, strict=True):
            refined = []
            for task, sample in map(place, chosen):
                if (scored := found.get((task, stand_in(sample)))) is not None:
                    trajectory = untold(scored.trajectory, texts[task, sample], lesson.ground.renderer)
                    refined.append(replace(scored, trajectory=trajectory))
            result.append((*group, *refined))
            lesson.count("guidance/refined", len(refined))
            lesson.count("guidance/refined_success", sum(scored.trajectory.success for scored in refined))
        return result
