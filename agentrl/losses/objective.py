"""The objective: what an update minimises, as one value.

It is the sum of

- ``sum_A weights_A * off_policy_A * loss_A`` over the action tokens ``A``, with the weights of the
  objective's aggregation and the off-policy weights;
- the regularisers, each a weighted sum over the action tokens, with the weights of the regulariser's
  own aggregation, or else the objective's;
- ``mean(value loss)`` over the tokens that have a target;
- ``-observation_weight * mean(log p(observation))`` over the tokens that are not actions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agentrl.losses import Aggregation, Loss, NegativeLogLikelihood, OffPolicy
from agentrl.losses.aggregation import token_mean
from agentrl.losses.value import ValueLoss
from agentrl.types import Need


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What an update minimises. To add a loss, regulariser or aggregation, write a new class or function."""

    loss: Loss = field(default_factory=NegativeLogLikelihood)
    """The loss of each action token, such as a clipped surrogate."""
    aggregate: Aggregation = token_mean
    """The weights with which the losses of tokens are added up."""
    regularisers: tuple[Loss, ...] = ()
    """Added to the loss of each action token, such as a divergence or an entropy bonus; each holds its own
    coefficient."""
    value: ValueLoss | None = None
    """Loss of the value head, averaged over the tokens that have a target; ``None`` means no critic."""
    off_policy: OffPolicy | None = None
    """Weights that multiply the loss (not the regularisers), by how far the learner's log-probabilities at
    the start of the update differ from the sampler's. With ``None`` there are no such weights."""
    observation_weight: float = 0.0
    """Weight of the mean negative log-likelihood of the tokens that are not actions: language modelling,
    beside imitation."""

    @property
    def aggregations(self) -> tuple[Aggregation, ...]:
        """The aggregation of the loss, then that of each regulariser: its own, or else the loss's."""
        return (
            self.aggregate,
            *(regulariser.aggregate or self.aggregate for regulariser in self.regularisers),
        )

    @property
    def whole_groups(self) -> bool:
        """Whether a part compares the sequences of a group, so that a group must stay in one micro-batch."""
        return any(part.whole_groups for part in (self.loss, *self.regularisers))

    @property
    def remembering(self) -> tuple[Loss, ...]:
        """The regularisers whose state is kept in checkpoints."""
        return tuple(regulariser for regulariser in self.regularisers if regulariser.remembers)

    @property
    def needs(self) -> frozenset[Need]:
        """Every measurement on action tokens that a part asks for."""
        own: set[Need] = set()
        if self.value is not None:
            own.add("values")
        if self.off_policy is not None:
            own.add("old_logprobs")
        return self.loss.needs.union(own, *(regulariser.needs for regulariser in self.regularisers))
