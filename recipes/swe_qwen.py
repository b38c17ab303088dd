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

from agentrl.credit.group import RLOO
from agentrl.engines.spec import TorchEngine
from agentrl.learner import Compute, Optimisation
from agentrl.learner.spec import LoRA, ModelSpec
from agentrl.losses.clip import Clip
from agentrl.losses.objective import Objective
from agentrl.losses.tis import TokenTIS
from agentrl.policy import ExpertPolicy, Sampling
from agentrl.recipe import Checkpoints, Evaluation, Recipe, Stage
from agentrl.render.chat import ChatRenderer
from agentrl.rewards.compose import Scaled, Sum
from agentrl.rewards.gates import Gates, Level
from agentrl.rewards.outcome import Format, Outcome
from agentrl.rollout import Limits
from agentrl.samplers.filters import DynamicSampling
from agentrl.sources import Rollouts

LADDER = Sum(
    (
        Outcome(),
        Scaled(Outcome("submitted", name="submitted"), 0.05),
        Scaled(Outcome("nonempty", name="patch"), 0.05),
        Scaled(Outcome("fixed", name="fixed"), 0.2),
        Format(penalty=0.02),
    )
)

recipe = Recipe(
    name="swe_qwen",
    env=Swe(tools="editor", prompt="full", max_turns=40),
    sandboxes=Docker(pool=PoolOptions(num_open=64, num_warm=8, num_starting=8)),
    model=ModelSpec(
        folder="models/Qwen2.5-Coder-7B-Instruct",
        dtype="bfloat16",
        lora=LoRA(rank=32, alpha=64),
        gradient_checkpointing=True,
    ),
    renderer=ChatRenderer,
    sampling=Sampling(temperature=1.0, max_tokens=1024),
    engine=TorchEngine(num_slots=64, max_context=32768),
    compute=Compute(device="cuda", precision="bfloat16", token_budget=32768),
    limits=Limits(concurrency=64, env_deadline_s=180.0, act_deadline_s=3600.0),
    num_workers=4,
    stages=(
        Stage(
            name="learn",
            updates=200,
            source=Rollouts(num_groups=8, group_size=8, refills=2, max_staleness=1),
            reward=LADDER,
            transforms=(
                Gates(
                    (
                        Level(("outcome",)),
                        Level(("submitted",), 0.05),
                        Level(("patch",), 0.05),
                        Level(("fixed",)),
                    )
                ),
            ),
            filters=(DynamicSampling(),),
            credit=RLOO(),
            objective=Objective(loss=Clip(0.2, 0.28), off_policy=TokenTIS(cap=2.0)),
            optimisation=Optimisation(lr=1e-5, warmup_updates=5),
            evaluate=True,
            evaluate_every=20,
        ),
    ),
    evaluation=Evaluation(
        split="held-out",
        sampling=Sampling(temperature=0.0, max_tokens=1024),
        baselines={"expert": ExpertPolicy()},
    ),
    checkpoints=Checkpoints(every=5, keep=2),
)
