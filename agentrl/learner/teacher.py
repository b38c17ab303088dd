"""Teachers at work: what they think of the policy's own tokens is measured.

A teacher sees the same episode with something before it that the policy does not see (a plan, a hint, a solution), or is another model, or
both. Its log-probabilities are measured by a second pass over the same tokens: what stands before shifts their places and nothing else, so
no token is ever made again from text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from agentrl.learner.contract import Learner, MakeLearner
from agentrl.learner.optimiser import Compute
from agentrl.learner.spec import Teacher
from agentrl.render import Renderer
from agentrl.types import IntArray, Observation, Scored, ScoredGroup, Trajectory, ints


def open_teacher(
    teacher: Teacher, make: MakeLearner, compute: Compute, *, vocab_size: int, renderer: Renderer
) -> OpenTeacher:
    """Load the teacher's own model, if it has one."""
    if teacher.model is None:
        return OpenTeacher(teacher, renderer, None)
    model = replace(teacher.model, lora=None)
    return OpenTeacher(
        teacher, renderer, make(model, compute, vocab_size=vocab_size, renderer=renderer, seed=0)
    )


@dataclass(frozen=True, slots=True)
class OpenTeacher:
    """A teacher at work."""

    spec: Teacher
    renderer: Renderer
    learner: Learner | None

    def annotate(
        self, groups: Sequence[ScoredGroup], policy: Learner, temperature: float
    ) -> list[ScoredGroup]:
        """Return the groups with ``teacher_logprobs``."""
        told = [
            tuple(informed(scored, self._tokens(scored.trajectory)) for scored in group) for group in groups
        ]
        measured = (self.learner or policy).annotate(told, frozenset({"old_logprobs"}), temperature)
        return [
            tuple(
                scored.with_measured(teacher_logprobs=one.measured.old_logprobs)
                for scored, one in zip(group, found, strict=True)
            )
            for group, found in zip(groups, measured, strict=True)
        ]

    def _tokens(self, trajectory: Trajectory) -> IntArray:
        """Return the information's tokens: what a renderer puts before an action, without the tag that begins it."""
        text = self.spec.information(trajectory)
        if not text:
            return ints()
        told = self.renderer.prompt((), Observation.text(text)).tokens
        nothing = self.renderer.prompt((), Observation.text("")).tokens
        return told[: len(told) - _common_tail(told, nothing)]


def informed(scored: Scored, tokens: IntArray) -> Scored:
    """Return the trajectory with ``tokens`` at the beginning of every context."""
    turns, begun = [], False
    for turn in scored.trajectory.turns:
        if len(turn.action.tokens) and (turn.action.fresh or not begun):
            turn = replace(
                turn, action=replace(turn.action, prompt=ints(np.concatenate([tokens, turn.action.prompt])))
            )
            begun = True
        turns.append(turn)
    return replace(scored, trajectory=replace(scored.trajectory, turns=tuple(turns)))


def _common_tail(one: IntArray, other: IntArray) -> int:
    length = min(len(one), len(other))
    same = one[::-1][:length] == other[::-1][:length]
    return int(np.logical_and.accumulate(same).sum())
