import asyncio
import random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from agentrl.engines.forward import LlamaForward
from agentrl.engines.generic import GenericForward
from agentrl.engines.local import LocalEngine
from agentrl.policy import Sampling
from agentrl.render import TagRenderer, context
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


def tokenizer() -> PreTrainedTokenizerFast:
    vocab = {token: index for index, token in enumerate(["<pad>", "<act>", "<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    inner = Tokenizer(models.BPE(vocab, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", extra_special_tokens=["<act>"])


RENDERER = TagRenderer(tokenizer())
SIZES = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 1024}
LLAMA = SIZES | {"intermediate_size": 96, "num_key_value_heads": 2}
GPT2 = {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024, "bos_token_id": None, "eos_token_id": None}
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
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3_ROPE)),
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
    policy, index: int, *, num_turns: int = 5, words: tuple[int, int] = (1, 12), pause: random.Random | None = None
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
    return torch.log_softmax(logits.masked_fill(~torch.from_numpy(RENDERER.allowed(VOCAB)), -torch.inf), dim=-1)


@pytest.mark.parametrize("kind", MODELS)
def test_log_probabilities_equal_the_full_forward_of_transformers(kind):
    engine = LocalEngine(build(kind), RENDERER, Sampling(max_tokens=6), num_slots=8)
    assert isinstance(engine._forward, LlamaForward if kind in ("qwen2", "qwen3", "llama") else GenericForward)
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


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_an_episode_that_lost_its_slot_goes_on_with_the_same_bits(kind):
    kept = LocalEngine(build(kind), RENDERER, Sampling(max_tokens=5), num_slots=48)
    starved = LocalEngine(build(kind), RENDERER, Sampling(max_tokens=5), num_slots=3)
    wanted = [actions(turns) for turns in play(kept, range(20), num_turns=8)]
    assert [actions(turns) for turns in play(starved, range(20), num_turns=8)] == wanted


def test_long_contexts_keep_the_bits_when_computed_again_in_one_piece():
    kept, starved = (LocalEngine(build(), RENDERER, Sampling(max_tokens=5), num_slots=num_slots) for num_slots in (4, 1))
    options = {"num_turns": 4, "words": (30, 70)}
    assert [actions(turns) for turns in play(starved, range(3), **options)] == [actions(turns) for turns in play(kept, range(3), **options)]
