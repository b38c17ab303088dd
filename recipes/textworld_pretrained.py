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

import agentrl as rl

recipe = rl.Recipe(
    name="textworld_pretrained",
    env=TextWorld(
        game="w2-o3-q4", backend="z8", observation="raw", show_actions=True, max_turns=12, train=2000
    ),
    model=rl.ModelSpec(folder="models/Qwen2.5-1.5B-Instruct", gradient_checkpointing=True),
    renderer=rl.ChatRenderer,
    sampling=rl.Sampling(temperature=0.7, max_tokens=32),
    engine=rl.TorchEngine(num_slots=256, max_context=4096),
    compute=rl.Compute(device="cuda", precision="bfloat16", token_budget=16384),
    limits=rl.Limits(concurrency=128, act_deadline_s=1800.0),
    num_workers=8,
    stages=(
        rl.Stage(
            name="ppo",
            updates=200,
            source=rl.Rollouts(num_groups=256, group_size=1),
            reward=rl.Sum((rl.Outcome(), rl.Format(penalty=0.05))),
            credit=rl.KLPenalty(rl.TurnGAE(gamma=1.0, lam=0.95), coef=0.01),
            modifiers=(rl.Whiten(),),
            objective=rl.Objective(loss=rl.Clip(0.2, 0.2), value=rl.ValueLoss(coef=0.5, clip=0.5)),
            optimisation=rl.Optimisation(
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
    evaluation=rl.Evaluation(
        split="test",
        sampling=rl.Sampling(temperature=0.4, max_tokens=32),
        baselines={"random": rl.RandomPolicy(), "expert": rl.ExpertPolicy()},
    ),
    checkpoints=rl.Checkpoints(every=10, keep=2),
)
