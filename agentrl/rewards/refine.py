"""Refinements of a process reward that keep a learned or judged score from being collected by repetition.

``ClipReward`` and ``DeltaReward`` are from Gao et al. 2024 ("On designing effective RL reward at training
time for LLM reasoning"; formulas from descriptions that agree). Their order matters: clip first, then take
differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agentrl.errors import ConfigError
from agentrl.rewards import Reward, Transform
from agentrl.types import FloatArray, Ledger, Trajectory, floats

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ClipReward(Transform):
    """Replaces a payment ``r`` with ``min(r - threshold, 0)``: most turns are paid 0, bad ones are charged.

    ``r`` is what ``component`` pays a turn. ``threshold`` should be below the typical score, so that most
    turns get exactly 0. An episode of one turn has no process to reward and is paid 0.
    """

    component: str
    threshold: float

    def __call__(self, trajectory: Trajectory, ledger: Ledger) -> Ledger:
        """Return the ledger with the payments of ``component`` clipped."""
        return _mapped(ledger, self.component, self._clipped)

    def _clipped(self, scores_N: Array) -> Array:
        return np.minimum(scores_N - self.threshold, 0.0) if len(scores_N) > 1 else np.zeros(len(scores_N))


@dataclass(frozen=True, slots=True)
class DeltaReward(Transform):
    """Replaces scores ``s_n`` with ``s_n - s_{n+1}``, so the return from turn ``n`` on is ``s_n``.

    ``s_n`` is what ``component`` pays turn ``n`` of ``N``, from 0. The last turn is paid 0 and the one before
    it ``s_{N-2}``, as the score of the last turn is left out: that turn is paid by the outcome alone. So
    repeating a turn with a high score earns nothing.
    """

    component: str

    def __call__(self, trajectory: Trajectory, ledger: Ledger) -> Ledger:
        """Return the ledger with the payments of ``component`` replaced with their differences."""
        return _mapped(ledger, self.component, self._differences)

    def _differences(self, scores_N: Array) -> Array:
        kept_N = scores_N.copy()
        kept_N[-1:] = 0.0
        return np.asarray(kept_N - np.append(kept_N[1:], 0.0)) if len(kept_N) else kept_N


@dataclass(frozen=True, slots=True)
class PAR(Transform):
    """Replaces the last turn's reward ``r`` with ``mean_m sigmoid(kappa * (r - ref_m))``.

    Fu et al. 2025, "Reward shaping to mitigate reward hacking". ``references`` is the key of ``Task.data``
    that holds the rewards ``ref_m`` of reference answers. The new reward is bounded and centred, so it hardly
    rises once an answer is better than the references. Other turns are paid 0.
    """

    component: str
    references: str
    kappa: float = 1.0

    def __call__(self, trajectory: Trajectory, ledger: Ledger) -> Ledger:
        """Return the ledger with the last turn's payment compared with the task's references, other turns 0.

        Raises:
            ConfigError: the task has no references.
        """
        found = trajectory.task.data.get(self.references)
        if not isinstance(found, Sequence) or isinstance(found, str) or not found:
            raise ConfigError(
                f"PAR needs reference rewards in task.data[{self.references!r}]; "
                f"task {trajectory.task.id!r} has {found!r}"
            )
        references_M = np.array(found, dtype=np.float64)

        def shaped(scores_N: Array) -> Array:
            paid_N = np.zeros(len(scores_N))
            paid_N[-1:] = [
                np.mean(1.0 / (1.0 + np.exp(-self.kappa * (score - references_M)))) for score in scores_N[-1:]
            ]
            return paid_N

        return _mapped(ledger, self.component, shaped)


@dataclass(frozen=True, slots=True)
class RewardEnsemble(Transform):
    """Replaces several scores of the same thing with one conservative component (Coste et al. 2024).

    With ``penalty`` None, each turn is paid its worst score (WCO). With a number, it is paid the mean of its
    scores minus ``penalty`` times their population variance (UWO); published values are 0.1 for policy
    optimisation and 0.5 for best-of-n.
    """

    members: tuple[str, ...]
    name: str
    penalty: float | None = None

    def __call__(self, trajectory: Trajectory, ledger: Ledger) -> Ledger:
        """Return the ledger with ``name`` in place of the components in ``members``."""
        scores_MN = np.array([component_of(ledger, member) for member in self.members], dtype=np.float64)
        joint_N = (
            scores_MN.min(0) if self.penalty is None else scores_MN.mean(0) - self.penalty * scores_MN.var(0)
        )
        rest = {name: paid_N for name, paid_N in ledger.items() if name not in self.members}
        return {**rest, self.name: floats(joint_N)}


@dataclass(frozen=True, slots=True)
class OverlongPenalty(Transform):
    """A soft penalty on length before the limit: ``-factor * (length - (limit - buffer)) / buffer`` (DAPO).

    Yu et al. 2025. The penalty begins ``buffer`` tokens before ``limit``. ``length`` is the number of action
    tokens of the episode; the last turn is charged. If ``capped``, the penalty is never more than ``factor``.
    """

    limit: int
    buffer: int
    factor: float = 1.0
    capped: bool = True
    name: str = "overlong"

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.limit:
            raise ConfigError(
                "the buffer of OverlongPenalty must be above 0 and at most the limit; "
                f"found a buffer of {self.buffer} and a limit of {self.limit}"
            )

    def __call__(self, trajectory: Trajectory, ledger: Ledger) -> Ledger:
        """Return the ledger with the penalty as the additional component ``name``."""
        over = (trajectory.num_tokens - (self.limit - self.buffer)) / self.buffer
        charged_N = np.zeros(len(trajectory.turns))
        charged_N[-1:] = -self.factor * max(min(over, 1.0) if self.capped else over, 0.0)
        return {**ledger, self.name: floats(charged_N)}


@dataclass(frozen=True, slots=True)
class Milestones(Reward):
    """Pays the grader's score of a program, or milestones if the program got no score.

    Yang et al. 2025, "RL for machine-learning-engineering agents". The last turn is paid the grader's
    ``score`` if the episode got a score (the signal ``scored`` is not 0 on some turn), else ``failure`` plus
    ``each`` for every milestone that was reached. ``lower_is_better`` flips the score's sign.
    """

    score: str
    scored: str
    milestones: str
    failure: float = -10.0
    each: float = 0.1
    lower_is_better: bool = False
    name: str = "outcome"

    @property
    def signals(self) -> frozenset[str]:
        """The names of the three signals ``score``, ``scored`` and ``milestones``."""
        return frozenset({self.score, self.scored, self.milestones})

    @property
    def components(self) -> frozenset[str]:
        """The single component that the reward pays."""
        return frozenset({self.name})

    def __call__(self, trajectory: Trajectory) -> Ledger:
        """Return ``{name: [0, ..., 0, paid]}``, one number per turn; only the last turn is paid."""
        paid_N = np.zeros(len(trajectory.turns))
        score = float(trajectory.signal(self.score)[-1:].sum())
        if trajectory.signal(self.scored).any():
            paid_N[-1:] = -score if self.lower_is_better else score
        else:
            paid_N[-1:] = self.failure + self.each * float(
                trajectory.signal(self.milestones).sum(dtype=np.float64)
            )
        return {self.name: floats(paid_N)}


def threshold_for(scores: Sequence[float], *, share: float = 0.7) -> float:
    """Return the threshold of ``ClipReward`` with which ``share`` of the scores are paid 0.

    The paper's own threshold was not available.

    >>> threshold_for([0.9, 0.6, 0.8, 0.3], share=0.5)
    0.8
    """
    if not scores or not 0.0 <= share <= 1.0:
        raise ConfigError(
            f"a threshold needs scores and a share in [0, 1]; found {len(scores)} scores and {share}"
        )
    ordered = sorted(scores, reverse=True)
    return float(ordered[max(round(share * len(ordered)) - 1, 0)])


def _mapped(ledger: Ledger, component: str, function: Callable[[Array], Array]) -> Ledger:
    return {**ledger, component: floats(function(component_of(ledger, component).astype(np.float64)))}


def component_of(ledger: Ledger, name: str) -> FloatArray:
    """Return what the component ``name`` pays; raise ``ConfigError`` if the ledger has no such component."""
    if name not in ledger:
        raise ConfigError(
            f"a transform rewrites {name!r}, which nothing pays; "
            f"the ledger has {', '.join(sorted(ledger)) or 'nothing'}"
        )
    return ledger[name]
