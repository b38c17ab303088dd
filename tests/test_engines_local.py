import asyncio
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from chatml import tokenizer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from agentrl.engines.forward import GenericForward, LlamaForward
from agentrl.engines.local import LocalEngine
from agentrl.errors import ConfigError, ContextFull, EngineError, TokenDrift
from agentrl.policy import Sampling
from agentrl.render import TagRenderer, context
from agentrl.testing import ContractViolation
from agentrl.testing.engine import check_engine
from agentrl.types import Action, Observation, Turn, seed_of

WORDS = [
    "room",
    "key",
    "door",
    "a",
    "b",
    "c",
    "north",
    "south",
    "east",
    "west",
    "open",
    "box",
    "red",
    "blue",
    "have",
    "see",
    "locked",
    ";",
    ",",
]
VOCAB = 272  # 256 bytes, the tags, and ids the tokenizer does not define

RENDERER = TagRenderer(tokenizer())
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}
LLAMA = SIZES | {"intermediate_size": 96, "num_key_value_heads": 2}
GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 1024,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**LLAMA, head_dim=32)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3_ROPE)
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**LLAMA, sliding_window=None)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, intermediate_size=96)),
}


def build(kind: str = "qwen2", seed: int = 0):
    torch.manual_seed(seed)
    model = MODELS[kind]()
    for parameter in model.parameters():  # far from uniform, so that a mistake shows
        if parameter.ndim == 2:
            parameter.data.mul_(6.0)
        elif parameter.ndim == 1:
            parameter.data.add_(torch.randn(parameter.shape) * 0.2)
    return model.eval()


async def episode(
    policy,
    index: int,
    *,
    num_turns: int = 5,
    words: tuple[int, int] = (1, 12),
    pause: random.Random | None = None,
) -> list[Turn]:
    rng, turns = random.Random(index), []
    for turn in range(num_turns):
        seen = Observation.text(" ".join(rng.choices(WORDS, k=rng.randint(*words))))
        action = await policy.act(turns, seen, seed=seed_of(index, turn))
        turns.append(Turn(seen, action))
        for _ in range(pause.randrange(6) if pause else 0):
            await asyncio.sleep(0)
    return turns


def play(engine, indices, **options) -> list[list[Turn]]:
    async def together():
        return await asyncio.gather(*[episode(engine, index, **options) for index in indices])

    return asyncio.run(together())


def actions(turns: list[Turn]) -> list[Action]:
    return [turn.action for turn in turns]


def reference(model, ids: np.ndarray) -> torch.Tensor:
    """The model's own log-probabilities of every next token, over what may be sampled."""
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
    return torch.log_softmax(
        logits.masked_fill(~torch.from_numpy(RENDERER.allowed(VOCAB)), -torch.inf), dim=-1
    )


@pytest.mark.parametrize("kind", MODELS)
def test_log_probabilities_equal_the_full_forward_of_transformers(kind):
    engine = LocalEngine(build(kind), RENDERER, Sampling(max_tokens=6), num_slots=8)
    assert isinstance(
        engine._forward, LlamaForward if kind in ("qwen2", "qwen3", "llama") else GenericForward
    )
    model = build(kind)
    for turns in play(engine, range(4)):
        logprobs = reference(model, context(turns))
        position = 0
        for action in actions(turns):
            position += len(action.prompt)
            rows = logprobs[position - 1 : position - 1 + len(action.tokens)]
            wanted = rows[torch.arange(len(rows)), torch.from_numpy(action.tokens.astype(np.int64))]
            np.testing.assert_allclose(action.logprobs, wanted.numpy(), atol=1e-4)
            position += len(action.tokens)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "gpt2"])
def test_an_episode_has_the_same_bits_alone_and_among_any_others(kind):
    def engine(num_slots=48):
        return LocalEngine(build(kind), RENDERER, Sampling(max_tokens=5), num_slots=num_slots)

    alone = [actions(play(engine(), [index])[0]) for index in range(3)]
    assert [actions(turns) for turns in play(engine(), range(3))] == alone
    assert [actions(turns) for turns in play(engine(), [7, 2, 30, 1, 0])][::-1][:2] == alone[:2]
    assert [actions(turns) for turns in play(engine(), range(40))][:3] == alone
    assert [actions(turns) for turns in play(engine(), range(40), pause=random.Random(5))][:3] == alone


