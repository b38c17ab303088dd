"""The recipe of the stored runs: a tiny run that leaves in its folder everything that a run can leave.

`python tests/stored_runs/recorded.py N` writes the folder `vN` and the numbers `vN.jsonl` of a new version.
It runs the recipe to its end, and then removes everything after the fourth update, as if the run had been
killed there.
"""

import asyncio
import shutil
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from agentrl_environments.bandit import Bandit

from agentrl.credit.components import EpisodeAndSteps
from agentrl.credit.constant import ConstantCredit
from agentrl.learner import Compute, Optimisation
from agentrl.learner.implicit import ImplicitPRM
from agentrl.learner.spec import ModelSpec, Shape, TrainedTokenizer
from agentrl.losses.clip import Clip
from agentrl.losses.epo import EPO
from agentrl.losses.kl import KL, k2
from agentrl.losses.objective import Objective
from agentrl.policy import ExpertPolicy, RandomPolicy, Sampling
from agentrl.recipe import Checkpoints, Evaluation, Recipe, Stage
from agentrl.render import TagRenderer
from agentrl.rewards.compose import Sum
from agentrl.rewards.mixing import Lagrangian
from agentrl.rewards.outcome import EnvReward, Format, Outcome
from agentrl.rewards.refine import ClipReward
from agentrl.rollout import Limits
from agentrl.samplers.adaptive import SEC
from agentrl.sources import Demonstrations, Rollouts
from agentrl.types import Task

SMALL = Shape(hidden=16, layers=1, heads=2, kv_heads=1, mlp=16, max_context=256)


class Arms(TagRenderer):
    """Only the names of arms may be said, so that an untrained model sometimes wins."""

    def allowed(self, vocab_size: int) -> npt.NDArray[np.bool_]:
        """Allow the tokens of the arms' names."""
        return np.isin(np.arange(vocab_size), [token for arm in ("a", "b") for token in self.encode(arm)])


def last_digit(task: Task) -> str:
    """Return the kind of a task, for the curriculum."""
    return task.id[-1]


recipe = Recipe(
    name="tiny",
    env=Bandit(arms=2, max_turns=3),
    model=ModelSpec(shape=SMALL, tokenizer=TrainedTokenizer(vocab_size=270, num_episodes=20)),
    renderer=Arms,
    sampling=Sampling(temperature=1.0, max_tokens=2),
    limits=Limits(concurrency=16),
    compute=Compute(threads=1),
    stages=(
        Stage(
            name="imitate",
            updates=2,
            source=Demonstrations(policy=ExpertPolicy(), num_episodes=4),
            credit=ConstantCredit(1.0),
            objective=Objective(observation_weight=0.3),
            optimisation=Optimisation(lr=1e-3),
        ),
        Stage(
            name="learn",
            updates=4,
            source=Rollouts(num_groups=4, group_size=4, sampler=SEC(kind=last_digit)),
            reward=Sum((EnvReward(), Outcome(), Format(penalty=0.5))),
            transforms=(
                ClipReward("env", -0.5),
                Lagrangian(objective="outcome", constraints={"format": -0.2}),
            ),
            credit=EpisodeAndSteps(process="implicit", alpha=0.2),
            scorers=(ImplicitPRM(beta=0.05, optimisation=Optimisation(lr=1e-3)),),
            objective=Objective(loss=Clip(0.2, 0.2), regularisers=(EPO(updates=4), KL(0.1, k2))),
            optimisation=Optimisation(lr=1e-3),
            evaluate=True,
        ),
    ),
    evaluation=Evaluation(
        num_tasks=4, sampling=Sampling(temperature=1.0, max_tokens=2), baselines={"random": RandomPolicy()}
    ),
    checkpoints=Checkpoints(every=1, keep=20),
    sinks=(),
)

KEPT = 4
"""Updates that a stored run has made."""


def record(version: int) -> None:
    """Write the folder and the numbers of a version; refuse to replace those of an earlier one."""
    from agentrl.recipe.load import read
    from agentrl.train import train

    folder = Path(__file__).parent / f"v{version}"
    if folder.exists():
        raise SystemExit(f"{folder} exists; the folders of written versions never change")
    loaded, origin = read(Path(__file__))
    asyncio.run(train(loaded, folder, origin=origin))
    shutil.copy(folder / "metrics.jsonl", folder.with_suffix(".jsonl"))
    for path in folder.glob("checkpoints/*"):
        if int(path.name) != KEPT:
            shutil.rmtree(path)
    for path in folder.glob("trajectories/*"):
        if int(path.name.partition("=")[2]) >= KEPT:
            shutil.rmtree(path)
    for path in folder.glob("evaluations/learn-*"):
        path.unlink()
    for name in ("metrics.jsonl", "timing.jsonl"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:KEPT]))
    (folder / "lock").unlink()


if __name__ == "__main__":
    record(int(sys.argv[1]))
