"""Rollouts: the local engine compared with ``transformers.generate`` and, if it is installed, with vLLM.

    python benchmarks/rollout.py                      # 64 episodes, 5M parameters: about five minutes
    python benchmarks/rollout.py --hidden 128 --layers 3 --episodes 32

All run in one process with the same model, games and tokenizer. The observations are those of real TextWorld
games, half of them played by the expert and half at random, so that episodes have their natural, unequal
lengths. The actions are sampled by each contender (temperature 1, until ``<end>``). A few steps of language
modelling come first, so that actions end as they do in training. ``generate`` is called as a simple trainer
would call it: once per turn, with the whole contexts of all unfinished episodes as one left-padded batch and
an empty cache. Rates are per CPU second of this process.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from agentrl_environments.textworld import TextWorld
from rich.console import Console
from rich.table import Table

from agentrl.engines.local import LocalEngine
from agentrl.env import EnvSpec
from agentrl.hosts.in_process import InProcess
from agentrl.learner.model import build_model, train_tokenizer
from agentrl.learner.spec import ModelSpec, Shape, TrainedTokenizer
from agentrl.policy import ExpertPolicy, RandomPolicy, Sampling
from agentrl.render import Renderer, TagRenderer, context
from agentrl.rollout import Limits, play
from agentrl.types import Action, Observation, Trajectory, Turn, floats, ints, seed_of

Episodes = Sequence[Sequence[Observation]]
TURN_LIMIT, MAX_TOKENS = 20, 14
PROMPT, NEW = 64, 64
"""Numbers of prompt and sampled tokens in single-turn decoding."""
GROUP = 8
"""Number of answers to the same prompt, as in a group of reinforcement learning."""


@dataclass(frozen=True)
class Result:
    """The number of tokens that a contender sampled, and the CPU time it took."""

    num_tokens: int
    cpu_s: float


async def record(env: EnvSpec, number: int) -> list[Trajectory]:
    """Play half of the games with the expert and half at random."""
    limits = Limits(max_turns=TURN_LIMIT)
    async with InProcess(env, limits.env_deadline_s) as host:
        tasks = env.tasks("train")[:number]
        policies = (ExpertPolicy(), RandomPolicy())
        return [
            await play(task, index, policy=policies[index % 2], host=host, seed=0, limits=limits)
            for index, task in enumerate(tasks)
        ]


def warm(
    model: Any, trajectories: Sequence[Trajectory], renderer: Renderer, *, steps: int = 25, batch: int = 4
) -> None:
    """Train the model for a few steps, so that it produces roughly the format of a transcript."""
    texts = [
        torch.from_numpy(context(renderer.tokenise(trajectory).turns).astype(np.int64))
        for trajectory in trajectories
    ]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        rows = [texts[(step * batch + row) % len(texts)] for row in range(batch)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        optimiser.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()


async def with_engine(engine: LocalEngine, episodes: Episodes) -> int:
    """Play all episodes concurrently with the engine; return the number of sampled tokens."""

    async def one(index: int, observations: Sequence[Observation]) -> int:
        turns: list[Turn] = []
        for turn, observation in enumerate(observations):
            turns.append(Turn(observation, await engine.act(turns, observation, seed=seed_of(index, turn))))
        return sum(len(turn.action.tokens) for turn in turns)

    return sum(
        await asyncio.gather(*[one(index, observations) for index, observations in enumerate(episodes)])
    )


def re_prompted(
    answer: Callable[[list[list[int]]], list[list[int]]], renderer: Renderer, episodes: Episodes
) -> int:
    """Play all episodes in lockstep, and return the number of sampled tokens.

    Each turn is one call of ``answer`` with a batch of whole contexts.
    """
    played: list[list[Turn]] = [[] for _ in episodes]
    for number in range(max(map(len, episodes))):
        living = [index for index, observations in enumerate(episodes) if number < len(observations)]
        prompts = [renderer.prompt(played[index], episodes[index][number]).tokens for index in living]
        contexts = [
            [*context(played[index]).tolist(), *prompt.tolist()]
            for index, prompt in zip(living, prompts, strict=True)
        ]
        for index, prompt, tokens in zip(living, prompts, answer(contexts), strict=True):
            action = Action(renderer.decode(tokens), prompt, ints(tokens), floats(np.zeros(len(tokens))))
            played[index].append(Turn(episodes[index][number], action))
    return sum(len(turn.action.tokens) for turns in played for turn in turns)


@torch.inference_mode()
def generate(
    model: Any, contexts: list[list[int]], *, pad: int, end: int | None, max_tokens: int
) -> list[list[int]]:
    """Sample with ``transformers.generate`` from a left-padded batch."""
    width = max(map(len, contexts))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in contexts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in contexts])
    options = {"max_new_tokens": max_tokens, "min_new_tokens": None if end is not None else max_tokens}
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        top_k=0,
        pad_token_id=pad,
        eos_token_id=end,
        **options,
    )
    answers = out[:, width:].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in answers]


class Endless(TagRenderer):
    """A renderer whose actions are ended only by the token limit."""

    def ended(self, tokens: Sequence[int]) -> bool:
        """Return False."""
        return False


def measured(work: Callable[[], int]) -> Result:
    started = time.process_time()
    num_tokens = work()
    return Result(num_tokens, time.process_time() - started)


def with_vllm(model: Any, tokenizer: Any, renderer: Renderer, episodes: Episodes, end: int) -> Result:
    """Play with vLLM and its prefix cache.

    Its engine is another process, so wall-clock time times the number of threads is taken as CPU time.
    """
    from vllm import LLM, SamplingParams  # never a dependency: its users install it themselves
    from vllm.inputs import TokensPrompt

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        llm = LLM(folder, dtype="float32", enable_prefix_caching=True, max_model_len=1024)
        params = SamplingParams(
            temperature=1.0, max_tokens=MAX_TOKENS, stop_token_ids=[end], detokenize=False
        )

        def answer(contexts: list[list[int]]) -> list[list[int]]:
            outputs = llm.generate(
                [TokensPrompt(prompt_token_ids=row) for row in contexts], params, use_tqdm=False
            )
            return [list(output.outputs[0].token_ids) for output in outputs]

        answer([[1, 2, 3]])
        started = time.monotonic()
        num_tokens = re_prompted(answer, renderer, episodes)
        return Result(num_tokens, (time.monotonic() - started) * torch.get_num_threads())


def decode(engine: LocalEngine, observations: Sequence[Observation]) -> int:
    """Answer each observation once with the engine; return the number of sampled tokens."""
    return asyncio.run(with_engine(engine, [[observation] for observation in observations]))


def decode_again(model: Any, prompts: list[list[int]], pad: int) -> int:
    """Answer each prompt once with ``generate``; return the number of sampled tokens."""
    return sum(map(len, generate(model, prompts, pad=pad, end=None, max_tokens=NEW)))


def best(repeats: int, *works: Callable[[], int]) -> list[Result]:
    """Run all alternately, and return the fastest run of each: other programs can only add CPU time."""
    runs = [[measured(work) for work in works] for _ in range(repeats)]
    return [
        min(results, key=lambda result: result.cpu_s / result.num_tokens)
        for results in zip(*runs, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--game", default="coin-r8-q4")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console()

    env = TextWorld(game=options.game, train=max(options.episodes, 64), valid=8, test=8, ood=8)
    trajectories = asyncio.run(record(env, options.episodes))
    texts = [
        message.content
        for trajectory in trajectories
        for turn in trajectory.turns
        for message in turn.observation.messages
    ]
    tokenizer = train_tokenizer(
        [*texts, *(turn.action.text for trajectory in trajectories for turn in trajectory.turns)]
    )
    renderer = TagRenderer(tokenizer)
    shape = Shape(
        hidden=options.hidden,
        layers=options.layers,
        heads=options.hidden // 32,
        kv_heads=options.hidden // 64,
        mlp=3 * options.hidden,
    )
    spec = ModelSpec(shape=shape, tokenizer=TrainedTokenizer())
    model, copy = (build_model(spec, len(tokenizer), seed=0) for _ in range(2))
    warm(model, trajectories, renderer)
    model.train(False)
    copy.load_state_dict(model.state_dict())
    engine = LocalEngine(copy, renderer, Sampling(max_tokens=MAX_TOKENS))
    episodes = [[turn.observation for turn in trajectory.turns] for trajectory in trajectories]
    vocabulary = tokenizer.get_vocab()
    pad, end = vocabulary["<pad>"], vocabulary["<end>"]
    turns = [len(observations) for observations in episodes]
    console.print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, vocabulary {len(tokenizer)}, "
        f"{len(episodes)} episodes of {options.game}, "
        f"turns {min(turns)} to {max(turns)} (mean {np.mean(turns):.1f}), {options.threads} thread(s)"
    )

    table = Table(
        "multi-turn", "episodes / CPU s", "sampled tokens / CPU s", "tokens per turn", "times generate"
    )

    def row(name: str, result: Result, base: Result) -> None:
        per_s, base_per_s = len(episodes) / result.cpu_s, len(episodes) / base.cpu_s
        table.add_row(
            name,
            f"{per_s:.2f}",
            f"{result.num_tokens / result.cpu_s:.0f}",
            f"{result.num_tokens / sum(turns):.2f}",
            f"{per_s / base_per_s:.2f}",
        )

    answer = partial(generate, model, pad=pad, end=end, max_tokens=MAX_TOKENS)
    (ours,) = best(options.repeats, lambda: asyncio.run(with_engine(engine, episodes)))
    (theirs,) = best(1, lambda: re_prompted(answer, renderer, episodes))
    row("local engine", ours, theirs)
    row("generate, re-prompted", theirs, theirs)
    if importlib.util.find_spec("vllm"):
        row("vLLM", with_vllm(model, tokenizer, renderer, episodes, end), theirs)
    else:
        console.print("vLLM is not installed here: left out")
    console.print(table)

    endless = LocalEngine(copy, Endless(tokenizer), Sampling(max_tokens=NEW))
    contexts = [context(renderer.tokenise(trajectory).turns).tolist() for trajectory in trajectories]
    own = [Observation.text(renderer.decode((ids * PROMPT)[:PROMPT])) for ids in contexts]
    single = Table("single turn", "sampled tokens / CPU s", "times generate")
    grouped = [own[index - index % GROUP] for index in range(len(own))]
    for kind, observations in (("a prompt each", own), (f"groups of {GROUP} that share theirs", grouped)):
        prompts = [endless.renderer.prompt((), observation).tokens.tolist() for observation in observations]
        results = best(
            options.repeats,
            partial(decode, endless, observations),
            partial(decode_again, model, prompts, pad),
        )
        rates = [result.num_tokens / result.cpu_s for result in results]
        single.add_row(
            f"local engine, {len(own)} x ({PROMPT} + {NEW}), {kind}",
            f"{rates[0]:.0f}",
            f"{rates[0] / rates[1]:.2f}",
        )
        single.add_row("generate", f"{rates[1]:.0f}", "1.00")
    console.print(single)


if __name__ == "__main__":
    main()
