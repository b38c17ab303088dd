"""Teachers: whose opinion of the policy's own tokens is measured.

A teacher sees the same episode with something before it that the policy does not see (a plan, a hint, a solution), or is another model, or
both. Its log-probabilities are measured by a second pass over the same tokens: what stands before shifts their places and nothing else, so
no token is ever made again from text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from agentrl.model import ModelSpec, build_model
from agentrl.optimiser import Compute
from agentrl.render import Renderer
from agentrl.types import IntArray, Observation, Scored, ScoredGroup, Trajectory, ints

if TYPE_CHECKING:
    from agentrl.learner import Learner

Information = Callable[[Trajectory], str]
"""What the teacher is told about an episode; empty: nothing."""


def expert_plan(trajectory: Trajectory) -> str:
    """Tell the plan that an expert had before the first action: the most useful kind of information, where environments know it."""
    plan = trajectory.turns[0].observation.plan if trajectory.turns else ()
    return "plan: " + "; ".join(plan) + "\n" if plan else ""


def first_action(trajectory: Trajectory) -> str:
    """Tell only how an expert would begin."""
    plan = trajectory.turns[0].observation.plan if trajectory.turns else ()
    return f"hint: {plan[0]}\n" if plan else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """What the teacher is told, and who it is: ``model`` names another one of the same tokenizer, ``None`` is the policy itself."""

    information: Information = expert_plan
    model: ModelSpec | None = None

    def open(self, *, vocab_size: int, compute: Compute, renderer: Renderer) -> OpenTeacher:
        """Load the other model, if there is one."""
        from agentrl.learner import (
            Learner,
        )  # here alone: recipes name teachers, and are read without a learner

        learner = None
        if self.model is not None:
            model = build_model(replace(self.model, lora=None), vocab_size, 0, compute.device)
            learner = Learner(
                model, compute, allowed_V=renderer.allowed(model.config.get_text_config().vocab_size)
            )
        return OpenTeacher(self, renderer, learner)


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
                replace(scored, teacher_logprobs_T=one.old_logprobs_T)
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
