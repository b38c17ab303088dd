"""Privileged play: the agent plays with information, and learns to do the same without."""

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
from agentrl.sources.guided import Guided, Lesson, needs_origin, untold
from agentrl.types import Action, End, Observation, Scored, ScoredGroup, Task, Trajectory, Turn, stand_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Privileged(Guided):
    """Play with ``information`` in the prompt, and train the same tokens under both prompts (pi-Distill; from descriptions that agree).

    One network, two prompts: the teacher ``pi^T = pi(.|s, I)`` plays; the student is ``pi^S = pi(.|s)``. With
    ``J_T = E_T[R] - beta KL(pi^T || pi^S)`` and ``J_S = E_T[(pi^S / pi^T) R] - beta KL(pi^T || pi^S)``, each with its other side held
    fixed, ``alpha J_T + (1 - alpha) J_S`` is maximised by

    ```python
    modifiers=(TowardStudent(beta),),
    objective=Objective(loss=ByOrigin(own=Clip(), given=FromTeacher(beta), own_weight=alpha, given_weight=1 - alpha)),
    ```

    Each group is followed by its students: the same tokens, and their teacher's log-probabilities, in the context without the information;
    with the same rewards they get the same credit. ``alpha = 0.5`` is the most robust; 0 trains the student alone. Information that says
    what to *do* serves best. It stands before the first observation, so a renderer with a short ``history`` loses it. Let no other
    guidance stand around this one; ``rollout/success`` is the teacher's, and evaluation the student's.

    Counted: ``guidance/untold`` episodes that there was no information for.

    Raises:
        ConfigError: there was no information for any episode of an update.
    """

    filters_last: ClassVar[bool] = False
    information: Information = expert_plan

    def misfits(self, stage: Stage) -> Iterator[str]:
        """Ask for a loss of its own for students; refuse guidance around it, which would part teachers from students."""
        if stage.source is not self:
            yield f"{type(stage.source).__name__} stands around Privileged; it must be the outermost source"
        yield from needs_origin(self, stage)

    async def collect(
        self, ground: Playground, payment: Payment, *, name: str, update: int, min_group: int
    ) -> Collected:
        """Collect the teacher's groups, and add the students'."""
        told = replace(ground, host=WithPreamble(ground.host, self._tell))
        collected = await self.source.collect(told, payment, name=name, update=update, min_group=min_group)
        untold_episodes = [
            scored for group in collected.groups for scored in group if not self._told(scored.trajectory)
        ]
        if collected.groups and len(untold_episodes) == sum(map(len, collected.groups)):
            raise ConfigError(
                f"there is no information for any episode of update {update}, such as of task {untold_episodes[0].trajectory.task.id!r}: "
                "its observations carry no plan; switch the environment's expert on, or give Privileged another information"
            )
        collected.counts["guidance/untold"] = float(len(untold_episodes))
        collected.groups = [
            each
            for group in collected.groups
            for each in (group, tuple(self._student(scored, ground.renderer) for scored in group))
        ]
        return collected

    async def guide(self, lesson: Lesson, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Add nothing: what is told here is told from the start."""
        return list(groups)

    def _tell(self, task: Task, observation: Observation) -> str:
        return self.information(Trajectory(task, (Turn(observation, Action("")),), End.TRUNCATED))

    def _told(self, trajectory: Trajectory) -> str:
        return self._tell(trajectory.task, trajectory.turns[0].observation) if trajectory.turns else ""

    def _student(self, scored: Scored, renderer: Renderer) -> Scored:
        trajectory = untold(scored.trajectory, self._told(scored.trajectory), renderer)
        return replace(scored, trajectory=replace(trajectory, sample=stand_in(trajectory.sample)))
