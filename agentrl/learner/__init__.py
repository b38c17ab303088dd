"""The learning side: the policy's model and optimiser, and further models that are used beside the policy.

This module exports the values that a recipe is made of. The other modules build and train them, and import
torch: ``learner`` and ``loss`` make an update, ``batch`` its rows of tokens, ``forward`` runs the model over
them, ``model`` builds weights and tokenizers, ``checkpoint`` stores them, ``teacher`` and ``implicit`` hold
the models beside the policy. ``contract`` declares the interfaces between them.
"""

from agentrl.learner.optimiser import Compute, Constant, Cosine, Linear, Optimisation
from agentrl.learner.spec import LoRA, ModelSpec, Shape, Teacher, TrainedTokenizer, expert_plan, first_action

__all__ = [
    "Compute",
    "Constant",
    "Cosine",
    "Linear",
    "LoRA",
    "ModelSpec",
    "Optimisation",
    "Shape",
    "Teacher",
    "TrainedTokenizer",
    "expert_plan",
    "first_action",
]
