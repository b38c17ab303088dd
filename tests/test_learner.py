import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learners import EVERYTHING, SHAPE, VOCAB, credit, groups_of, learner_of, trajectory, twenty_updates

from agentrl.errors import ConfigError, Diverged
from agentrl.learner import Compute, Linear, Optimisation
from agentrl.learner.batch import Batch, make_batch
from agentrl.learner.learner import TorchLearner
from agentrl.learner.model import build_model
from agentrl.learner.spec import LoRA, ModelSpec
from agentrl.losses import Loss, OffPolicy, PolicyGradient
from agentrl.losses.aggregation import SeqSumOver, seq_mean_then_mean, seq_sum_then_mean
from agentrl.losses.clip import Clip
from agentrl.losses.entropy import EntropyBonus
from agentrl.losses.groups import NFT, OREAL, CoPG, DisCO, KLBound
from agentrl.losses.kl import KL
from agentrl.losses.objective import Objective
from agentrl.losses.value import ValueLoss
from agentrl.types import (
    Action,
    Credited,
    End,
    Observation,
    Scored,
    ScoredGroup,
    Task,
    Trajectory,
    Turn,
    floats,
)

ALL = frozenset({"values", "entropies", "old_logprobs", "ref_logprobs"})


def parameters(learner: TorchLearner) -> dict[str, torch.Tensor]:
    return {
        name: tensor.clone()
        for name, tensor in learner.state_dict()[0].items()
        if not name.startswith("optimiser")
    }


def gradient(
    learner: TorchLearner, batch: Batch, objective: Objective, temperature: float = 1.0
) -> dict[str, torch.Tensor]:
    """The gradient that an update steps with, read off where the optimiser would use it."""
    found = {}
    optimiser = learner._optimiser
    named = dict(learner.model.named_parameters())

    def keep(*_: object) -> None:
        found.update({name: weight.grad.clone() for name, weight in named.items() if weight.grad is not None})

    hook = optimiser.register_step_pre_hook(keep)
    learner.update(batch, objective, temperature=temperature)
    hook.remove()
    return found


