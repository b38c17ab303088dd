import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_learner import TOKENIZER, VOCAB, new_learner
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentrl.errors import CheckpointError, ConfigError
from agentrl.learner import checkpoint
from agentrl.learner.batch import make_batch
from agentrl.learner.learner import TorchLearner
from agentrl.learner.spec import LoRA, Shape
from agentrl.losses.clip import Clip
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
    ints,
)

OBJECTIVE = Objective(loss=Clip(), regularisers=(KL(0.1),), value=ValueLoss())


def groups_of(number: int, seed: int) -> list[ScoredGroup]:
    rng = np.random.default_rng(seed)

    def turn() -> Turn:
        prompt, tokens = rng.integers(0, VOCAB, 4), rng.integers(0, VOCAB, 3)
        return Turn(Observation.text("o"), Action("a", ints(prompt), ints(tokens), floats(np.full(3, -5.0))))

    return [(Scored(Trajectory(Task("t"), (turn(), turn()), End.TERMINATED), {}),) for _ in range(number)]


def play(learner: TorchLearner, updates: range) -> list[dict[str, float]]:
    found = []
    for update in updates:
        groups = learner.annotate(groups_of(4, update), OBJECTIVE.needs)
        rng = np.random.default_rng(update)
        credited = [(Credited(floats(rng.normal(size=6)), floats(rng.normal(size=6))),) for _ in groups]
        stats = learner.update(make_batch(groups, credited), OBJECTIVE, epochs=2, minibatches=2, seed=update)
        found.append({name: value for name, value in stats.items() if name != "tokens_per_s"})
    return found


def assert_equal(left: TorchLearner, right: TorchLearner) -> None:
    (tensors, numbers), (others, their_numbers) = left.state_dict(), right.state_dict()
    assert numbers == their_numbers
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_a_resumed_learner_goes_on_bit_for_bit(tmp_path: Path, lora: LoRA | None):
    uninterrupted = new_learner(lora=lora)
    wanted = play(uninterrupted, range(6))
    first = new_learner(lora=lora)
    found = play(first, range(3))
    checkpoint.save(tmp_path / "3", first, TOKENIZER, {"update": 3})
    second = new_learner(seed=0 if lora else 9, lora=lora)
    assert checkpoint.restore(tmp_path / "3", second) == {"update": 3}
    found += play(second, range(3, 6))
    assert found == wanted
    assert_equal(uninterrupted, second)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_transformers_loads_the_model_folder(tmp_path: Path, lora: LoRA | None):
    learner = new_learner(lora=lora)
    play(learner, range(3))
    checkpoint.save(tmp_path / "3", learner, TOKENIZER, {})
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        wanted = learner.model(tokens).logits
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "3" / "model")
        assert torch.allclose(model(tokens).logits, wanted, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "3" / "model")
    assert tokenizer.encode("<act>go north<end>") == TOKENIZER.encode("<act>go north<end>")
    assert "packed" not in (tmp_path / "3" / "model" / "config.json").read_text()


def test_a_new_run_can_start_from_a_checkpoints_model_folder(tmp_path: Path):
    learner = new_learner()
    play(learner, range(2))
    checkpoint.save(tmp_path / "2", learner, TOKENIZER, {})
    again = new_learner(folder=str(tmp_path / "2" / "model"), shape=None)
    for name, weight in learner.weights().items():
        assert torch.equal(weight, again.weights()[name])


@pytest.mark.parametrize(
    "name", ["learner.safetensors", "learner.json", "model/model.safetensors", "model/config.json"]
)
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, name: str, damage: str):
    learner = new_learner()
    checkpoint.save(tmp_path / "0", learner, TOKENIZER, {})
    path = tmp_path / "0" / name
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "cut" else data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    with pytest.raises(CheckpointError, match=re.escape(name) + ".*remove this checkpoint"):
        checkpoint.restore(tmp_path / "0", learner)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.restore(tmp_path / "none", new_learner())
    with pytest.raises(CheckpointError, match=r"holds no MANIFEST\.json"):
        checkpoint.restore(tmp_path, new_learner())
    (tmp_path / "MANIFEST.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest.*unreadable"):
        checkpoint.restore(tmp_path, new_learner())
    (tmp_path / "MANIFEST.json").write_text(json.dumps({"format": 99, "files": {}}))
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.restore(tmp_path, new_learner())


def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(tmp_path: Path):
    checkpoint.save(tmp_path / "0", new_learner(), TOKENIZER, {})
    other = new_learner(shape=Shape(hidden=32, layers=2, heads=2, kv_heads=1, mlp=24, max_context=64))
    before = {name: tensor.clone() for name, tensor in other.weights().items()}
    with pytest.raises(
        CheckpointError, match=r"does not fit this recipe.*stored \(\d+, 16\), wanted \(\d+, 32\)"
    ):
        checkpoint.restore(tmp_path / "0", other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.weights().items())


def test_a_checkpoint_is_never_overwritten(tmp_path: Path):
    checkpoint.save(tmp_path / "0", new_learner(), TOKENIZER, {})
    with pytest.raises(CheckpointError, match="exists already"):
        checkpoint.save(tmp_path / "0", new_learner(), TOKENIZER, {})


@pytest.mark.parametrize("limit", [20, 3_000, 12_000])
def test_a_full_disk_is_one_clear_error_and_leaves_the_previous_checkpoint(tmp_path: Path, limit: int):
    learner = new_learner()
    checkpoint.save(tmp_path / "0", learner, TOKENIZER, {})
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(ConfigError, match=os.strerror(errno.EFBIG).lower() + ".*free space"):
            checkpoint.save(tmp_path / "1", learner, TOKENIZER, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    checkpoint.restore(tmp_path / "0", learner)


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from agentrl.learner import checkpoint
from small_learner import TOKENIZER, new_learner
learner = new_learner()
for number in range(1000):
    checkpoint.save(Path(sys.argv[2]) / f"{number:06d}", learner, TOKENIZER, {"number": number})
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_only_whole_checkpoints(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(Path(__file__).parent), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    with process.stdout as lines:
        for _ in range(5):
            assert lines.readline(), "the writer did not start"
        time.sleep(0.03)
        process.kill()
        process.wait()
    learner = new_learner()
    whole = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert len(whole) >= 5
    for path in whole:
        assert checkpoint.restore(path, learner) == {"number": int(path.name)}
