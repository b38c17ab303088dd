"""A pretrained model learns the raw text of TextWorld's ladder of games by PPO over turns on a GPU.

Give it the folder of an instruction-tuned model with a chat template, for example Qwen2.5-1.5B-Instruct:

    agentrl train recipes/textworld_pretrained.py model.folder=/path/to/model

The ladder begins with ``w2-o3-q4``; ``env.game=w4-o6-q8 env.max_turns=24`` and ``w8-o12-q4`` are its next
steps. The settings follow a published practitioner's study of multi-turn RL on these games: no discount,
lambda 0.95, clip 0.2, learning rate 1e-6 for the policy and 1e-5 for the critic, batches of 256 episodes,
temperature 0.7 in training and 0.4 in evaluation, 12 turns.

Result: not measured, because it has not been run on a GPU. Tests plan it, and make two updates on a tiny
model.
"""

from agentrl_environments.textworld import TextWorld

from agentrl.credit.gae import TurnGAE
from agentrl.credit.modifiers import Whiten
from agentrl.credit.penalty import KLPenalty
from agentrl.engines.spec import TorchEngine
from agentrl.learner import Compute, Optimisation
from agentrl.learner.spec import ModelSpec
from agentrl.losses.clip import Clip
from agentrl.losses.objective import Objective
from agentrl.losses.value import ValueLoss
from agentrl.policy import ExpertPolicy, RandomPolicy, Sampling
from agentrl.recipe import Checkpoints, Evaluation, Recipe, Stage
from agentrl.render.chat import ChatRenderer
from agentrl.rewards.compose import Sum
from agentrl.rewards.outcome import Format, Outcome
from agentrl.rollout import Limits
from agentrl.sources import Rollouts

recipe = Recipe(
    name="textworld_pretrained",
    env=TextWorld(
        game="w2-o3-q4", backend="z8", observation="raw", show_actions=True, max_turns=12, train=2000
    ),
    model=ModelSpec(folder="models/Qwen2.5-1.5B-Instruct", gradient_checkpointing=True),
    renderer=ChatRenderer,
    sampling=Sampling(temperature=0.7, max_tokens=32),
    engine=TorchEngine(num_slots=256, max_context=4096),
    compute=Compute(device="cuda", precision="bfloat16", token_budget=16384),
    limits=Limits(concurrency=128, act_deadline_s=1800.0),
    num_workers=8,
    stages=(
        Stage(
            name="ppo",
            updates=200,
            source=Rollouts(num_groups=256, group_size=1),
            reward=Sum((Outcome(), Format(penalty=0.05))),
            credit=KLPenalty(TurnGAE(gamma=1.0, lam=0.95), coef=0.01),
            modifiers=(Whiten(),),
            objective=Objective(loss=Clip(0.2, 0.2), value=ValueLoss(coef=0.5, clip=0.5)),
            optimisation=Optimisation(
                lr=1e-6,
                betas=(0.9, 0.999),
                weight_decay=0.01,
                value_lr=1e-5,
                warmup_updates=5,
                freeze_policy_updates=5,
            ),
            epochs=1,
            minibatches=4,
            evaluate=True,
            evaluate_every=20,
        ),
    ),
    evaluation=Evaluation(
        split="test",
        sampling=Sampling(temperature=0.4, max_tokens=32),
        baselines={"random": RandomPolicy(), "expert": ExpertPolicy()},
    ),
    checkpoints=Checkpoints(every=10, keep=2),
)
