"""The trials: one for each claim about how methods learn."""

from __future__ import annotations

from collections.abc import Mapping

from agentrl.credit.anchors import HGPO, GiGPO
from agentrl.credit.entropy import EMPG
from agentrl.credit.gae import TurnGAE
from agentrl.credit.modifiers import Whiten
from agentrl.credit.returns import turn_rloo
from agentrl.credit.strata import CountOf, Stratified
from agentrl.learner import Optimisation
from agentrl.losses.clip import Clip
from agentrl.losses.entropy import EntropyBonus
from agentrl.losses.epo import EPO
from agentrl.losses.objective import Objective
from agentrl.losses.value import ValueLoss
from agentrl.rewards.compose import Scaled, Sum
from agentrl.rewards.gates import Gates, Level
from agentrl.rewards.outcome import Outcome, Process
from agentrl.sources import Rollouts
from benchmarks.learning_tasks import Trial, imitate, learn
from benchmarks.learning_tasks.games import Archive, Corridor, KeyDoor, NoisyTV

SHINE = 0.3
"""Reward of rubbing the lamp once.

The exit is worth 1 and four or five moves away, so staying at the lamp pays more than leaving.
"""
CLIP = Clip(0.2, 0.2)
TV_UPDATES = 40

TRIALS: Mapping[str, Trial] = {
    "corridor": Trial(
        question="is a misleading dense reward followed?",
        env=Corridor(),
        stage=learn(
            updates=30,
            reward=Sum((Outcome(), Scaled(Process("shine"), SHINE))),
            optimisation=Optimisation(lr=2e-3),
        ),
        methods={
            "plain sum": {},
            "gated (G-RA)": {"transforms": (Gates((Level(("outcome",), 1.0), Level(("shine",)))),)},
            "outcome alone": {"reward": Outcome()},
        },
        threshold=0.8,
        start=imitate(errors=0.95),
    ),
    "key-door": Trial(
        question="does credit per turn need fewer updates?",
        env=KeyDoor(),
        stage=learn(
            updates=120, source=Rollouts(num_groups=4, group_size=8), optimisation=Optimisation(lr=2e-3)
        ),
        methods={  # each method has the best of three learning rates for it
            "GRPO": {"optimisation": Optimisation(lr=5e-4)},
            "turn RLOO": {"credit": turn_rloo()},
            "GiGPO": {"credit": GiGPO(), "optimisation": Optimisation(lr=1e-3)},
            "HGPO": {"credit": HGPO(), "optimisation": Optimisation(lr=1e-3)},
            "turn GAE": {
                "credit": TurnGAE(0.95, 0.8),
                "modifiers": (Whiten(),),
                "objective": Objective(loss=CLIP, value=ValueLoss(0.5)),
            },
        },
        threshold=0.8,
        start=imitate(errors=1.0),  # it knows the words and when they are valid, but not where to go
    ),
    "noisy-tv": Trial(
        question="does minding the entropy help where some turns are noise?",
        env=NoisyTV(),
        stage=learn(updates=TV_UPDATES, minibatches=2, optimisation=Optimisation(lr=2e-3)),
        methods={
            "GRPO": {},
            "GRPO + entropy bonus": {"objective": Objective(loss=CLIP, regularisers=(EntropyBonus(0.001),))},
            "EPO": {"objective": Objective(loss=CLIP, regularisers=(EPO(TV_UPDATES, coef=0.001),))},
            "EMPG": {"modifiers": (EMPG(),)},
        },
        threshold=0.8,
        start=imitate(errors=0.8),
    ),
    "archive": Trial(
        question="should episodes of different kinds be compared?",
        env=Archive(),
        stage=learn(
            updates=40,
            source=Rollouts(num_groups=16, group_size=16),
            minibatches=2,
            optimisation=Optimisation(lr=2e-3),
        ),
        methods={
            "GRPO": {},
            "stratified, alpha 0.8": {"credit": Stratified(CountOf("tool"))},
            "stratified, alpha 1": {"credit": Stratified(CountOf("tool"), alpha=1.0)},
        },
        threshold=0.8,
        start=imitate(errors=0.65),
    ),
}
