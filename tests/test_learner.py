import numpy as np
import torch

from agentrl.batch import Batch, make_batch
from agentrl.learner import Compute, Learner, Optimisation
from agentrl.losses.clip import Clip
from agentrl.losses.entropy import EntropyBonus
from agentrl.losses.kl import KL
from agentrl.losses.likelihood import PolicyGradient
from agentrl.losses.tis import TokenTIS
from agentrl.losses.value import ValueLoss
from agentrl.model import ModelSpec, Shape, build_model
from agentrl.objective import Objective
from agentrl.types import Action, Credited, End, Observation, Scored, ScoredGroup, Task, Trajectory, Turn, floats, ints

VOCAB = 40
SHAPE = Shape(hidden=32, layers=2, heads=4, kv_heads=2, mlp=48, max_context=256)
ALL = frozenset({"values", "entropies", "old_logprobs", "ref_logprobs"})


def trajectory(rng: np.random.Generator, turns: int, *, fresh: tuple[int, ...] = ()) -> Scored:
    played = []
    for turn in range(turns):
        prompt, tokens = rng.integers(0, VOCAB, rng.integers(2, 9)), rng.integers(0, VOCAB, rng.integers(1, 5))
        action = Action("a", ints(prompt), ints(tokens), floats(-rng.uniform(2, 5, len(tokens))), fresh=turn in fresh)
        played.append(Turn(Observation.text("o"), action))
    return Scored(Trajectory(Task("t"), tuple(played), End.TERMINATED), {})


def groups_of(number: int, *, seed: int = 0) -> list[ScoredGroup]:
    rng = np.random.default_rng(seed)
    return [tuple(trajectory(rng, int(rng.integers(1, 6))) for _ in range(2)) for _ in range(number)]


def credit(groups: list[ScoredGroup], *, seed: int = 1, targets: bool = True) -> list[tuple[Credited, ...]]:
    rng = np.random.default_rng(seed)

    def one(scored: Scored) -> Credited:
        number = scored.trajectory.num_tokens
        goal = np.where(rng.random(number) < 0.5, rng.normal(size=number), np.nan)
        return Credited(floats(rng.normal(size=number)), floats(goal) if targets else None)

    return [tuple(one(scored) for scored in group) for group in groups]


def learner_of(*, budget: int = 2048, value_head: bool = True, optimisation: Optimisation | None = None, **spec: object) -> Learner:
    model = build_model(ModelSpec(shape=SHAPE, tokenizer="-", **spec), VOCAB, seed=3)
    learner = Learner(model, Compute(token_budget=budget), value_head=value_head)
    learner.start(optimisation or Optimisation(lr=1e-3), total_updates=10)
    return learner


def parameters(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.state_dict()[0].items() if not name.startswith("optimiser")}


def gradient(learner: Learner, batch: Batch, objective: Objective, temperature: float = 1.0) -> dict[str, torch.Tensor]:
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


def full_forward(learner: Learner, tokens: np.ndarray, temperature: float = 1.0) -> torch.Tensor:
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
        chosen = wanted[torch.arange(len(wanted)), torch.tensor(row.tokens_L[row.positions_A], dtype=torch.long)]
        assert np.allclose(scored.old_logprobs_T, chosen, atol=1e-5)
        assert np.allclose(scored.entropies_T, -(wanted.exp() * wanted).sum(-1), atol=1e-5)


def test_a_packed_trajectory_has_the_log_probabilities_that_it_has_alone():
    groups = groups_of(6)
    together = learner_of(budget=10_000).annotate(groups, ALL)
    alone = learner_of(budget=1).annotate(groups, ALL)
    for left, right in zip((s for g in together for s in g), (s for g in alone for s in g), strict=True):
        assert np.allclose(left.old_logprobs_T, right.old_logprobs_T, atol=1e-5)


def test_only_what_is_needed_is_measured():
    (scored, _), *_ = learner_of().annotate(groups_of(1), frozenset({"entropies"}))
    assert scored.entropies_T is not None
    assert (scored.values_T, scored.old_logprobs_T, scored.ref_logprobs_T) == (None, None, None)


def test_a_trajectory_without_tokens_is_measured_as_empty():
    silent = Scored(Trajectory(Task("t"), (Turn(Observation.text("o"), Action("a")),), End.TRUNCATED), {})
    ((found, spoken),) = learner_of().annotate([(silent, groups_of(1)[0][0])], ALL)
    assert all(array.shape == (0,) for array in (found.values_T, found.entropies_T, found.old_logprobs_T, found.ref_logprobs_T))
    assert spoken.old_logprobs_T.shape == (spoken.trajectory.num_tokens,)


EVERYTHING = Objective(
    loss=Clip(), regularisers=(EntropyBonus(0.01), KL(0.1)), value=ValueLoss(clip=0.2), off_policy=TokenTIS(), observation_weight=0.3
)


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
    signs = [tuple(Credited(floats(np.full(s.trajectory.num_tokens, sign))) for s, sign in zip(g, (1, -1), strict=True)) for g in groups]
    before = learner.annotate(groups, frozenset({"old_logprobs"}))
    for _ in range(5):
        learner.update(make_batch(groups, signs), Objective(loss=PolicyGradient()))
    after = learner.annotate(groups, frozenset({"old_logprobs"}))
    change = [
        [float((a.old_logprobs_T - b.old_logprobs_T).sum()) for a, b in zip(*pair, strict=True)] for pair in zip(after, before, strict=True)
    ]
    assert all(good > 0 > bad for good, bad in change)
