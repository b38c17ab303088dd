"""An implicit process reward: the log-ratio of a second model, trained on outcomes alone, to the policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from agentrl.learner.contract import Learner, MakeLearner, Weights
from agentrl.learner.optimiser import Compute, Optimisation
from agentrl.learner.spec import ModelSpec
from agentrl.losses import NegativeLogLikelihood
from agentrl.losses.objective import Objective
from agentrl.render import Renderer
from agentrl.types import Credited, Need, Scored, ScoredGroup, floats


@dataclass(frozen=True, slots=True)
class ImplicitPRM:
    """An implicit process reward model: pays each turn its log-ratio to the policy that played.

    Turn ``n`` is paid ``r_n = beta * sum over the turn's tokens of (log pi_phi - log pi_old)``. The method is
    iStar's (Liu et al. 2025), after Yuan et al. (2024).

    The model ``phi`` starts as a copy of the policy and learns to tell successful from failed trajectories of
    the same task:

        L = mean over groups of the mean over pairs of -log sigmoid(beta * (S(success) - S(failure)))
        S = sum over all action tokens of (log pi_phi - log pi_old)

    A pair is a successful and a failed trajectory of one group. The reference ``pi_old`` is the policy that
    played, so it changes with every update. Single turns thus get a reward without labels. A group that has
    only successes or only failures teaches nothing, and an update without any pair does not change ``phi``.
    Use with ``EpisodeAndSteps(process=name)``.
    """

    beta: float = 0.05
    optimisation: Optimisation = Optimisation(lr=1e-6)  # noqa: RUF009 - frozen
    name: str = "implicit"
    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs"})

    def open(
        self,
        make: MakeLearner,
        model: ModelSpec,
        compute: Compute,
        *,
        vocab_size: int,
        renderer: Renderer,
        seed: int,
    ) -> OpenImplicitPRM:
        """Build a model like the policy's; all of its weights are trained."""
        learner = make(
            replace(model, lora=None), compute, vocab_size=vocab_size, renderer=renderer, seed=seed
        )
        return OpenImplicitPRM(self, learner)


@dataclass(slots=True)
class OpenImplicitPRM:
    """The opened ``ImplicitPRM``: its model with the optimiser."""

    spec: ImplicitPRM
    learner: Learner

    def start(self, weights: Weights, updates: int) -> None:
        """Begin a stage of ``updates`` updates, starting from ``weights``, which are the policy's."""
        self.learner.load_weights(weights)
        self.learner.start(self.spec.optimisation, updates)

    def score(self, groups: Sequence[ScoredGroup], temperature: float) -> list[ScoredGroup]:
        """Pay each turn ``beta`` times the log-ratio of the model to the policy that played."""
        measured = self.learner.annotate(groups, frozenset({"old_logprobs"}), temperature)
        return [
            tuple(self._paid(scored, own) for scored, own in zip(group, mine, strict=True))
            for group, mine in zip(groups, measured, strict=True)
        ]

    def learn(self, groups: Sequence[ScoredGroup], temperature: float) -> dict[str, float]:
        """Take one optimiser step on the pairs of all groups, and return measurements."""
        weights = [
            pair_weights(
                [self._total(one) for one in group], [one.trajectory.success for one in group], self.spec.beta
            )
            for group in groups
        ]
        paired = [found for found in weights if found.pairs]
        measured = {f"scorer/{self.spec.name}_pairs": float(sum(found.pairs for found in paired))}
        if not paired:
            return measured
        credited = [
            tuple(
                Credited(floats(np.full(one.trajectory.num_tokens, weight / len(paired))))
                for one, weight in zip(group, found.weights_G, strict=True)
            )
            for group, found in zip(groups, weights, strict=True)
        ]
        from agentrl.learner.batch import make_batch  # here: a recipe names the scorer without torch

        objective = Objective(loss=NegativeLogLikelihood(), aggregate=_plain_sum)
        stats = self.learner.update(make_batch(groups, credited), objective, temperature=temperature)
        return measured | {
            f"scorer/{self.spec.name}_loss": sum(found.loss for found in paired) / len(paired),
            f"scorer/{self.spec.name}_accuracy": sum(found.right for found in paired)
            / sum(found.pairs for found in paired),
            f"scorer/{self.spec.name}_grad_norm": stats["grad_norm"],
        }

    def _paid(self, scored: Scored, own: Scored) -> Scored:
        assert scored.measured.old_logprobs is not None
        assert own.measured.old_logprobs is not None
        ratio_T = own.measured.old_logprobs.astype(np.float64) - scored.measured.old_logprobs
        ends = np.cumsum(scored.num_tokens_N)
        until = np.concatenate([np.zeros(1), np.cumsum(ratio_T)])
        paid_N = self.spec.beta * (until[ends] - until[ends - scored.num_tokens_N])
        return replace(scored, ledger={**scored.ledger, self.spec.name: floats(paid_N)})

    def _total(self, scored: Scored) -> float:
        return float(scored.ledger[self.spec.name].sum(dtype=np.float64)) / self.spec.beta


@dataclass(frozen=True, slots=True)
class PairWeights:
    """The loss of a group's pairs, and minus its gradient: a weight on each trajectory's log-likelihood."""

    weights_G: tuple[float, ...]
    pairs: int
    """Number of pairs of a successful and a failed trajectory."""
    right: int
    """Number of pairs in which the successful trajectory scores higher."""
    loss: float


def pair_weights(totals: Sequence[float], successes: Sequence[bool], beta: float) -> PairWeights:
    """Return the loss of a group's pairs, and one weight for each trajectory of the group.

    The weight is minus the gradient of the loss with respect to the trajectory's total ``S``: training raises
    the log-probabilities of the trajectory's tokens by this weight.

    >>> pair_weights([5.0, -4.0], [True, False], 0.05).loss  # doctest: +ELLIPSIS
    0.49324...
    """
    won = [i for i, success in enumerate(successes) if success]
    lost = [i for i, success in enumerate(successes) if not success]
    weights = [0.0] * len(totals)
    loss, right = 0.0, 0
    for i, j in product(won, lost):
        margin = beta * (totals[i] - totals[j])
        share = beta / (1.0 + math.exp(min(margin, 500.0))) / (len(won) * len(lost))
        weights[i] += share
        weights[j] -= share
        loss += (math.log1p(math.exp(-abs(margin))) + max(-margin, 0.0)) / (len(won) * len(lost))
        right += margin > 0
    return PairWeights(tuple(weights), len(won) * len(lost), right, loss)


def _plain_sum(turn_lengths: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
    return np.ones(sum(map(sum, turn_lengths)))
