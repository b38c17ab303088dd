import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agentrl.errors import ConfigError
from agentrl.learner.model import (
    build_model,
    check_fits,
    check_tokens,
    load_tokenizer,
    memory_mib,
    train_tokenizer,
)
from agentrl.learner.spec import LoRA, ModelSpec, Shape, TrainedTokenizer

SHAPE = Shape(hidden=32, layers=2, heads=4, kv_heads=2, mlp=48, max_context=64)
SPEC = ModelSpec(shape=SHAPE, tokenizer="-")
TEXTS = ["you are in a red room ; exits east , west", "go east", "go west", "open the red door"] * 5


def test_random_weights_depend_on_the_seed_alone():
    torch.manual_seed(7)
    first = build_model(SPEC, 50, seed=1).state_dict()
    before = torch.random.get_rng_state()
    second = build_model(SPEC, 50, seed=1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator was touched"
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build_model(SPEC, 50, seed=2).state_dict()
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_a_shape_says_the_size_and_further_fields_reach_the_config():
    model = build_model(
        replace(
            SPEC,
            shape=replace(
                SHAPE, tied=False, extra={"rope_parameters": {"rope_theta": 123.0, "rope_type": "default"}}
            ),
        ),
        50,
        0,
    )
    assert model.config.rope_parameters["rope_theta"] == 123.0
    assert model.lm_head.weight.shape == (50, 32)
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def test_dropout_is_off_in_training():
    extra = {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5, "attention_dropout": 0.5}
    for architecture in ("gpt2", "llama"):
        model = build_model(
            replace(SPEC, shape=replace(SHAPE, architecture=architecture, extra=extra)), 50, 0
        )
        tokens = torch.arange(20)[None]
        assert model.training
        assert torch.equal(model(tokens).logits, model(tokens).logits)


def test_adapters_are_the_only_weights_that_learn():
    model = build_model(replace(SPEC, lora=LoRA(rank=2), dtype="bfloat16"), 50, 0)
    trained = {name: weight.dtype for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert set(trained.values()) == {torch.float32}


def test_a_pretrained_folder_is_loaded_as_it_was_saved(tmp_path: Path):
    build_model(SPEC, 50, seed=1).save_pretrained(tmp_path)
    wanted = build_model(SPEC, 50, seed=1).state_dict()
    found = build_model(ModelSpec(folder=str(tmp_path)), 50, seed=9).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (lambda: ModelSpec(), "found neither; give exactly one"),
        (lambda: ModelSpec(folder="a", shape=SHAPE), "found both; give exactly one"),
        (lambda: ModelSpec(shape=SHAPE), "set tokenizer to a folder or TrainedTokenizer"),
        (lambda: ModelSpec(folder="a", dtype="bfloat16"), "lose small updates"),
        (lambda: build_model(ModelSpec(folder="/no/such"), 10, 0), "model folder does not exist: /no/such"),
        (lambda: build_model(replace(SPEC, shape=replace(SHAPE, heads=5)), 10, 0), "multiple of heads"),
        (lambda: build_model(replace(SPEC, shape=replace(SHAPE, layers=0)), 10, 0), "num_hidden_layers = 0"),
        (
            lambda: build_model(replace(SPEC, shape=replace(SHAPE, architecture="qwen-2")), 10, 0),
            "architecture 'qwen-2'",
        ),
        (lambda: build_model(replace(SPEC, shape=replace(SHAPE, architecture="bert")), 0, 0), "bert|vocab"),
        (lambda: build_model(replace(SPEC, lora=LoRA(targets=("nothing",))), 10, 0), "LoRA on"),
        (lambda: load_tokenizer("/no/such"), "tokenizer folder does not exist"),
        (lambda: train_tokenizer([], TrainedTokenizer(vocab_size=200)), "give 259 or more"),
        (lambda: train_tokenizer([], TrainedTokenizer(special=("<a>", "<a>"))), "must be different"),
        (lambda: check_fits(1e9, "cpu"), "does not fit.*choose a smaller model"),
    ],
)
def test_a_mistake_is_one_error_that_says_how_to_mend_it(spec, message):
    with pytest.raises(ConfigError, match=message):
        spec()


