"""Scorers, and parts with a memory: their numbers, their gradients, and that a resumed run continues them."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from corridor import Corridor
from hypothesis import given
from hypothesis import strategies as st
from loss_inputs import inputs

from agentrl.credit.components import EpisodeAndSteps
from agentrl.errors import ConfigError
from agentrl.learner import Optimisation
from agentrl.learner.implicit import ImplicitPRM, pair_weights
from agentrl.losses.aggregation import nested_mean
from agentrl.losses.clip import Clip
from agentrl.losses.epo import EPO
from agentrl.losses.kl import KL, k2
from agentrl.losses.objective import Objective
from agentrl.rewards.outcome import Outcome
from agentrl.samplers.adaptive import SEC
from agentrl.sources import Rollouts

CLOSE = {"rtol": 0.0, "atol": 1e-5}


def loss_of(totals, successes, beta):
    pairs = [
        (a, b)
        for a, won in zip(totals, successes, strict=True)
        if won
        for b, lost in zip(totals, successes, strict=True)
        if not lost
    ]
    return sum(-math.log(1 / (1 + math.exp(-beta * (a - b)))) for a, b in pairs) / len(pairs)


def test_the_pair_loss_is_istars():
    found = pair_weights([5.0, -4.0], [True, False], 0.05)
    assert found.loss == pytest.approx(0.493249, abs=1e-5)
    assert (found.pairs, found.right) == (1, 1)


@given(
    st.lists(st.tuples(st.floats(-20, 20), st.booleans()), min_size=2, max_size=6).filter(
        lambda rows: len({won for _, won in rows}) == 2
    ),
    st.sampled_from([0.05, 0.5]),
)
def test_the_weights_are_minus_the_gradient_of_the_pair_loss(rows, beta):
    totals, successes = (list(column) for column in zip(*rows, strict=True))
    found = pair_weights(totals, successes, beta)
    assert found.loss == pytest.approx(loss_of(totals, successes, beta), abs=1e-9)
    for i in range(len(totals)):
        up, down = ([total + sign * 1e-5 * (i == j) for j, total in enumerate(totals)] for sign in (1, -1))
        slope = (loss_of(up, successes, beta) - loss_of(down, successes, beta)) / 2e-5
        assert found.weights_G[i] == pytest.approx(-slope, abs=1e-6)


def test_a_group_of_one_kind_says_nothing():
    assert pair_weights([1.0, 2.0], [True, True], 0.05).pairs == 0
    assert pair_weights([], [], 0.05).weights_G == ()


def test_epo_is_a_bonus_less_what_leaves_the_band():
    """Two trajectories of turns [[2, 3], [1]] tokens; the history's mean is 0.8."""
    epo = EPO(150, history=[0.8] * 30)
    x = inputs([0.0] * 6, entropies=[0.2, 0.4, 1.0, 2.0, 3.0, 0.6])
    weights = nested_mean([[2, 3], [1]])
    term_A, measured = epo(x)
    assert measured["outside_band"].tolist() == [1, 0, 0, 1, 1, 0]
    smooth = 0.024167
    assert float((torch.from_numpy(weights) * term_A).sum()) == pytest.approx(
        -0.001 * (0.875 - 1.301194 * smooth), abs=1e-7
    )
    assert 0.5 - 0.001 * (0.875 - epo.phase(30) * smooth) == pytest.approx(0.499156, abs=1e-6)
    first, _ = EPO(150)(x)
    assert float((torch.from_numpy(weights) * first).sum()) == pytest.approx(-0.001 * 0.875, abs=1e-8)


def test_epos_published_code_has_no_gradient_outside_its_band():
    def slope(release):
        entropies = torch.tensor([0.1, 3.0], dtype=torch.float64, requires_grad=True)
        x = replace(inputs([0.0, 0.0]), entropies_A=entropies)
        return torch.autograd.grad(EPO(150, coef=1.0, release=release, history=[0.8])(x)[0].sum(), entropies)[
            0
        ].tolist()

    assert slope(True) == [-1.0, -1.0]
    assert slope(False)[0] < -1.0 < slope(False)[1]


def test_epos_published_code_pays_a_constant_outside_its_band_and_on_its_edge():
    epo = EPO(150, coef=1.0, release=True, history=[0.8])
    term_A, measured = epo(inputs([0.0] * 6, entropies=[0.2, 0.4, 1.0, 2.0, 3.0, 0.6]))
    assert measured["outside_band"].tolist() == [1, 1, 0, 1, 1, 0]
    total = float((torch.from_numpy(nested_mean([[2, 3], [1]])) * term_A).sum())
    assert (total + 0.875) / epo.phase(1) == pytest.approx(0.041667, abs=1e-6)


def test_epos_phases():
    np.testing.assert_allclose(
        [EPO(150, release=True).phase(k) for k in (0, 75, 76, 150)],
        [1.0, 0.827067, 0.768632, 0.03983],
        **CLOSE,
    )
    with pytest.raises(ConfigError, match="low <= high"):
        EPO(10, low=2.0, high=1.0)


def place_of(task):
    return str(task.data["doors"])[0]


STAGE = replace(
    tiny.LEARN,
    evaluate=False,
    updates=5,
    source=Rollouts(num_groups=6, group_size=4, sampler=SEC(place_of)),
    reward=Outcome(),
    credit=EpisodeAndSteps(),
    modifiers=(),
    scorers=(ImplicitPRM(optimisation=Optimisation(lr=1e-3)),),
    objective=Objective(loss=Clip(), regularisers=(EPO(5, coef=0.01), KL(0.01, k2))),
)


WARM = replace(tiny.WARM, updates=2)
RECIPE = replace(
    tiny.recipe,
    env=Corridor(max_turns=2),
    stages=(WARM, STAGE),
    checkpoints=replace(tiny.recipe.checkpoints, keep=99),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored") / "run"
    tiny.run(RECIPE, folder)
    return folder


def test_steps_are_paid_and_the_model_that_pays_them_learns(finished):
    kept = [one for one in tiny.stored(finished) if one.stage == "learn"]
    assert {"implicit", "outcome"} == set(kept[0].scored.ledger)
    assert all(
        not one.scored.ledger["implicit"].any() for one in kept if one.update == WARM.updates
    )  # it starts as the policy is
    assert any(one.scored.ledger["implicit"].any() for one in kept if one.update > WARM.updates + 1)
    pairs = tiny.numbers(finished, "scorer/implicit_pairs")
    assert len(pairs) == STAGE.updates
    assert max(pairs) > 0
    assert all(0.0 <= value <= 1.0 for value in tiny.numbers(finished, "scorer/implicit_accuracy"))


def test_the_band_follows_the_entropies_that_were_measured(finished):
    assert tiny.numbers(finished, "learner/outside_band")[0] == 0.0


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_run_with_memory_of_every_kind_goes_on_as_if_it_never_stopped(finished, at, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for path in (folder / "checkpoints").glob("[0-9]*"):
        if int(path.name) > at:
            shutil.rmtree(path)
    tiny.run(RECIPE, folder)
    assert tiny.remains(folder) == tiny.remains(finished)
