"""What learns: the policy's model and optimiser, and the models beside it.

This module holds the values that a recipe is made of. Building and training them is in the modules beside it, which import torch:
``learner`` and ``loss`` the update, ``batch`` its rows of tokens, ``forward`` the pass over them, ``model`` weights and tokenizers,
``checkpoint`` what is kept, ``teacher`` and ``implicit`` models beside the policy. ``contract`` is what they promise each other.
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
