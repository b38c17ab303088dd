"""Measures a teacher's log-probabilities of the policy's own tokens.

A teacher sees the same episode with additional information before it (a plan, a hint, a solution), or is
another model, or both. Its log-probabilities are measured by a second pass over the same tokens. The
information only shifts the positions of the tokens, so no token is ever made again from text.
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
    """Open a teacher, and load its own model if it has one."""
    if teacher.model is None:
        return OpenTeacher(teacher, renderer, None)
    model = replace(teacher.model, lora=None)
    return OpenTeacher(
        teacher, renderer, make(model, compute, vocab_size=vocab_size, renderer=renderer, seed=0)
    )


@dataclass(frozen=True, slots=True)
class OpenTeacher:
    """A teacher that is ready to annotate episodes."""

    spec: Teacher
    renderer: Renderer
    learner: Learner | None
    """Holds the teacher's own model; if it is ``None``, the policy's learner measures instead."""

    def annotate(
        self, groups: Sequence[ScoredGroup], policy: Learner, temperature: float
    ) -> list[ScoredGroup]:
        """Return the groups with ``teacher_logprobs`` measured for every trajectory."""
        informed = [
            tuple(with_information(scored, self._tokens(scored.trajectory)) for scored in group)
            for group in groups
        ]
        measured = (self.learner or policy).annotate(informed, frozenset({"old_logprobs"}), temperature)
        return [
            tuple(
                scored.with_measured(teacher_logprobs=one.measured.old_logprobs)
                for scored, one in zip(group, found, strict=True)
            )
            for group, found in zip(groups, measured, strict=True)
        ]

    def _tokens(self, trajectory: Trajectory) -> IntArray:
        """Return the tokens of the information, without the tag that the renderer adds to begin an action."""
        text = self.spec.information(trajectory)
        if not text:
            return ints()
        full = self.renderer.prompt((), Observation.text(text)).tokens
        empty = self.renderer.prompt((), Observation.text("")).tokens
        return full[: len(full) - _common_tail(full, empty)]


def with_information(scored: Scored, tokens: IntArray) -> Scored:
    """Return the trajectory with the information ``tokens`` put before the first token of every context."""
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
