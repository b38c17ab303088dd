"""Learning, with controls: with zero advantages success stays flat, with flipped ones it falls.

The thresholds lie between the floor and the plateau.

The untrained agent in the corridor says one of four letters or nothing, with equal probability: it opens a
fifth of the doors. An agent that knows the task opens all of them.
"""

from dataclasses import replace

import numpy as np
import pytest
import tiny

from agentrl.credit.gae import TurnGAE
from agentrl.credit.group import GRPO, RLOO
from agentrl.credit.modifiers import ScaleAdvantages, UnitDeviation, Whiten
from agentrl.credit.returns import TurnReturn
from agentrl.learner import Optimisation
from agentrl.losses.clip import Clip
from agentrl.losses.objective import Objective
from agentrl.losses.value import ValueLoss
from agentrl.sources import Rollouts

STAGE = replace(
    tiny.LEARN,
    updates=40,
    source=Rollouts(num_groups=16, group_size=4),
    optimisation=Optimisation(lr=5e-3),
    epochs=1,
    evaluate=False,
)
METHODS = {
    "turn return": replace(STAGE, credit=TurnReturn(gamma=0.5), modifiers=(Whiten(),)),
    "rloo": replace(STAGE, credit=RLOO(), modifiers=(UnitDeviation(),)),
    "grpo": replace(STAGE, credit=GRPO(), modifiers=()),
    "ppo over turns": replace(
        STAGE,
        credit=TurnGAE(gamma=0.5),
        modifiers=(UnitDeviation(),),
        objective=Objective(loss=Clip(), value=ValueLoss()),
        optimisation=Optimisation(lr=5e-3, value_lr=1e-2),
    ),
}
DOORS = 3


def opened(stage, folder, seed=0) -> tuple[float, float]:
    """Return the share of doors that open in the first update of 64 episodes, and in the last four."""
    tiny.run(tiny.only(stage, seed=seed, evaluation=replace(tiny.recipe.evaluation, baselines={})), folder)
    share = np.array(tiny.numbers(folder, "rollout/return")) / DOORS
    return float(share[0]), float(share[-4:].mean())


def scaled(stage, factor):
    return replace(stage, modifiers=(*stage.modifiers, ScaleAdvantages(factor)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", METHODS)
def test_doors_open_for_who_is_paid_for_it(name, seed, tmp_path):
    before, after = opened(METHODS[name], tmp_path, seed)
    assert 0.1 < before < 0.35
    assert after > 0.75


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_without_advantages_nothing_is_learned(name, tmp_path):
    before, after = opened(scaled(METHODS[name], 0.0), tmp_path)
    assert abs(after - before) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_with_flipped_advantages_what_was_known_by_chance_is_lost(name, tmp_path):
    _, after = opened(scaled(METHODS[name], -1.0), tmp_path)
    assert after < 0.05


def test_one_short_run_learns_and_its_controls_do_not(tmp_path):
    stage = replace(METHODS["ppo over turns"], updates=22)
    assert opened(stage, tmp_path / "paid")[1] > 0.6
    assert 0.1 < opened(scaled(stage, 0.0), tmp_path / "flat")[1] < 0.35
    assert opened(scaled(stage, -1.0), tmp_path / "flipped")[1] < 0.08
