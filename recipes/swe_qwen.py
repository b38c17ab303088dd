"""A pretrained code model learns software engineering in Docker sandboxes, graded by the repositories' tests.

It has a persistent shell, an editor and a search. Give it the folder of an instruction-tuned model with a
chat template, for example Qwen2.5-Coder-7B-Instruct, and a file of tasks:

    agentrl swe synth tasks/        # makes tasks; files of SWE-Gym, SWE-smith and R2E-Gym also work
    agentrl train recipes/swe_qwen.py model.folder=/path/to/model env.rows=tasks/tasks.jsonl --dry-run

The algorithm is RLOO. Groups that all succeed or all fail are drawn again (DAPO). Intermediate rewards are
gated (G-RA): fixed tests are paid only if the work was submitted, a well-formed action only if there is a
patch. Low-rank adapters let a 7B model and its optimiser fit on one GPU.

Result: not measured, because it has not been run on a GPU. A test plans it on a tiny model.
"""

from agentrl_environments.swe import Swe
from agentrl_sandboxes.docker import Docker
from agentrl_sandboxes.pool import PoolOptions

import agentrl as rl

LADDER = rl.Sum(
    (
        rl.Outcome(),
        rl.Scaled(rl.Outcome("submitted", name="submitted"), 0.05),
        rl.Scaled(rl.Outcome("nonempty", name="patch"), 0.05),
        rl.Scaled(rl.Outcome("fixed", name="fixed"), 0.2),
        rl.Format(penalty=0.02),
    )
)

recipe = rl.Recipe(
    name="swe_qwen",
    env=Swe(tools="editor", prompt="full", max_turns=40),
    sandboxes=Docker(pool=PoolOptions(num_open=64, num_warm=8, num_starting=8)),
    model=rl.ModelSpec(
        folder="models/Qwen2.5-Coder-7B-Instruct",
        dtype="bfloat16",
        lora=rl.LoRA(rank=32, alpha=64),
        gradient_checkpointing=True,
    ),
    renderer=rl.ChatRenderer,
    sampling=rl.Sampling(temperature=1.0, max_tokens=1024),
    engine=rl.TorchEngine(num_slots=64, max_context=32768),
    compute=rl.Compute(device="cuda", precision="bfloat16", token_budget=32768),
    limits=rl.Limits(concurrency=64, env_deadline_s=180.0, act_deadline_s=3600.0),
    num_workers=4,
    stages=(
        rl.Stage(
            name="learn",
            updates=200,
            source=rl.Rollouts(num_groups=8, group_size=8, refills=2, max_staleness=1),
            reward=LADDER,
            transforms=(
                rl.Gates(
                    (
                        rl.Level(("outcome",)),
                        rl.Level(("submitted",), 0.05),
                        rl.Level(("patch",), 0.05),
                        rl.Level(("fixed",)),
                    )
                ),
            ),
            filters=(rl.DynamicSampling(),),
            credit=rl.RLOO(),
            objective=rl.Objective(loss=rl.Clip(0.2, 0.28), off_policy=rl.TokenTIS(cap=2.0)),
            optimisation=rl.Optimisation(lr=1e-5, warmup_updates=5),
            evaluate=True,
            evaluate_every=20,
        ),
    ),
    evaluation=rl.Evaluation(
        split="held-out",
        sampling=rl.Sampling(temperature=0.0, max_tokens=1024),
        baselines={"expert": rl.ExpertPolicy()},
    ),
    checkpoints=rl.Checkpoints(every=5, keep=2),
)
