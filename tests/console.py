"""The command line for tests: a tiny recipe, and functions that run ``agentrl`` and check the result."""

import subprocess
import sys

from typer.testing import CliRunner

from agentrl.cli import app

RECIPE = '''"""A tiny recipe."""

from agentrl_environments.bandit import Bandit

from agentrl.credit.constant import ConstantCredit
from agentrl.credit.group import GRPO
from agentrl.learner import Compute, Optimisation
from agentrl.losses.clip import Clip
from agentrl.learner import ModelSpec, Shape, TrainedTokenizer
from agentrl.losses.objective import Objective
from agentrl.policy import ExpertPolicy, RandomPolicy, Sampling
from agentrl.recipe import Evaluation, Recipe, Stage
from agentrl.rollout import Limits
from agentrl.sources import Demonstrations, Rollouts

learning = Optimisation(lr=1e-2)
recipe = Recipe(
    name="tiny",
    env=Bandit(max_turns=2),
    model=ModelSpec(
        shape=Shape(hidden=32, layers=1, heads=2, kv_heads=1, mlp=64, max_context=128),
        tokenizer=TrainedTokenizer(vocab_size=300),
    ),
    sampling=Sampling(max_tokens=3),
    compute=Compute(threads=1),
    limits=Limits(max_turns=2),
    stages=(
        Stage(
            name="imitate",
            updates=2,
            source=Demonstrations(policy=ExpertPolicy(), num_episodes=64),
            credit=ConstantCredit(1.0),
            objective=Objective(),
            optimisation=learning,
            minibatches=16,
            evaluate=True,
        ),
        Stage(
            name="learn",
            updates=2,
            source=Rollouts(num_groups=4, group_size=2),
            credit=GRPO(),
            objective=Objective(loss=Clip(0.2, 0.2)),
            optimisation=learning,
            evaluate=True,
        ),
    ),
    evaluation=Evaluation(
        num_tasks=24,
        sampling=Sampling(temperature=1.0, max_tokens=3),
        baselines={"random": RandomPolicy(), "expert": ExpertPolicy()},
    ),
)
'''

PROGRAM = (sys.executable, "-c", "from agentrl.cli import main; main()")


class Done:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def agentrl(*arguments: object, stdin: str = "") -> Done:
    """Run a command in this process; exceptions that are not reported to the user as messages are raised."""
    result = CliRunner().invoke(
        app, [str(argument) for argument in arguments], input=stdin, catch_exceptions=False
    )
    return Done(result.exit_code, result.stdout, result.stderr)


def program(*arguments: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False, **options
    )


def refused(done: Done, *words: str) -> None:
    """Check that a user's mistake is one message that names what matters, and nothing else."""
    assert done.code == 2, done.err
    assert done.err.startswith("error: "), done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    for word in words:
        assert word in done.err, done.err