def test_a_group_computes_its_first_observation_once_and_each_episode_keeps_its_bits():
    def engine():
        return LocalEngine(build(), RENDERER, Sampling(max_tokens=5), num_slots=16)

    async def two_turns(policy, seed: int) -> list[Action]:
        first = await policy.act((), Observation.text("a room"), seed=seed)
        turns = [Turn(Observation.text("a room"), first)]
        return [first, await policy.act(turns, Observation.text("a door"), seed=seed)]

    async def together(policy, seeds):
        return await asyncio.gather(*[two_turns(policy, seed) for seed in seeds])

    alone = [asyncio.run(two_turns(engine(), seed)) for seed in range(6)]
    group, fed = engine(), []
    plan = group._forward.attention.plan
    group._forward.attention.plan = lambda feeds: fed.append(feeds) or plan(feeds)
    assert asyncio.run(together(group, range(6))) == alone
    assert len(fed[0]) == 1
    assert len(fed[1]) == 6
    assert len({action.text for action, _ in alone}) > 1


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_an_episode_that_lost_its_slot_goes_on_with_the_same_bits(kind):
    kept = LocalEngine(build(kind), RENDERER, Sampling(max_tokens=5), num_slots=48)
    starved = LocalEngine(build(kind), RENDERER, Sampling(max_tokens=5), num_slots=3)
    wanted = [actions(turns) for turns in play(kept, range(20), num_turns=8)]
    assert [actions(turns) for turns in play(starved, range(20), num_turns=8)] == wanted


def test_long_contexts_keep_the_bits_when_computed_again_in_one_piece():
    kept, starved = (
        LocalEngine(build(), RENDERER, Sampling(max_tokens=5), num_slots=num_slots) for num_slots in (4, 1)
    )
    options = {"num_turns": 4, "words": (30, 70)}
    assert [actions(turns) for turns in play(starved, range(3), **options)] == [
        actions(turns) for turns in play(kept, range(3), **options)
    ]


@pytest.mark.parametrize("kind", ["qwen2", "gpt_neox"])
def test_the_engine_keeps_the_contract(kind):
    weights = {name: value.clone() for name, value in build(kind).state_dict().items()}
    check_engine(
        lambda: LocalEngine(build(kind), RENDERER, Sampling(max_tokens=4), num_slots=16), weights=weights
    )


class Flawed:
    """An engine that breaks one clause."""

    def __init__(self, flaw: str) -> None:
        self.inner = LocalEngine(build(), RENDERER, Sampling(max_tokens=4), num_slots=16)
        self.flaw, self.calls, self.shown = flaw, 0, 0

    async def __aenter__(self):
        return self

    async def __aexit__(self, *problem):
        await self.inner.__aexit__(*problem)

    @property
    def version(self):
        return 0 if self.flaw == "versions" else self.inner.version

    async def act(self, turns, observation, *, seed):
        self.calls += 1
        return await self.inner.act(
            turns, observation, seed=seed + self.calls if self.flaw == "seeds" else seed
        )

    def using(self, sampling):
        return self.inner if self.flaw == "limits" else self.inner.using(sampling)

    async def load(self, weights, *, version):
        same = {name: value.clone() for name, value in build().state_dict().items()}
        await self.inner.load(same if self.flaw == "weights" else weights, version=version)


@pytest.mark.parametrize("flaw", ["seeds", "versions", "limits", "weights"])
def test_the_suite_finds_an_engine_that_breaks_a_clause(flaw):
    weights = {name: value.clone() for name, value in build().state_dict().items()}
    with pytest.raises(AssertionError, match=f"\n{flaw}: "):
        check_engine(lambda: Flawed(flaw), weights=weights)


SCORER = build()


