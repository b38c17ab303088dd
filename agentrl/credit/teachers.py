"""Learning from a teacher's opinion of one's own tokens: the same model told more (privileged information), or a larger one.

``teacher_logprobs`` are those of ``Stage.teacher`` for the tokens that the policy sampled. The rules are modifiers: what they add stands
beside, or in the place of, what rewards are worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from agentrl.credit.turns import Array, checked
from agentrl.types import Credited, Need, Scored, ScoredGroup, floats, stand_in


@dataclass(frozen=True, slots=True)
class OPSD:
    """``A + beta * (log pi_T - log pi_S)`` per token: on-policy self-distillation (pi-Distill's companion; from descriptions that agree).

    The student plays without the information that the teacher sees; both are the same weights, so nothing larger is needed. It maximises
    ``E[R] - beta * KL(pi_S || pi_T)``. A large divergence at the start foretells failure: choose information that the student could act on.
    """

    beta: float = 0.25
    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "teacher_logprobs"})

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return the advantages with the teacher's opinion added."""
        checked(groups, self.needs)
        return _mapped(
            groups, credited, lambda scored, advantages_T: advantages_T + self.beta * _preference(scored)
        )


@dataclass(frozen=True, slots=True)
class Distil:
    """``-((log pi - log base) - lam * (log pi_T - log base))`` in the place of the advantage (G-OPD; ``lam`` 1.25: ExOPD).

    ``lam = 1`` is on-policy distillation, ``log pi_T - log pi``, and needs no base. Above 1 the student goes beyond the teacher, along what
    training did to the teacher; ``base`` is the reference model of the stage.
    """

    lam: float = 1.0

    @property
    def needs(self) -> frozenset[Need]:
        """The teacher, and the base where it is extrapolated from."""
        wanted: set[Need] = {"old_logprobs", "teacher_logprobs"}
        return frozenset(wanted | ({"ref_logprobs"} if self.lam != 1.0 else set()))

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return the teacher's advantages."""
        checked(groups, self.needs)
        return _mapped(groups, credited, lambda scored, _: self._advantages(scored))

    def _advantages(self, scored: Scored) -> Array:
        if self.lam == 1.0:
            return _preference(scored)
        assert scored.ref_logprobs_T is not None
        assert scored.old_logprobs_T is not None
        assert scored.teacher_logprobs_T is not None
        base_T = scored.ref_logprobs_T.astype(np.float64)
        return np.asarray(self.lam * (scored.teacher_logprobs_T - base_T) - (scored.old_logprobs_T - base_T))


@dataclass(frozen=True, slots=True)
class TowardStudent:
    """``A + beta * (log pi_S - log pi_T)`` for the tokens of a teacher: it maximises ``E_T[R] - beta * KL(pi_T || sg pi_S)`` (pi-Distill).

    The groups are those of ``guidance.privileged.Privileged``: each teacher has its student, whose advantages stay as they are.
    """

    beta: float = 0.25
    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs"})

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return the advantages with what the student thinks added; one without a student keeps its own."""
        checked(groups, self.needs)
        given = [one for group in groups for one in group if one.trajectory.given]
        students = {(one.trajectory.task.id, stand_in(one.trajectory.sample)): one for one in given}
        return _mapped(
            groups,
            credited,
            lambda scored, advantages_T: advantages_T + self.beta * self._pull(scored, students),
        )

    def _pull(self, scored: Scored, students: Mapping[tuple[str, int], Scored]) -> Array:
        student = students.get((scored.trajectory.task.id, scored.trajectory.sample))
        if student is None:
            return np.zeros(scored.trajectory.num_tokens)
        assert student.old_logprobs_T is not None
        assert scored.old_logprobs_T is not None
        return np.asarray(student.old_logprobs_T.astype(np.float64) - scored.old_logprobs_T)


def _preference(scored: Scored) -> Array:
    assert scored.teacher_logprobs_T is not None
    assert scored.old_logprobs_T is not None
    return np.asarray(scored.teacher_logprobs_T.astype(np.float64) - scored.old_logprobs_T)


def _mapped(
    groups: Sequence[ScoredGroup],
    credited: Sequence[tuple[Credited, ...]],
    rule: Callable[[Scored, Array], Array],
) -> list[tuple[Credited, ...]]:
    return [
        tuple(
            replace(one, advantages_T=floats(rule(scored, one.advantages_T.astype(np.float64))))
            for scored, one in zip(group, credit, strict=True)
        )
        for group, credit in zip(groups, credited, strict=True)
    ]