def full_forward(learner: TorchLearner, tokens: np.ndarray, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of every next token by the model's own forward."""
    own = build_model(ModelSpec(shape=SHAPE, tokenizer="-"), VOCAB, seed=3)
    own.load_state_dict(learner.weights())
    with torch.no_grad():
        logits = own(torch.tensor(tokens, dtype=torch.long)[None]).logits[0].double() / temperature
    return logits.log_softmax(-1)


def test_log_probabilities_and_entropies_are_those_of_the_models_own_forward():
    groups, learner = groups_of(3), learner_of()
    annotated = learner.annotate(groups, frozenset({"old_logprobs", "entropies"}), temperature=0.7)
    for scored in (scored for group in annotated for scored in group):
        (sequence,) = make_batch([(scored,)]).sequences
        (row,) = sequence.rows
        wanted = full_forward(learner, row.tokens_L, temperature=0.7)[row.positions_A - 1]
        chosen = wanted[
            torch.arange(len(wanted)), torch.tensor(row.tokens_L[row.positions_A], dtype=torch.long)
        ]
        assert np.allclose(scored.measured.old_logprobs, chosen, atol=1e-5)
        assert np.allclose(scored.measured.entropies, -(wanted.exp() * wanted).sum(-1), atol=1e-5)


def test_a_packed_trajectory_has_the_log_probabilities_that_it_has_alone():
    groups = groups_of(6)
    together = learner_of(budget=10_000).annotate(groups, ALL)
    alone = learner_of(budget=1).annotate(groups, ALL)
    for left, right in zip((s for g in together for s in g), (s for g in alone for s in g), strict=True):
        assert np.allclose(left.measured.old_logprobs, right.measured.old_logprobs, atol=1e-5)


def test_only_what_is_needed_is_measured():
    (scored, _), *_ = learner_of().annotate(groups_of(1), frozenset({"entropies"}))
    assert scored.measured.entropies is not None
    assert (scored.measured.values, scored.measured.old_logprobs, scored.measured.ref_logprobs) == (
        None,
        None,
        None,
    )


def test_a_trajectory_without_tokens_is_measured_as_empty():
    silent = Scored(Trajectory(Task("t"), (Turn(Observation.text("o"), Action("a")),), End.TRUNCATED), {})
    ((found, spoken),) = learner_of().annotate([(silent, groups_of(1)[0][0])], ALL)
    assert all(
        array.shape == (0,)
        for array in (
            found.measured.values,
            found.measured.entropies,
            found.measured.old_logprobs,
            found.measured.ref_logprobs,
        )
    )
    assert spoken.measured.old_logprobs.shape == (spoken.trajectory.num_tokens,)


def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch():
    groups = groups_of(6)
    found = []
    for budget in (10_000, 60, 1):
        learner = learner_of(budget=budget)
        annotated = learner.annotate(groups, EVERYTHING.needs)
        found.append(gradient(learner, make_batch(annotated, credit(annotated)), EVERYTHING, temperature=0.8))
    whole, *divided = found
    assert whole
    for parts in divided:
        for name, wanted in whole.items():
            assert torch.allclose(parts[name], wanted, atol=1e-6, rtol=1e-5), name


OF_GROUPS = [
    Objective(loss=NFT(), aggregate=SeqSumOver(10.0)),
    Objective(loss=OREAL(), regularisers=(KL(),)),
    Objective(loss=CoPG(), aggregate=seq_sum_then_mean),
    Objective(loss=DisCO(tau=0.1), aggregate=seq_mean_then_mean, regularisers=(KLBound(),)),
]


@pytest.mark.parametrize("objective", OF_GROUPS, ids=lambda objective: type(objective.loss).__name__)
def test_a_loss_over_groups_has_the_same_gradient_whatever_the_micro_batches(objective):
    rng = np.random.default_rng(2)
    groups = [tuple(trajectory(rng, int(rng.integers(1, 5))) for _ in range(4)) for _ in range(3)]
    returns = [(1, 0, 0, 0), (1, 1, 0, 1), (1, 0, 1, 0)]
    found = []
    for budget in (10_000, 150, 1):
        learner = learner_of(budget=budget, value_head=False)
        moved = [  # a reference that is not the policy
            tuple(
                one.with_measured(ref_logprobs=floats(np.full(one.trajectory.num_tokens, -3.0)))
                for one in group
            )
            for group in groups
        ]
        credited = [
            tuple(
                Credited(floats(np.full(one.trajectory.num_tokens, r - np.mean(row))))
                for one, r in zip(group, row, strict=True)
            )
            for group, row in zip(moved, returns, strict=True)
        ]
        found.append(gradient(learner, make_batch(moved, credited), objective))
    whole, *divided = found
    assert any(weight.abs().max() > 1e-4 for weight in whole.values())
    for parts in divided:
        for name, wanted in whole.items():
            assert torch.allclose(parts[name], wanted, atol=1e-6, rtol=1e-4), name


@pytest.mark.parametrize("objective", OF_GROUPS, ids=lambda objective: type(objective.loss).__name__)
def test_a_loss_over_groups_parts_successes_from_failures(objective):
    rng = np.random.default_rng(4)
    groups = [tuple(trajectory(rng, 2) for _ in range(4)) for _ in range(2)]
    won = [(True, False, False, True), (False, False, True, False)]
    learner = learner_of(value_head=False, optimisation=Optimisation(lr=3e-3))

    def means(annotated: list[ScoredGroup], wanted: bool) -> float:
        chosen = [
            one
            for group, row in zip(annotated, won, strict=True)
            for one, good in zip(group, row, strict=True)
            if good == wanted
        ]
        return float(np.mean([one.measured.old_logprobs.mean() for one in chosen]))

    gaps = []
    for _ in range(8):
        annotated = learner.annotate(groups, frozenset({"old_logprobs", "ref_logprobs"}))
        gaps.append(means(annotated, True) - means(annotated, False))
        credited = [
            tuple(
                Credited(floats(np.full(one.trajectory.num_tokens, good - np.mean(row))))
                for one, good in zip(group, row, strict=True)
            )
            for group, row in zip(annotated, won, strict=True)
        ]
        learner.update(make_batch(annotated, credited), objective, minibatches=2, seed=len(gaps))
    assert gaps[-1] > gaps[0] + 0.2, gaps


def test_the_gradient_of_imitation_is_that_of_the_models_own_cross_entropy():
    groups = groups_of(2)
    ones = [tuple(Credited(floats(np.ones(s.trajectory.num_tokens))) for s in group) for group in groups]
    learner = learner_of(value_head=False)
    batch = make_batch(groups, ones)
    weights = {name: tensor.clone() for name, tensor in learner.weights().items()}
    found = gradient(learner, batch, Objective(observation_weight=0.5))
    own = build_model(ModelSpec(shape=SHAPE, tokenizer="-"), VOCAB, seed=3)
    own.load_state_dict(weights)
    actions, observed = [], []
    for sequence in batch.sequences:
        for row in sequence.rows:
            tokens = torch.tensor(row.tokens_L, dtype=torch.long)
            chosen = own(tokens[None]).logits[0].log_softmax(-1)[torch.arange(len(tokens) - 1), tokens[1:]]
            is_action = torch.tensor(row.is_action_L[1:])
            actions.append(chosen[is_action])
            observed.append(chosen[~is_action])
    (-torch.cat(actions).mean() - 0.5 * torch.cat(observed).mean()).backward()
    for name, weight in own.named_parameters():
        norm = torch.cat([w.grad.flatten() for w in own.parameters()]).norm()
        assert torch.allclose(found[name], weight.grad * min(1.0, 1.0 / float(norm)), atol=1e-6), name


def test_imitation_overfits_a_toy():
    groups = groups_of(3)
    learner = learner_of(value_head=False, optimisation=Optimisation(lr=1e-2))
    ones = [tuple(Credited(floats(np.ones(s.trajectory.num_tokens))) for s in group) for group in groups]
    batch = make_batch(groups, ones)
    first = learner.update(batch, Objective())["nll"]
    for _ in range(60):
        last = learner.update(batch, Objective())["nll"]
    assert first > 3.0
    assert last < 0.05


def test_the_policy_gradient_makes_good_actions_likelier_and_bad_ones_rarer():
    groups = groups_of(4)
    learner = learner_of(value_head=False, optimisation=Optimisation(lr=1e-3))
    signs = [
        tuple(
            Credited(floats(np.full(s.trajectory.num_tokens, sign)))
            for s, sign in zip(g, (1, -1), strict=True)
        )
        for g in groups
    ]
    before = learner.annotate(groups, frozenset({"old_logprobs"}))
    for _ in range(5):
        learner.update(make_batch(groups, signs), Objective(loss=PolicyGradient()))
    after = learner.annotate(groups, frozenset({"old_logprobs"}))
    change = [
        [float((a.measured.old_logprobs - b.measured.old_logprobs).sum()) for a, b in zip(*pair, strict=True)]
        for pair in zip(after, before, strict=True)
    ]
    assert all(good > 0 > bad for good, bad in change)


def test_the_reference_stays_the_policy_at_the_stages_start():
    groups = groups_of(2)
    for lora in (None, LoRA(rank=2)):
        learner = learner_of(optimisation=Optimisation(lr=1e-2), lora=lora)
        first = learner.annotate(groups, ALL)
        learner.update(make_batch(first, credit(first)), Objective(loss=PolicyGradient()))
        second = learner.annotate(groups, ALL)
        for before, after in zip((s for g in first for s in g), (s for g in second for s in g), strict=True):
            assert np.array_equal(before.measured.ref_logprobs, before.measured.old_logprobs)
            assert np.array_equal(after.measured.ref_logprobs, before.measured.ref_logprobs)
            assert not np.allclose(after.measured.old_logprobs, before.measured.old_logprobs, atol=1e-3)
        learner.start(Optimisation(), 1)
        third = learner.annotate(groups, ALL)
        assert np.array_equal(third[0][0].measured.ref_logprobs, second[0][0].measured.old_logprobs)


def test_adapters_merge_into_weights_that_give_the_same_log_probabilities():
    groups = groups_of(3)
    learner = learner_of(lora=LoRA(rank=4), value_head=False, optimisation=Optimisation(lr=1e-2))
    plain = learner_of(value_head=False).weights()
    for _ in range(3):
        learner.update(make_batch(groups, credit(groups)), Objective(loss=PolicyGradient()))
    merged = learner.weights()
    assert merged.keys() == plain.keys()
    changed = {name for name in plain if not torch.equal(merged[name], plain[name])}
    assert changed
    assert all("proj" in name for name in changed)
    (scored, _), *_ = learner.annotate(groups, frozenset({"old_logprobs"}))
    (row,) = make_batch([(scored,)]).sequences[0].rows
    wanted = full_forward(learner, row.tokens_L)[
        row.positions_A - 1, torch.tensor(row.tokens_L[row.positions_A], dtype=torch.long)
    ]
    assert np.allclose(scored.measured.old_logprobs, wanted, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradient():
    groups = groups_of(4)
    kept, recomputed = (
        gradient(
            learner_of(gradient_checkpointing=on),
            make_batch(groups, credit(groups)),
            Objective(loss=PolicyGradient()),
        )
        for on in (False, True)
    )
    assert kept.keys() == recomputed.keys()
    assert all(torch.allclose(kept[name], recomputed[name], atol=1e-7) for name in kept)


def test_log_probabilities_in_chunks_have_the_same_gradient(monkeypatch):
    groups = groups_of(4)
    objective = Objective(loss=PolicyGradient(), regularisers=(EntropyBonus(0.1),), observation_weight=0.5)
    whole = gradient(learner_of(), make_batch(groups, credit(groups)), objective)
    monkeypatch.setattr("agentrl.learner.forward._MOST_LOGITS", 7 * VOCAB)
    chunked = gradient(learner_of(), make_batch(groups, credit(groups)), objective)
    assert all(torch.allclose(whole[name], chunked[name], atol=1e-6) for name in whole)


def test_a_model_that_refuses_packing_is_padded_with_the_same_result(monkeypatch):
    groups = groups_of(4)
    packed = learner_of()
    monkeypatch.setattr("transformers.Qwen2ForCausalLM._supports_attention_backend", False)
    padded = learner_of()
    assert (packed.packed, padded.packed) == (True, False)
    objective = Objective(loss=PolicyGradient())
    left, right = (
        gradient(learner, make_batch(groups, credit(groups)), objective) for learner in (packed, padded)
    )
    assert all(torch.allclose(left[name], right[name], atol=1e-6) for name in left)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt_neox", "phi3", "qwen3", "gemma2"])
def test_other_architectures_give_their_own_log_probabilities(architecture):
    extra = {"head_dim": 8, "pad_token_id": 0} if architecture in ("gemma2", "qwen3") else {"pad_token_id": 0}
    if architecture in ("mistral", "gemma2"):
        extra["sliding_window"] = 5
    spec = ModelSpec(shape=replace(SHAPE, architecture=architecture, extra=extra), tokenizer="-")
    learner = TorchLearner(build_model(spec, VOCAB, seed=3))
    (scored, _), *_ = learner.annotate(groups_of(4), frozenset({"old_logprobs"}))
    (row,) = make_batch([(scored,)]).sequences[0].rows
    with torch.no_grad():
        logits = build_model(spec, VOCAB, seed=3)(torch.tensor(row.tokens_L, dtype=torch.long)[None]).logits[
            0
        ]
    wanted = logits.log_softmax(-1)[
        row.positions_A - 1, torch.tensor(row.tokens_L[row.positions_A], dtype=torch.long)
    ]
    assert np.allclose(scored.measured.old_logprobs, wanted, atol=1e-5)


def test_the_value_head_starts_at_zero_and_learns_a_constant():
    groups = groups_of(4)
    learner = learner_of(optimisation=Optimisation(lr=1e-2, value_lr=3e-2, freeze_policy_updates=200))
    first = learner.annotate(groups, frozenset({"values", "old_logprobs"}))
    assert not any(scored.measured.values.any() for group in first for scored in group)
    policy = {name: weight.clone() for name, weight in learner.weights().items()}
    goal = [
        tuple(Credited(s.measured.old_logprobs, floats(np.full(s.trajectory.num_tokens, 0.7))) for s in g)
        for g in first
    ]
    for _ in range(150):
        learner.update(make_batch(groups, goal), Objective(loss=PolicyGradient(), value=ValueLoss()))
    last = learner.annotate(groups, frozenset({"values"}))
    assert all(np.allclose(scored.measured.values, 0.7, atol=0.05) for group in last for scored in group)
    assert all(torch.equal(weight, policy[name]) for name, weight in learner.weights().items()), (
        "the policy was to be frozen"
    )


def test_a_learning_rate_of_zero_for_the_value_head_is_zero_and_not_the_default():
    groups = groups_of(2)
    learner = learner_of(optimisation=Optimisation(lr=1e-2, value_lr=0.0))
    goal = [
        tuple(
            Credited(floats(np.ones(s.trajectory.num_tokens)), floats(np.ones(s.trajectory.num_tokens)))
            for s in g
        )
        for g in groups
    ]
    learner.update(make_batch(groups, goal), Objective(loss=PolicyGradient(), value=ValueLoss()))
    found = learner.annotate(groups, frozenset({"values"}))
    assert not any(scored.measured.values.any() for group in found for scored in group)


def test_the_value_loss_is_a_mean_over_the_tokens_that_have_a_target():
    ((scored, _),) = groups_of(1)
    number = scored.trajectory.num_tokens
    goal = np.full(number, np.nan)
    goal[0] = 3.0
    batch = make_batch([(scored,)], [(Credited(floats(np.zeros(number)), floats(goal)),)])
    stats = learner_of().update(batch, Objective(loss=PolicyGradient(), value=ValueLoss(coef=0.5)))
    assert stats["value_loss"] == pytest.approx(0.5 * 0.5 * 9.0)


def test_the_gap_to_the_sampler_is_rounding_and_a_shift_by_one_token_is_seen():
    groups = learner_of().annotate(groups_of(4), frozenset({"old_logprobs"}))

    def sampled(scored: Scored, shift: int) -> Scored:
        said = np.roll(scored.measured.old_logprobs, shift)
        ends = np.cumsum(scored.num_tokens_N)[:-1]
        turns = [
            replace(turn, action=replace(turn.action, logprobs=floats(part)))
            for turn, part in zip(scored.trajectory.turns, np.split(said, ends), strict=True)
        ]
        return replace(scored, trajectory=replace(scored.trajectory, turns=tuple(turns)))

    for shift, seen in ((0, False), (1, True)):
        played = [tuple(sampled(scored, shift) for scored in group) for group in groups]
        stats = learner_of().update(
            make_batch(played, credit(played)), Objective(loss=PolicyGradient()), minibatches=2
        )
        assert (stats["logprob_gap"] > 1e-4) == seen


def test_off_policy_weights_multiply_the_loss_of_each_token():
    groups = learner_of().annotate(groups_of(2), frozenset({"old_logprobs"}))

    class Half(OffPolicy):
        def __call__(self, old_A, behaviour_A, sequence_A):
            return torch.full_like(old_A, 0.5)

    plain = learner_of().update(make_batch(groups, credit(groups)), Objective(loss=PolicyGradient()))
    halved = learner_of().update(
        make_batch(groups, credit(groups)), Objective(loss=PolicyGradient(), off_policy=Half())
    )
    assert halved["loss"] == pytest.approx(0.5 * plain["loss"], rel=1e-5)
    assert halved["off_policy_weight"] == 0.5
    assert "off_policy_weight" not in plain


def test_epochs_and_minibatches_are_optimiser_steps():
    groups = groups_of(4)
    learner, steps = learner_of(), []
    learner._optimiser.register_step_post_hook(lambda *_: steps.append(1))
    learner.update(make_batch(groups, credit(groups)), Objective(loss=Clip()), epochs=3, minibatches=2)
    assert len(steps) == 6
    assert learner.num_updates == 1


def test_the_learning_rate_follows_its_schedule():
    groups = groups_of(1)
    learner = learner_of(optimisation=Optimisation(lr=1.0, warmup_updates=2, schedule=Linear(0.1)))
    learner.start(Optimisation(lr=1e-3, warmup_updates=2, schedule=Linear(0.1)), 6)
    rates = [
        learner.update(make_batch(groups, credit(groups)), Objective(loss=Clip()))["lr"] for _ in range(6)
    ]
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.775e-3, 0.55e-3, 0.325e-3])


