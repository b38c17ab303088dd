import asyncio
import io
import json
import threading
from dataclasses import dataclass, replace

import numpy as np
import pytest
import tiny
from corridor import Blocking, Corridor

from agentrl.commands.reporter import ConsoleReporter
from agentrl.credit.gae import TokenGAE, TurnGAE
from agentrl.credit.group import GRPO, RLOO, DrGRPO
from agentrl.credit.modifiers import Whiten
from agentrl.credit.penalty import KLPenalty
from agentrl.credit.returns import TurnReturn, turn_rloo
from agentrl.errors import Diverged, EnvError
from agentrl.learner import Optimisation
from agentrl.learner.learner import TorchLearner
from agentrl.losses import PolicyGradient
from agentrl.losses.aggregation import SeqSumOver, seq_mean_then_mean, token_mean, turn_mean
from agentrl.losses.clip import Clip
from agentrl.losses.entropy import EntropyBonus
from agentrl.losses.kl import KL, k2, k3
from agentrl.losses.objective import Objective
from agentrl.losses.tis import SequenceTIS, TokenRejection, TokenTIS
from agentrl.losses.value import ValueLoss
from agentrl.policy import Sampling
from agentrl.records.metrics import read_metrics
from agentrl.rewards.compose import Sum
from agentrl.rewards.gates import Gates, Level
from agentrl.rewards.outcome import EnvReward, Format, Outcome
from agentrl.samplers import Sampler
from agentrl.samplers.filters import DynamicSampling
from agentrl.samplers.uniform import Uniform
from agentrl.sources import Rollouts
from agentrl.train import due, evaluations, train
from agentrl.types import End

LEARN = replace(tiny.LEARN, evaluate=False)


