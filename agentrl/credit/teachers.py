"""Learning from a teacher's log-probabilities of the policy's own tokens.

The teacher is the same model with additional information in its prompt (privileged information), or a larger
model. ``teacher_logprobs`` are those of ``Stage.teacher`` for the tokens that the policy sampled. The rules
are modifiers: they add to the advantages from rewards, or replace them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agentrl.credit import Modifier
from agentrl.credit.turns import Array, checked, with_advantages
from agentrl.types import Credited, Need, Scored, ScoredGroup, stand_in


@dataclass(frozen=True, slots=True)
class OPSD(Modifier):
    """``A + beta * (log pi_T - log pi_S)`` per token: on-policy self-distillation.

    OPSD is the companion of pi-Distill; the formula is from descriptions that agree. The student ``pi_S`` is
    the policy, which plays without the information that the teacher ``pi_T`` sees. Both have the same
    weights, so no larger model is needed. The rule maximises ``E[R] - beta * KL(pi_S || pi_T)``. A large
    divergence at the start predicts failure: choose information that the student could act on.
    """

    beta: float = 0.25
    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "teacher_logprobs"})

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return the advantages plus ``beta * (log pi_T - log pi_S)`` of each token."""
        checked(groups, self.needs)
        return with_advantages(
            groups, credited, lambda scored, advantages_T: advantages_T + self.beta * _preference(scored)
        )


@dataclass(frozen=True, slots=True)
class Distil(Modifier):
    """Replaces advantages with ``-((log pi - log base) - lam * (log pi_T - log base))`` per token.

    This is G-OPD, and ExOPD with ``lam = 1.25``. ``pi_T`` is the teacher. ``lam = 1`` is on-policy
    distillation, ``log pi_T - log pi``, and needs no base. With ``lam`` above 1 the student goes beyond the
    teacher, in the direction in which training moved the teacher; ``base`` is the reference model of the
    stage.
    """

    lam: float = 1.0

    @property
    def needs(self) -> frozenset[Need]:
        """The old and the teacher's log-probabilities, and the base model's if ``lam`` is not 1."""
        wanted: set[Need] = {"old_logprobs", "teacher_logprobs"}
        return frozenset(wanted | ({"ref_logprobs"} if self.lam != 1.0 else set()))

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return advantages from the teacher alone."""
        checked(groups, self.needs)
        return with_advantages(groups, credited, lambda scored, _: self._advantages(scored))

    def _advantages(self, scored: Scored) -> Array:
        if self.lam == 1.0:
            return _preference(scored)
        assert scored.measured.ref_logprobs is not None
        assert scored.measured.old_logprobs is not None
        assert scored.measured.teacher_logprobs is not None
        base_T = scored.measured.ref_logprobs.astype(np.float64)
        return np.asarray(
            self.lam * (scored.measured.teacher_logprobs - base_T) - (scored.measured.old_logprobs - base_T)
        )


@dataclass(frozen=True, slots=True)
class TowardStudent(Modifier):
    """``A + beta * (log pi_S - log pi_T)`` for the tokens of a teacher (pi-Distill).

    ``pi_T`` is the teacher, who sampled the tokens, ``pi_S`` the student. The rule maximises
    ``E_T[R] - beta * KL(pi_T || sg pi_S)``, with no gradient through ``pi_S`` (``sg``). The groups are those
    of ``agentrl.sources.privileged.Privileged``: each teacher's trajectory has a student's with the same
    tokens, whose advantages are unchanged.
    """

    beta: float = 0.25
    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs"})

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return the advantages plus ``beta * (log pi_S - log pi_T)`` of each token.

        A trajectory to which no student's trajectory belongs keeps its advantages.
        """
        checked(groups, self.needs)
        given = [one for group in groups for one in group if one.trajectory.given]
        students = {(one.trajectory.task.id, stand_in(one.trajectory.sample)): one for one in given}
        return with_advantages(
            groups,
            credited,
            lambda scored, advantages_T: advantages_T + self.beta * self._pull(scored, students),
        )

    def _pull(self, scored: Scored, students: Mapping[tuple[str, int], Scored]) -> Array:
        student = students.get((scored.trajectory.task.id, scored.trajectory.sample))
        if student is None:
            return np.zeros(scored.trajectory.num_tokens)
        assert student.measured.old_logprobs is not None
        assert scored.measured.old_logprobs is not None
        return np.asarray(student.measured.old_logprobs.astype(np.float64) - scored.measured.old_logprobs)


def _preference(scored: Scored) -> Array:
    assert scored.measured.teacher_logprobs is not None
    assert scored.measured.old_logprobs is not None
    return np.asarray(scored.measured.teacher_logprobs.astype(np.float64) - scored.measured.old_logprobs)
