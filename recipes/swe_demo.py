"""A small language model learns to mend bugs in real packages, in real sandboxes, graded by their tests.

It sees a menu of edits of a broken function (``swe-repair``), tries them against the failing tests, and submits. ``imitate`` follows a few
episodes of an expert that errs every second turn: they show the form, and that one goes on after a failure. ``learn`` plays by itself, is
paid for bugs that are mended, and is measured on packages that no training task is made of.
"""

from agentrl_environments.swe.repair import Repair
from agentrl_sandboxes.local import Local

from agentrl.credit.constant import ConstantCredit
from agentrl.credit.gae import TurnGAE
from agentrl.credit.modifiers import Whiten
from agentrl.learner import Compute, Linear, Optimisation
from agentrl.learner.spec import ModelSpec, Shape, TrainedTokenizer
from agentrl.losses.clip import Clip
from agentrl.losses.objective import Objective
from agentrl.losses.value import ValueLoss
from agentrl.policy import ErringPolicy, ExpertPolicy, RandomPolicy, Sampling
from agentrl.recipe import Evaluation, Recipe, Stage
from agentrl.rewards.compose import Scaled, Sum
from agentrl.rewards.gates import Gates, Level
from agentrl.rewards.outcome import Format, Outcome, Process
from agentrl.rollout import Limits
from agentrl.sources import Demonstrations, Rollouts

SEARCH = ErringPolicy(ExpertPolicy(), RandomPolicy(avoid=("submit",)), share=0.5)

# Submitted < a patch < tests mended < resolved: each step up is paid more than all below it.
LADDER = (
    Scaled(Outcome("submitted", name="submitted"), 0.05),
    Scaled(Outcome("nonempty", name="patch"), 0.05),
    Scaled(Outcome("fixed", name="fixed"), 0.2),
    Outcome(),
)

recipe = Recipe(
    name="swe_demo",
    env=Repair(command_s=8.0, tests_s=20.0),  # an edit may make a loop endless
    sandboxes=Local(),
    model=ModelSpec(
        shape=Shape(hidden=128, layers=2, max_context=512),
        tokenizer=TrainedTokenizer(vocab_size=768, num_episodes=24),
    ),
    sampling=Sampling(temperature=1.0, max_tokens=6),
    limits=Limits(concurrency=6, env_deadline_s=180.0),
    compute=Compute(threads=1),  # the sandboxes have use for the other cores
    stages=(
        Stage(
            name="imitate",
            updates=16,
            source=Demonstrations(policy=SEARCH, num_episodes=80, batch=40, only_successful=True),
            credit=ConstantCredit(1.0),
            objective=Objective(observation_weight=0.1),
            optimisation=Optimisation(lr=2e-3, warmup_updates=1, schedule=Linear(0.1)),
            minibatches=4,
            evaluate=True,
        ),
        Stage(
            name="learn",
            updates=40,
            source=Rollouts(num_groups=32, group_size=1),
            reward=Sum((*LADDER, Scaled(Process("passed"), 0.1), Format(penalty=0.05))),
            # Turns are paid for edits that pass only where work was handed in that has a patch.
            transforms=(Gates((Level(("outcome", "fixed", "patch", "submitted"), 0.1), Level(("passed",)))),),
            credit=TurnGAE(gamma=0.95, lam=0.95),
            modifiers=(Whiten(),),
            objective=Objective(loss=Clip(0.2, 0.2), value=ValueLoss(0.5)),
            optimisation=Optimisation(
                lr=8e-4, warmup_updates=2, freeze_policy_updates=1, schedule=Linear(0.4)
            ),
            epochs=3,
            minibatches=2,
            evaluate=True,
            evaluate_every=20,
        ),
    ),
    evaluation=Evaluation(
        split="held-out",
        sampling=Sampling(temperature=0.3, max_tokens=6),
        baselines={"random": RandomPolicy(), "expert": ExpertPolicy()},
    ),
)