def test_a_broken_model_folder_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="reading the model config"):
        build_model(ModelSpec(folder=str(tmp_path)), 10, 0)
    model = build_model(SPEC, 50, 0)
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"the tokenizer has 60 tokens, the model in .* only 50"):
        build_model(ModelSpec(folder=str(tmp_path)), 60, 0)
    weights = {name: weight for name, weight in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ConfigError, match=r"lacks 3 weights, first model\.layers\.1\.mlp"):
        build_model(ModelSpec(folder=str(tmp_path)), 50, 0)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ConfigError, match="reading the model in"):
        build_model(ModelSpec(folder=str(tmp_path)), 50, 0)


@pytest.mark.parametrize("text", ["go east", "<act>go east<end>", "naïve ☃ room", " two  spaces\n", ""])
def test_any_text_survives_the_tokenizer(text: str):
    tokenizer = train_tokenizer(TEXTS)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_single_first_and_known_as_special():
    tokenizer = train_tokenizer(TEXTS, TrainedTokenizer(vocab_size=300))
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<act>", "<end>"]) == [0, 1, 2]
    assert set(tokenizer.all_special_ids) == {0, 1, 2}
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "<end>")
    assert 259 < len(tokenizer) <= 300


def test_merges_shorten_the_text_they_were_trained_on():
    tokenizer = train_tokenizer(TEXTS)
    assert len(tokenizer.encode("you are in a red room")) < 12


def test_a_tokenizer_without_the_needed_tokens_is_refused(tmp_path: Path):
    tokenizer = train_tokenizer(TEXTS)
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path, required=("<act>",)).get_vocab() == tokenizer.get_vocab()
    with pytest.raises(ConfigError, match=r"lacks the special tokens <tool>.*or train a tokenizer"):
        load_tokenizer(tmp_path, required=("<act>", "<tool>"))
    check_tokens(tokenizer, ("<act>", "<end>"))


@pytest.mark.slow
def test_the_vocabulary_is_the_same_in_every_process():
    code = (
        "from agentrl.learner.model import train_tokenizer; import sys; "
        "print(train_tokenizer(sys.argv[1:]).backend_tokenizer.to_str())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, *TEXTS], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    assert found.strip() == train_tokenizer(TEXTS).backend_tokenizer.to_str()


def test_the_memory_estimate_counts_the_weights_exactly_and_adapters_as_little():
    model = build_model(SPEC, 50, 0)
    parameters = sum(weight.numel() for weight in model.parameters())
    sizes = memory_mib(SPEC, 50, token_budget=100, kv_tokens=10, reference=True)
    assert (
        sizes["weights"]
        == sizes["gradients"]
        == sizes["adam"] / 2
        == sizes["reference"]
        == parameters * 4 / 2**20
    )
    assert sizes["kv_cache"] == 10 * 2 * 2 * 2 * 8 * 4 / 2**20
    assert sizes["total"] == pytest.approx(sum(size for name, size in sizes.items() if name != "total"))
    large = replace(SPEC, shape=replace(SHAPE, hidden=512, mlp=2048))
    assert (
        memory_mib(replace(large, lora=LoRA(rank=2)), 50, token_budget=1)["adam"]
        < 0.2 * memory_mib(large, 50, token_budget=1)["adam"]
    )
    thrifty = replace(large, gradient_checkpointing=True)
    assert (
        memory_mib(thrifty, 50, token_budget=1)["activations"]
        < memory_mib(large, 50, token_budget=1)["activations"]
    )


def test_a_trained_tokenizer_beside_a_model_is_read_as_it_was_written(tmp_path):
    tokenizer = train_tokenizer(["go east", "go west"])
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        '{"model_type": "qwen2"}'
    )  # transformers would go by it, and add a token
    assert load_tokenizer(tmp_path).get_vocab() == tokenizer.get_vocab()