def logged(folder):
    """Return the lines of the log, without the numbers of attempts, which an accident may change."""
    accidental = ("rollout/attempts", "rollout/failed")
    return [
        {name: value for name, value in line.items() if name not in accidental}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def weights(folder, update):
    found = tiny.remains(folder / "checkpoints" / f"{update:06d}" / "model")
    return found["model.safetensors"]


VARIANTS = {
    "turn return": replace(LEARN, credit=TurnReturn(gamma=0.9), modifiers=(Whiten(),)),
    "turn rloo": replace(LEARN, credit=turn_rloo(), modifiers=(), objective=Objective(loss=PolicyGradient())),
    "grpo, dual clip": replace(
        LEARN,
        credit=GRPO(),
        modifiers=(),
        objective=Objective(loss=Clip(0.2, 0.28, dual=3.0), aggregate=seq_mean_then_mean),
    ),
    "dr.grpo": replace(
        LEARN, credit=DrGRPO(), modifiers=(), objective=Objective(loss=Clip(), aggregate=SeqSumOver(3.0))
    ),
    "rloo, reference, entropy": replace(
        LEARN,
        credit=RLOO(),
        modifiers=(),
        objective=Objective(loss=Clip(), regularisers=(KL(0.1, k3), EntropyBonus(0.01))),
    ),
    "kl in the reward": replace(
        LEARN,
        credit=KLPenalty(TurnReturn(), 0.1),
        objective=Objective(loss=Clip(), regularisers=(KL(0.1, k2),)),
    ),
    "ppo over turns, critic first": replace(
        LEARN,
        credit=TurnGAE(),
        objective=Objective(loss=Clip(), value=ValueLoss(clip=0.2), aggregate=turn_mean),
        optimisation=Optimisation(lr=3e-3, value_lr=1e-2, freeze_policy_updates=2),
    ),
    "ppo over tokens": replace(
        LEARN, credit=TokenGAE(), objective=Objective(loss=Clip(), value=ValueLoss(), aggregate=token_mean)
    ),
    "off-policy, per token": replace(LEARN, objective=Objective(loss=Clip(), off_policy=TokenTIS())),
    "off-policy, per sequence": replace(LEARN, objective=Objective(loss=Clip(), off_policy=SequenceTIS())),
    "off-policy, rejected": replace(LEARN, objective=Objective(loss=Clip(), off_policy=TokenRejection())),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_method_goes_through_the_loop_and_its_measurements_arrive(name, tmp_path):
    stage = VARIANTS[name]
    tiny.run(tiny.only(stage, checkpoints=replace(tiny.recipe.checkpoints, keep=5)), tmp_path)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["update"] for line in lines] == [0, 1, 2, 3]
    for line in lines:
        frozen = line["update"] < stage.optimisation.freeze_policy_updates
        assert ("learner/logprob_gap" in line) != frozen
        assert line.get("learner/logprob_gap", 0.0) < 1e-4
        assert all(value is not None for value in line.values())
    kept = tiny.stored(tmp_path)
    for need in ("values", "entropies", "old_logprobs", "ref_logprobs"):
        annotated = need in stage.credit.needs | (stage.objective.needs - {"entropies", "values"})
        for one in kept:
            measured = one.scored.measured.get(need)
            assert measured is None or len(measured) == one.trajectory.num_tokens
            assert not annotated or measured is not None
    moved = [weights(tmp_path, update) != weights(tmp_path, update + 1) for update in (1, 2, 3)]
    assert moved == [update >= stage.optimisation.freeze_policy_updates for update in (1, 2, 3)]


def test_what_nobody_needs_is_not_measured(tmp_path):
    tiny.run(tiny.only(LEARN), tmp_path)
    for one in tiny.stored(tmp_path):
        assert (
            one.scored.measured.values
            is one.scored.measured.old_logprobs
            is one.scored.measured.ref_logprobs
            is None
        )
        assert one.credited.targets_T is None


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_and_learner_agree_on_every_token_of_real_episodes(temperature, tmp_path):
    stage = replace(
        LEARN,
        updates=6,
        source=Rollouts(num_groups=8, group_size=2),
        objective=Objective(loss=Clip(), off_policy=TokenTIS()),
    )
    tiny.run(tiny.only(stage, sampling=Sampling(max_tokens=3, temperature=temperature)), tmp_path)
    gaps = []
    for one in tiny.stored(tmp_path):
        sampled_T = np.concatenate([turn.action.logprobs for turn in one.trajectory.turns])
        gaps.append(np.abs(one.scored.measured.old_logprobs - sampled_T).max())
        assert (
            any(len(turn.action.tokens) > 1 for turn in one.trajectory.turns)
            or one.trajectory.num_tokens == 3
        )
    assert len(gaps) == 6 * 16
    assert max(gaps) < 1e-4
    for name in ("rollout/logprob_gap", "learner/logprob_gap"):
        assert max(tiny.numbers(tmp_path, name)) < 1e-4


def test_a_learner_at_another_temperature_than_the_sampler_would_be_seen(tmp_path, monkeypatch):
    update = TorchLearner.update
    monkeypatch.setattr(
        TorchLearner,
        "update",
        lambda self, *args, **options: update(self, *args, **{**options, "temperature": 1.0}),
    )
    tiny.run(tiny.only(LEARN, sampling=Sampling(max_tokens=1, temperature=0.7)), tmp_path)
    assert min(tiny.numbers(tmp_path, "learner/logprob_gap")) > 0.01


def test_the_version_that_acted_is_the_version_that_learns(tmp_path):
    tiny.run(tiny.recipe, tmp_path)
    for one in tiny.stored(tmp_path):
        versions = {turn.action.version for turn in one.trajectory.turns}
        assert versions == ({-1} if one.stage == "warm" else {one.update})


AHEAD = replace(
    LEARN,
    updates=6,
    source=Rollouts(num_groups=4, group_size=2, max_staleness=1),
    objective=Objective(loss=Clip(), off_policy=TokenTIS()),
)


@pytest.mark.parametrize("staleness", [1, 2])
def test_playing_ahead_stays_within_its_bound_and_is_used(staleness, tmp_path):
    stage = replace(AHEAD, source=replace(AHEAD.source, max_staleness=staleness))
    tiny.run(tiny.only(stage), tmp_path)
    stalest = tiny.numbers(tmp_path, "rollout/staleness_max")
    assert len(stalest) == 6
    assert stalest[0] == 0
    assert max(stalest) == staleness
    assert all("learner/off_policy_weight" in line for line in read_metrics(tmp_path / "metrics.jsonl"))


def order_of_events(recipe, folder, monkeypatch):
    """Return what began and ended, in order: updates of the learner, and episodes by the end."""
    events = []
    update = TorchLearner.update

    def watched(self, *args, **options):
        events.append("learning begins")
        if recipe.stages[0].source.max_staleness:
            episodes = sum(event == "episode" for event in events)
            for _ in range(1000):  # until somebody plays: without playing ahead this would be for ever
                if sum(event == "episode" for event in events) > episodes or len(events) > 40:
                    break
                pause.wait(0.005)
        result = update(self, *args, **options)
        events.append("learning ends")
        return result

    pause = threading.Event()
    monkeypatch.setattr(TorchLearner, "update", watched)
    with ConsoleReporter(io.StringIO()) as reporter:
        monkeypatch.setattr(reporter, "episode", lambda trajectory: events.append("episode"))
        asyncio.run(train(recipe, folder, reporter))
    return events


def test_episodes_end_while_the_learner_learns_only_where_staleness_is_allowed(tmp_path, monkeypatch):
    def overlaps(events):
        return sum(
            "episode" in span.split("learning ends")[0]
            for span in " ".join(events).split("learning begins")[1:]
        )

    small = tiny.only(AHEAD, evaluation=replace(tiny.recipe.evaluation, baselines={}))
    assert overlaps(order_of_events(small, tmp_path / "ahead", monkeypatch)) >= 1
    still = tiny.only(
        replace(AHEAD, source=replace(AHEAD.source, max_staleness=0)), evaluation=small.evaluation
    )
    assert overlaps(order_of_events(still, tmp_path / "still", monkeypatch)) == 0


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_learner_that_fails_ends_the_run_at_once(staleness, tmp_path, monkeypatch):
    def diverge(self, *args, **options):
        raise Diverged("the loss is not finite")

    monkeypatch.setattr(TorchLearner, "update", diverge)
    with pytest.raises(Diverged, match="not finite"):
        tiny.run(tiny.only(replace(AHEAD, source=replace(AHEAD.source, max_staleness=staleness))), tmp_path)


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_run_whose_environment_always_breaks_stops_and_says_what_broke(staleness, tmp_path):
    tiny.run(tiny.only(replace(LEARN, updates=1)), tmp_path)  # leaves a tokenizer
    broken = tiny.only(
        replace(AHEAD, source=replace(AHEAD.source, max_staleness=staleness)),
        env=Corridor(accident="always"),
        evaluation=replace(tiny.recipe.evaluation, baselines={}),
        model=replace(tiny.recipe.model, tokenizer=str(tmp_path / "tokenizer")),
    )
    with pytest.raises(
        EnvError,
        match=r"every episode of update 0 of stage 'learn' failed; 24 attempts, "
        r".*the roof of corridor-\d+ fell in",
    ):
        tiny.run(broken, tmp_path / "broken")


@pytest.mark.parametrize("updates_before", [0, 2])
def test_where_nothing_is_left_to_learn_from_the_weights_stay(updates_before, tmp_path):
    impossible = replace(
        LEARN,
        name="impossible",
        updates=2,
        reward=Outcome(),
        filters=(DynamicSampling(),),
        source=Rollouts(num_groups=3),
    )
    stages = (replace(LEARN, updates=updates_before),) if updates_before else ()
    env = Corridor(max_turns=12)  # nobody opens twelve doors in a row by chance
    limits = replace(tiny.recipe.limits, max_turns=12)
    recipe = replace(
        tiny.recipe,
        env=env,
        limits=limits,
        stages=(*stages, impossible),
        checkpoints=replace(tiny.recipe.checkpoints, keep=5),
    )
    tiny.run(recipe, tmp_path)
    lines = read_metrics(tmp_path / "metrics.jsonl")[-2:]
    assert [(line["rollout/groups"], line["filter/dropped"]) for line in lines] == [(0, 3), (0, 3)]
    assert weights(tmp_path, updates_before + 1) == weights(tmp_path, updates_before + 2)
    assert not updates_before or weights(tmp_path, updates_before) == weights(tmp_path, updates_before + 1)


ACCIDENTS = replace(LEARN, updates=3, source=Rollouts(num_groups=8, group_size=2))
ALONE = replace(tiny.recipe.evaluation, baselines={})


def with_tokenizer_of(sound, folder, recipe):
    """Return the recipe with a tokenizer from another run: the accidents are to happen in training."""
    tiny.run(sound, folder)
    return replace(recipe, model=replace(recipe.model, tokenizer=str(folder / "tokenizer")))


def test_numbers_depend_neither_on_workers_nor_on_accidents(tmp_path):
    recipe = tiny.only(ACCIDENTS, env=Blocking(), evaluation=ALONE)
    (tmp_path / "marks").mkdir()
    dying = replace(recipe, env=Blocking(accident="die", marks=str(tmp_path / "marks")), num_workers=2)
    dying = with_tokenizer_of(recipe, tmp_path / "one", dying)
    tiny.run(replace(recipe, num_workers=2), tmp_path / "two")
    tiny.run(dying, tmp_path / "dying")
    assert (
        tiny.numbers(tmp_path / "one", "rollout/failed")
        == tiny.numbers(tmp_path / "two", "rollout/failed")
        == [0, 0, 0]
    )
    assert sum(tiny.numbers(tmp_path / "dying", "rollout/failed")) >= 1
    assert logged(tmp_path / "one") == logged(tmp_path / "two") == logged(tmp_path / "dying")
    assert weights(tmp_path / "one", 3) == weights(tmp_path / "two", 3) == weights(tmp_path / "dying", 3)


def test_failed_attempts_are_kept_apart_played_again_and_never_paid(tmp_path):
    sound = tiny.only(ACCIDENTS)
    (tmp_path / "marks").mkdir()
    broken = replace(sound, env=Corridor(accident="raise", marks=str(tmp_path / "marks")))
    tiny.run(with_tokenizer_of(sound, tmp_path / "sound", broken), tmp_path / "broken")
    kept = tiny.stored(tmp_path / "broken")
    failures = [one for one in kept if one.group == -1]
    assert failures
    assert all(
        one.trajectory.end is End.FAILED and "the floor gave way" in one.trajectory.error for one in failures
    )
    assert all(one.scored is None and one.credited is None for one in failures)
    assert all(one.trajectory.end is not End.FAILED for one in kept if one.group >= 0)
    for failure in failures:
        again = [
            (one.trajectory.task.id, one.trajectory.sample)
            for one in kept
            if one.group >= 0 and one.update == failure.update
        ]
        assert again.count((failure.trajectory.task.id, failure.trajectory.sample)) == 1
    assert sum(tiny.numbers(tmp_path / "broken", "rollout/failed")) == len(failures)
    assert logged(tmp_path / "broken") == logged(tmp_path / "sound")


def test_evaluations_come_where_they_are_due_and_bear_the_stage_and_its_update():
    stage = replace(LEARN, name="learn", updates=5, evaluate=True, evaluate_every=2)
    assert [due(stage, local) for local in range(5)] == [False, True, False, True, True]
    recipe = replace(tiny.recipe, stages=(replace(tiny.WARM, evaluate=True), stage))
    assert evaluations(recipe) == {"warm-3": 2, "learn-2": 4, "learn-4": 6, "learn-5": 7}


@dataclass
class Counting(Sampler):
    """A sampler with state: how many groups it has observed."""

    count: int = 0

    def draw(self, tasks, **asked):
        return Uniform().draw(tasks, **asked)

    def observe(self, groups):
        self.count += len(groups)

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_checkpoint_holds_the_sampler_as_it_was_when_its_groups_were_played(staleness, tmp_path):
    """Groups that were played ahead are played again after a kill; a later state would observe them twice."""
    stage = replace(AHEAD, source=replace(AHEAD.source, max_staleness=staleness, sampler=Counting()))
    tiny.run(tiny.only(stage, checkpoints=replace(tiny.recipe.checkpoints, keep=9)), tmp_path)
    kept = sorted((tmp_path / "checkpoints").glob("[0-9]*"))
    counts = [
        json.loads((path / "learner.json").read_text())["extra"]["samplers"]["learn"]["count"]
        for path in kept
    ]
    assert counts == [4 * update for update in range(1, stage.updates + 1)]


def test_what_gates_decided_is_a_metric(tmp_path):
    gates = Gates((Level(("env",), 10.0), Level(("format",))))
    stage = replace(LEARN, reward=Sum((EnvReward(), Format())), transforms=(gates,))
    tiny.run(tiny.only(stage), tmp_path)
    assert tiny.numbers(tmp_path, "gate/env") == [0.0] * stage.updates
