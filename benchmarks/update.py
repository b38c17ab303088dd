"""The update compared with TRL's ``GRPOTrainer`` on the same sequences and model: speed and peak memory.

    python benchmarks/update.py            # on first use, creates a virtual environment for TRL in the cache
    python benchmarks/update.py --threads 2 --vocab 640

Both train a 0.6M Qwen2 on 128 multi-turn episodes of natural, unequal lengths (one sequence per episode,
observation tokens masked), in 16 groups of 8: one optimiser step per update, a clipped surrogate, no
reference model. Each run is a separate process. TRL gets its episodes through ``rollout_func`` with
``env_mask``, so nothing is generated; the time that it spends on collecting and scoring them is subtracted.
It is run with several micro-batch sizes and without gradient checkpointing, and each of our runs is compared
with its fastest run and with the one that uses the least memory. Memory is the peak of the process, and the
peak above what the process used when the model had been loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

REQUIREMENTS = (("torch==2.13.0",), ("trl==1.16.0", "psutil"))
NUM_GROUPS, GROUP_SIZE = 16, 8
TRL_MICRO_BATCHES = (8, 16, 32)
TOKEN_BUDGETS = (1024, 512)
"""Tokens per micro-batch of our runs: the default, and a smaller one that uses less memory."""
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MIB = 2**20


def episodes(vocab: int) -> list[list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]]:
    """Return episodes as (observation, action) tokens per turn.

    They have 3 to 20 turns, mostly few, and about 170 tokens, of which one in six is sampled.
    """
    rng = np.random.default_rng(0)

    def turn() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        return rng.integers(3, vocab, rng.integers(8, 28)), rng.integers(3, vocab, rng.integers(2, 6))

    return [[turn() for _ in range(3 + int(17 * rng.beta(1.2, 2.5)))] for _ in range(NUM_GROUPS * GROUP_SIZE)]


class Clock:
    """Records CPU seconds per update and memory. The first update is a warm-up and does not count."""

    def __init__(self) -> None:
        self.base_mib = psutil.Process().memory_info().rss / MIB
        self.updates: list[float] = []

    def report(self, num_tokens: int) -> dict[str, float]:
        """Return tokens per CPU second of the fastest update, and peaks in MiB."""
        import resource

        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {
            "tokens_per_s": num_tokens / min(self.updates[1:]),
            "peak_mib": peak_mib,
            "above_mib": peak_mib - self.base_mib,
        }


def run_ours(vocab: int, num_updates: int, token_budget: int) -> dict[str, float]:
    from agentrl.learner import Compute, Optimisation
    from agentrl.learner.batch import make_batch
    from agentrl.learner.learner import TorchLearner
    from agentrl.learner.model import build_model
    from agentrl.learner.spec import ModelSpec, Shape
    from agentrl.losses.clip import Clip
    from agentrl.losses.objective import Objective
    from agentrl.types import Action, Credited, End, Observation, Scored, Task, Trajectory, Turn, floats, ints

    model = build_model(ModelSpec(shape=Shape(), tokenizer="-"), vocab, seed=0)
    learner = TorchLearner(model, Compute(token_budget=token_budget))
    learner.start(Optimisation(lr=1e-3), num_updates)
    advantages = np.random.default_rng(1).normal(size=NUM_GROUPS * GROUP_SIZE)
    scored, credited = [], []
    for turns, advantage in zip(episodes(vocab), advantages, strict=True):
        played = [
            Turn(
                Observation.text(""),
                Action("", ints(seen.tolist()), ints(said.tolist()), floats([-np.log(vocab)] * len(said))),
            )
            for seen, said in turns
        ]
        trajectory = Trajectory(Task("task"), tuple(played), End.TERMINATED)
        scored.append((Scored(trajectory, {}),))
        credited.append((Credited(floats([advantage] * trajectory.num_tokens)),))
    clock = Clock()
    for _ in range(num_updates):
        began = time.process_time()
        batch = make_batch(scored, credited)
        learner.update(batch, Objective(loss=Clip()))
        clock.updates.append(time.process_time() - began)
    return clock.report(batch.num_tokens)


def run_trl(vocab: int, num_updates: int, micro_batch: int) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    core = Tokenizer(
        models.WordLevel(
            {"<pad>": 0, "<act>": 1, "<end>": 2} | {f"w{token}": token for token in range(3, vocab)}, "<pad>"
        )
    )
    make_tokenizer: Any = PreTrainedTokenizerFast  # Any: not typed
    tokenizer = make_tokenizer(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")
    torch.manual_seed(0)
    shape: dict[str, Any] = dict(SHAPE)
    model = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=vocab, max_position_embeddings=1024, tie_word_embeddings=True, **shape)
    )
    played = episodes(vocab)
    num_tokens = sum(len(part) for turns in played for turn in turns for part in turn)

    def rollout(prompts: Sequence[object], trainer: object) -> dict[str, list[list[float]]]:
        parts = [[part for turn in turns for part in turn] for turns in played]
        masks = [
            np.concatenate([np.full(len(part), index % 2) for index, part in enumerate(whole[1:], 1)])
            for whole in parts
        ]
        completions = [np.concatenate(whole[1:]) for whole in parts]
        return {
            "prompt_ids": [whole[0].tolist() for whole in parts],
            "completion_ids": [completion.tolist() for completion in completions],
            "logprobs": [[-float(np.log(vocab))] * len(completion) for completion in completions],
            "env_mask": [mask.tolist() for mask in masks],
        }

    rewards = np.random.default_rng(1).normal(size=len(played)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=len(played) // micro_batch,
            num_generations=GROUP_SIZE,
            max_completion_length=1024,
            beta=0.0,
            learning_rate=1e-3,
            max_steps=num_updates,
            save_strategy="no",
            report_to="none",
            logging_steps=10_000,
            disable_tqdm=True,
        )
        dataset = Dataset.from_dict({"prompt": [f"w{index + 3}" for index in range(NUM_GROUPS)]})
        trainer = GRPOTrainer(
            model=model,
            args=settings,
            train_dataset=dataset,
            processing_class=tokenizer,
            reward_funcs=lambda prompts, completions, **_: rewards[: len(prompts)],
            rollout_func=rollout,
        )
        clock = Clock()
        collecting = _subtract_collecting(trainer)

        class Timer(TrainerCallback):
            began = 0.0

            def on_step_begin(self, *_: object, **__: object) -> None:
                collecting[0], self.began = 0.0, time.process_time()

            def on_step_end(self, *_: object, **__: object) -> None:
                clock.updates.append(time.process_time() - self.began - collecting[0])

        trainer.add_callback(Timer())
        trainer.train()
        assert not model.is_activation_checkpointing
        assert collecting[1] == num_updates, "TRL did not collect once per update"
    return clock.report(num_tokens)


def _subtract_collecting(trainer: Any) -> list[float]:
    """Count the CPU seconds that the trainer spends on collecting and scoring episodes, and its calls.

    Returns both as a list that is updated in place.
    """
    spent = [0.0, 0.0]
    collect = trainer._generate_and_score_completions

    def counted(inputs: object) -> object:
        began = time.process_time()
        collected = collect(inputs)
        spent[0] += time.process_time() - began
        spent[1] += 1
        return collected

    trainer._generate_and_score_completions = counted
    return spent


def trl_python() -> Path:
    """Return the interpreter of the virtual environment for TRL, which is created on first use."""
    import platformdirs

    folder = platformdirs.user_cache_path("agentrl") / "trl-venv"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(
            f"installing {' '.join(name for step in REQUIREMENTS for name in step)} into {folder} ...",
            flush=True,
        )
        venv.create(folder, with_pip=True)
        for step in REQUIREMENTS:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *step], check=True)
        (folder / "complete").touch()
    return python


def measure(python: str | Path, threads: int, *arguments: object) -> dict[str, float]:
    """Run one side in a separate process."""
    quiet = {
        "OMP_NUM_THREADS": str(threads),
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [str(python), __file__, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocab", type=int, nargs="+", default=[640, 32_000])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--side", choices=("ours", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--micro-batch", type=int, default=8, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        (vocab,) = options.vocab
        ours = options.side == "ours"
        found = (run_ours if ours else run_trl)(vocab, options.updates, options.micro_batch)
        print(json.dumps(found))
        return
    python = trl_python()
    for vocab in options.vocab:
        common = ("--vocab", vocab, "--updates", options.updates)
        print(f"vocabulary {vocab:,}, {options.threads} threads")

        def sized(
            python: str | Path, side: str, size: int, common: tuple[object, ...] = common
        ) -> dict[str, float]:
            found = measure(python, options.threads, "--side", side, "--micro-batch", size, *common)
            print(f"  {f'{side}, {size}':<16} {_line(found)}", flush=True)
            return found

        ours = {size: sized(sys.executable, "ours", size) for size in TOKEN_BUDGETS}
        theirs = [sized(python, "trl", size) for size in TRL_MICRO_BATCHES]
        rivals = {
            "fastest": max(theirs, key=lambda found: found["tokens_per_s"]),
            "leanest": min(theirs, key=lambda found: found["peak_mib"]),
        }
        for size, found in ours.items():
            for name, rival in rivals.items():
                speed, peak, above = (
                    found[key] / rival[key] for key in ("tokens_per_s", "peak_mib", "above_mib")
                )
                print(
                    f"  ours, {size:<5} to trl's {name}: {speed:.2f}x the tokens/s, {peak:.2f}x the peak, "
                    f"{above:.2f}x above the model"
                )


def _line(found: dict[str, float]) -> str:
    memory = f"peak {found['peak_mib']:>6,.0f} MiB (+{found['above_mib']:,.0f})"
    return f"{found['tokens_per_s']:>8,.0f} tokens/s   {memory}"


if __name__ == "__main__":
    main()
