"""What an update minimises, as one value: loss, aggregation, regularisers, critic, off-policy weight, language modelling.

``sum_A weights_A * off_policy_A * loss_A`` + regularisers, each a weighted sum of its own + ``mean(value loss)``
``- observation_weight * mean(log p(observation))``
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agentrl.losses import Aggregation, Loss, NegativeLogLikelihood, OffPolicy
from agentrl.losses.aggregation import token_mean
from agentrl.losses.value import ValueLoss
from agentrl.types import Need


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The parts of a loss; each is a value of its own, so a new one is a new class and nothing here changes."""

    loss: Loss = field(default_factory=NegativeLogLikelihood)
    aggregate: Aggregation = token_mean
    regularisers: tuple[Loss, ...] = ()
    """Added to the loss of each token; each holds its own coefficient."""
    value: ValueLoss | None = None
    """Trains the value head; mean over the tokens that have a target."""
    off_policy: OffPolicy | None = None
    """Multiplies the loss (not the regularisers) where old and behaviour log-probabilities differ."""
    observation_weight: float = 0.0
    """Weight of the mean negative log-likelihood of the tokens that are no actions: language modelling, beside imitation."""

    @property
    def aggregations(self) -> tuple[Aggregation, ...]:
        """How the tokens of the loss are added up, and those of each regulariser: its own ``aggregate`` where it has one."""
        return (
            self.aggregate,
            *(regulariser.aggregate or self.aggregate for regulariser in self.regularisers),
        )

    @property
    def whole_groups(self) -> bool:
        """Whether a part compares the sequences of a group, which then stay in one micro-batch."""
        return any(part.whole_groups for part in (self.loss, *self.regularisers))

    @property
    def remembering(self) -> tuple[Loss, ...]:
        """The regularisers whose state is kept in checkpoints."""
        return tuple(regulariser for regulariser in self.regularisers if regulariser.remembers)

    @property
    def needs(self) -> frozenset[Need]:
        """Every measurement that a part asks for."""
        own: set[Need] = set()
        if self.value is not None:
            own.add("values")
        if self.off_policy is not None:
            own.add("old_logprobs")
        return self.loss.needs.union(own, *(regulariser.needs for regulariser in self.regularisers))