def rescore(weights, before: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The log-probabilities of ``tokens`` by the model's own forward."""
    SCORER.load_state_dict(dict(weights))
    rows = reference(SCORER, np.concatenate([before, tokens]))[len(before) - 1 : -1]
    return rows[torch.arange(len(rows)), torch.from_numpy(tokens.astype(np.int64))].numpy()


class Off(Flawed):
    """An engine whose log-probabilities are off by up to ``nats``, differently in each call."""

    def __init__(self, nats: float, flaw: str = "") -> None:
        super().__init__(flaw)
        self.nats = nats

    async def act(self, turns, observation, *, seed):
        action = await super().act(turns, observation, seed=seed)
        off = action.logprobs + np.float32(self.nats * (self.calls % 5 - 2) / 2)
        return replace(action, logprobs=np.minimum(off, 0))


SERVED = {"tolerance": 0.01, "rescore": rescore}


@pytest.mark.parametrize(("nats", "level"), [(0.001, {}), (0.1, {}), (0.1, SERVED)], ids=str)
def test_an_engine_that_is_off_by_more_than_the_level_accepts_is_refused(nats, level):
    weights = {name: value.clone() for name, value in build().state_dict().items()}
    with pytest.raises(ContractViolation) as caught:
        check_engine(lambda: Off(nats), weights=weights, **level)
    clauses = {violation.split(":")[0] for violation in caught.value.violations}
    assert {"seeds", "neighbours", "weights"} <= clauses, caught.value


@pytest.mark.parametrize("flaw", ["", "seeds"])
def test_an_engine_that_is_slightly_off_passes_with_a_tolerance_whatever_it_samples(flaw):
    weights = {name: value.clone() for name, value in build().state_dict().items()}
    check_engine(lambda: Off(0.001, flaw), weights=weights, **SERVED)


@pytest.mark.parametrize("flaw", ["versions", "weights"])
def test_a_broken_clause_is_found_with_a_tolerance_too(flaw):
    weights = {name: value.clone() for name, value in build().state_dict().items()}
    with pytest.raises(ContractViolation, match=f"\n{flaw}: "):
        check_engine(lambda: Off(0.001, flaw), weights=weights, **SERVED)


def test_a_tolerance_that_could_not_notice_anything_is_refused():
    weights = {name: value.clone() for name, value in build().state_dict().items()}
    with pytest.raises(ConfigError, match="above 0 together with a rescore function"):
        check_engine(lambda: Off(0.0), weights=weights, tolerance=0.01)
    with pytest.raises(ConfigError, match="would hide outdated weights"):
        check_engine(lambda: Off(0.0), weights=weights, tolerance=100.0, rescore=rescore)


def test_a_full_context_is_said_before_anything_is_computed():
    engine = LocalEngine(build(), RENDERER, Sampling(max_tokens=8), max_context=24)
    assert len(asyncio.run(engine.act((), Observation.text("x" * 15), seed=0)).prompt) == 16
    with pytest.raises(
        ContextFull, match="holds 17 tokens on turn 0; with 8 more for the action it passes the limit of 24"
    ):
        asyncio.run(engine.act((), Observation.text("x" * 16), seed=0))


def test_an_edited_turn_is_token_drift_whether_or_not_it_is_cached():
    def edited(turns: list[Turn], index: int) -> list[Turn]:
        return [
            Turn(Observation.text("edited"), turn.action) if at == index else turn
            for at, turn in enumerate(turns)
        ]

    engine = LocalEngine(build(), RENDERER, Sampling(max_tokens=4), num_slots=4)
    (turns,) = play(engine, [0], num_turns=3)
    with pytest.raises(TokenDrift, match="turn 2 stores a prompt"):
        asyncio.run(engine.act(edited(turns, 2), Observation.text("x"), seed=0))
    engine = LocalEngine(build(), RENDERER, Sampling(max_tokens=4), num_slots=4)
    with pytest.raises(TokenDrift, match="turn 0 stores a prompt"):
        asyncio.run(engine.act(edited(turns, 0), Observation.text("x"), seed=0))


def test_a_history_makes_every_action_fresh_and_keeps_parity():
    renderer = TagRenderer(tokenizer(), history=1)
    engine, model = LocalEngine(build(), renderer, Sampling(max_tokens=5), num_slots=4), build()
    for action in actions(play(engine, [0])[0]):
        assert action.fresh
        ids = np.concatenate([action.prompt, action.tokens])
        rows = reference(model, ids)[len(action.prompt) - 1 : -1]
        np.testing.assert_allclose(
            action.logprobs,
            rows[torch.arange(len(rows)), ids[len(action.prompt) :].astype(np.int64)],
            atol=1e-4,
        )


def test_an_action_ends_at_its_end_token_and_keeps_it():
    engine = LocalEngine(build(), RENDERER, Sampling(max_tokens=200))
    said = [actions(turns)[0] for turns in play(engine, range(8), num_turns=1)]
    assert all((action.tokens[-1] == 2) != action.clipped and 2 not in action.tokens[:-1] for action in said)
    assert all(len(action.tokens) == 200 for action in said if action.clipped)
    assert not all(action.clipped for action in said)


def test_what_may_not_be_sampled_never_is():
    engine = LocalEngine(build(), RENDERER, Sampling(max_tokens=400))
    sampled = np.concatenate([actions(turns)[0].tokens for turns in play(engine, range(16), num_turns=1)])
    assert len(sampled) > 1000
    assert RENDERER.allowed(VOCAB)[sampled].all()


def test_a_stop_string_ends_an_action():
    renderer = TagRenderer(tokenizer(), stop_strings=tuple("abcdefghijklmnopqrstuvwxyz"))
    for action in (
        turn[0]
        for turn in map(
            actions, play(LocalEngine(build(), renderer, Sampling(max_tokens=64)), range(6), num_turns=1)
        )
    ):
        letters = [
            index
            for index, token in enumerate(action.tokens)
            if "a" <= renderer.tokenizer.decode([int(token)]) <= "z"
        ]
        assert action.tokens[-1] == 2 or action.clipped or letters == [len(action.tokens) - 1]
        assert not any("a" <= letter <= "z" for letter in action.text)


def test_weights_that_do_not_fit_are_refused_and_nothing_changes():
    engine = LocalEngine(build(), RENDERER, Sampling(max_tokens=4))
    before = asyncio.run(engine.act((), Observation.text("a"), seed=0))
    good = build().state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    for bad, message in (
        ({key: value for key, value in good.items() if key != name}, f"missing \\['{name}'\\]"),
        (dict(good) | {"extra": good[name]}, r"unknown \['extra'\]"),
        (dict(good) | {name: good[name][:3]}, rf"{name} \(3, 64\) for \(64, 64\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            asyncio.run(engine.load(bad, version=1))
    assert asyncio.run(engine.act((), Observation.text("a"), seed=0)) == before


def test_a_model_with_a_sliding_window_is_refused():
    model = MistralForCausalLM(MistralConfig(**LLAMA, sliding_window=8))
    with pytest.raises(ConfigError, match="sliding window"):
        LocalEngine(model, RENDERER)


def test_bad_sizes_are_refused():
    with pytest.raises(ConfigError, match="num_slots of at least 1"):
        LocalEngine(build(), RENDERER, num_slots=0)
    with pytest.raises(ConfigError, match="max_context from 1 to the model's 1024"):
        LocalEngine(build(), RENDERER, max_context=4096)
    with pytest.raises(ConfigError, match="the tokenizer defines 259"):
        LocalEngine(Qwen2ForCausalLM(Qwen2Config(**(LLAMA | {"vocab_size": 200}))), RENDERER)


def test_a_forward_pass_that_breaks_fails_its_actions_and_nothing_else():
    engine = LocalEngine(build(), RENDERER, Sampling(max_tokens=4), num_slots=4)
    wanted = actions(play(engine, [0])[0])
    whole = engine._forward

    class Broken:
        attention = whole.attention

        def __call__(self, step):
            raise RuntimeError("out of memory")

    engine._forward = Broken()
    with pytest.raises(EngineError, match="forward pass raised RuntimeError: out of memory"):
        play(engine, range(3))
    engine._forward = whole
    assert actions(play(engine, [0])[0]) == wanted


class Stumbling(TagRenderer):
    """Fails to decode the second action."""

    def decode(self, tokens):
        object.__setattr__(self, "calls", getattr(self, "calls", 0) + 1)
        if self.calls == 2:
            raise RuntimeError("no text")
        return super().decode(tokens)


def test_an_action_that_cannot_be_decoded_gives_no_slot_back_twice():
    async def stumble() -> list[object]:
        engine = LocalEngine(build(), Stumbling(tokenizer()), Sampling(max_tokens=3), num_slots=4)
        async with engine:
            acts = [engine.act([], Observation.text(f"room {index}"), seed=index) for index in range(4)]
            answers = await asyncio.gather(*acts, return_exceptions=True)
        slots = engine._slots
        held = [*slots._empty, *slots._idle]
        assert sorted(held) == [0, 1, 2, 3]
        return answers

    answers = asyncio.run(stumble())
    assert any(isinstance(answer, EngineError) for answer in answers)
    assert any(isinstance(answer, Action) for answer in answers)