def test_the_learning_rate_moves_within_an_update():
    groups = groups_of(2)
    learner, rates = learner_of(optimisation=Optimisation(lr=1.0)), []
    learner.start(Optimisation(lr=1e-3, warmup_updates=1, schedule=Linear()), 2)
    learner._optimiser.register_step_pre_hook(
        lambda optimiser, *_: rates.append(optimiser.param_groups[0]["lr"])
    )
    for _ in range(2):
        learner.update(make_batch(groups, credit(groups)), Objective(loss=Clip()), epochs=2, minibatches=2)
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def test_a_gradient_that_is_not_finite_stops_before_the_step():
    groups = groups_of(2)
    learner = learner_of()

    class Exploding(Loss):
        needs = frozenset()

        def __call__(self, x):
            return x.logprobs_A * float("inf"), {}

    before = parameters(learner)
    with pytest.raises(Diverged, match="update 0 of the stage"):
        learner.update(make_batch(groups, credit(groups)), Objective(loss=Exploding()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in parameters(learner).items())


def test_what_an_objective_lacks_is_said_before_any_work():
    groups = groups_of(1)
    batch = make_batch(groups, credit(groups))
    with pytest.raises(ConfigError, match=r"needs ref_logprobs.*annotate"):
        learner_of().update(batch, Objective(regularisers=(KL(),)))
    with pytest.raises(ConfigError, match="no value head"):
        learner_of(value_head=False).update(batch, Objective(value=ValueLoss()))
    with pytest.raises(ConfigError, match="no value head"):
        learner_of(value_head=False).annotate(groups, frozenset({"values"}))
    with pytest.raises(ConfigError, match="no value loss"):
        learner_of(optimisation=Optimisation(freeze_policy_updates=1)).update(batch, Objective())
    with pytest.raises(ConfigError, match="not a finite number"):
        learner_of().update(make_batch(groups), Objective())
    with pytest.raises(ConfigError, match=r"call Learner\.start"):
        TorchLearner(build_model(ModelSpec(shape=SHAPE, tokenizer="-"), VOCAB, seed=0)).update(
            batch, Objective()
        )
    late = learner_of()
    late.update(batch, Objective())
    with pytest.raises(ConfigError, match="from its first update on"):
        late.annotate(groups, frozenset({"ref_logprobs"}))


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_another_process_makes_the_same_twenty_updates_to_the_last_bit(threads):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import learners; "
        "print(learners.twenty_updates(int(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(threads)]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert found.strip() == twenty_updates(threads)


def test_bfloat16_products_keep_float32_weights_and_come_near():
    groups = groups_of(3)
    exact = learner_of()
    model = build_model(ModelSpec(shape=SHAPE, tokenizer="-"), VOCAB, seed=3)
    coarse = TorchLearner(model, Compute(precision="bfloat16"), value_head=True)
    coarse.start(Optimisation(lr=1e-3), 10)
    left, right = (learner.annotate(groups, ALL) for learner in (exact, coarse))
    gaps = [
        np.abs(a.measured.old_logprobs - b.measured.old_logprobs).max()
        for x, y in zip(left, right, strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    assert 0 < max(gaps) < 0.05, "the products were to be rounded, and little else"
    stats = coarse.update(make_batch(right, credit(right)), EVERYTHING)
    assert np.isfinite(list(stats.values())).all()
    assert {tensor.dtype for tensor in coarse.weights().values()} == {torch.float32}
