"""Privileged play: the agent plays with privileged information, and learns to act the same without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from agentrl.errors import ConfigError
from agentrl.learner.spec import Information, expert_plan
from agentrl.recipe import Collected, Playground, Stage
from agentrl.render import Renderer
from agentrl.rewards.payment import Payment
from agentrl.rollout import WithPreamble
from agentrl.sources.guided import Guided, Lesson, loss_problems, without_preamble
from agentrl.types import Action, End, Observation, Scored, ScoredGroup, Task, Trajectory, Turn, stand_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Privileged(Guided):
    """Play with ``information`` in the prompt, and train the same tokens with it and without it (pi-Distill).

    The method is written from published descriptions, which agree with each other. One network has two
    prompts: the teacher ``pi^T = pi(.|s, I)`` plays; the student is ``pi^S = pi(.|s)``. With
    ``J_T = E_T[R] - beta KL(pi^T || pi^S)``, in which the student is held fixed, and
    ``J_S = E_T[(pi^S / pi^T) R] - beta KL(pi^T || pi^S)``, in which the teacher is held fixed,
    ``alpha J_T + (1 - alpha) J_S`` is maximised if the stage has

    ```python
    modifiers=(TowardStudent(beta),),
    objective=Objective(
        loss=ByOrigin(own=Clip(), given=FromTeacher(beta), own_weight=alpha, given_weight=1 - alpha)
    ),
    ```

    Each group of teacher episodes is followed by a group of student episodes: the same tokens with the
    teacher's log-probabilities, in the context without the information. The rewards are the same, so the
    credit is too. ``alpha = 0.5`` is the most robust; 0 trains the student alone. Information that tells the
    agent what to do works best. It is put before the first observation, so a renderer with a short
    ``history`` drops it. No other guidance may wrap this one. ``rollout/success`` measures the teacher,
    evaluations measure the student.

    Metrics: ``guidance/untold`` counts the episodes for which there was no information.

    Raises:
        ConfigError: there was no information for any episode of an update.
    """

    filters_last: ClassVar[bool] = False
    information: Information = expert_plan
    """A function from an episode's beginning to the text that only the teacher sees. An empty text
    means that there is no information."""

    def own_problems(self, stage: Stage) -> Iterator[str]:
        """Check that this source is outermost and that the stage has a loss for students.

        Guidance that wrapped it could separate students from their teachers.
        """
        if stage.source is not self:
            yield f"{type(stage.source).__name__} wraps Privileged; Privileged must be the outermost source"
        yield from loss_problems(self, stage)

    async def collect(
        self, ground: Playground, payment: Payment, *, name: str, update: int, min_group: int
    ) -> Collected:
        """Collect the groups of teacher episodes, and add a group of student episodes after each."""
        informed = replace(ground, host=WithPreamble(ground.host, self._preamble))
        collected = await self.source.collect(
            informed, payment, name=name, update=update, min_group=min_group
        )
        teachers = [scored for group in collected.groups for scored in group]
        uninformed = [scored for scored in teachers if not self._preamble_of(scored.trajectory)]
        if teachers and len(uninformed) == len(teachers):
            raise ConfigError(
                f"there is no information for any episode of update {update}, for example of task "
                f"{uninformed[0].trajectory.task.id!r}: its observations carry no plan; switch on the "
                "environment's expert, or set Privileged.information to another function"
            )
        collected.counts["guidance/untold"] = float(len(uninformed))
        groups: list[ScoredGroup] = []
        for group in collected.groups:
            students = tuple(self._student(scored, ground.renderer) for scored in group)
            groups += [group, students]
        collected.groups = groups
        return collected

    async def guide(self, lesson: Lesson, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Return the groups as they are: ``collect`` gave the information before the episodes were played."""
        return list(groups)

    def _preamble(self, task: Task, observation: Observation) -> str:
        """Return the information for an episode of which only the first observation is known."""
        return self.information(Trajectory(task, (Turn(observation, Action("")),), End.TRUNCATED))

    def _preamble_of(self, trajectory: Trajectory) -> str:
        """Return the information that the episode was played with; empty if the episode has no turns."""
        if not trajectory.turns:
            return ""
        return self._preamble(trajectory.task, trajectory.turns[0].observation)

    def _student(self, scored: Scored, renderer: Renderer) -> Scored:
        """Return the student of a teacher's episode."""
        preamble = self._preamble_of(scored.trajectory)
        trajectory = without_preamble(scored.trajectory, preamble, renderer)
        return replace(scored, trajectory=replace(trajectory, sample=stand_in(trajectory.sample)))
