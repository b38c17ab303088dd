"""A learner small enough to be saved and loaded in milliseconds, with its tokenizer."""

from agentrl.learner import Linear, Optimisation
from agentrl.learner.learner import TorchLearner
from agentrl.learner.model import build_model, train_tokenizer
from agentrl.learner.spec import ModelSpec, Shape

TOKENIZER = train_tokenizer(["go east", "go west"])
VOCAB = len(TOKENIZER)
SHAPE = Shape(hidden=16, layers=2, heads=2, kv_heads=1, mlp=24, max_context=64)
OPTIMISATION = Optimisation(lr=1e-2, warmup_updates=2, schedule=Linear(0.1), freeze_policy_updates=1)


def new_learner(seed: int = 0, **spec: object) -> TorchLearner:
    model = build_model(ModelSpec(**({"shape": SHAPE, "tokenizer": "-"} | spec)), VOCAB, seed=seed)
    learner = TorchLearner(model, value_head=True)
    learner.start(OPTIMISATION, total_updates=6)
    return learner
