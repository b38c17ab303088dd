"""The environment side: what the path through a worker costs beside the bare engine, and how it scales.

    python benchmarks/environments.py                       # the compiled game; games are made and compiled first
    python benchmarks/environments.py --backend facts       # the game's logic: a far cheaper step

Three ratios, each of numbers taken in one run, the least of a few repeats (other work on the machine only ever adds):

- *overhead*: CPU per turn of everything (parent, contract, signals, worker) over the engine in a plain loop that requests the same infos;
- *scaling*: turns per second with two workers over one, 64 episodes side by side (a busy machine shows less than there is);
- *idle*: latency of one active episode with 256 idle ones open in the same worker, over its latency alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import time
import warnings
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import textworld
from agentrl_environments.textworld import Style, TextWorld
from agentrl_environments.textworld.games import Games
from rich.console import Console
from rich.table import Table

from agentrl.policy import RandomPolicy
from agentrl.rollout import Limits, play_all
from agentrl.samplers import Draw
from agentrl.types import Task
from agentrl.workers import Workers

TURNS = 20
DEADLINE_S = 120.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pids: Sequence[int]) -> float:
    """Return CPU seconds that this process and ``pids`` have used."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
    return time.process_time() + TICK_S * sum(int(field[11]) + int(field[12]) for field in fields)


def bare_ms(env: TextWorld, tasks: Sequence[Task]) -> float:
    """Return CPU ms per turn of random play in the engine's own loop, starting it included."""
    games = Games(env.game)
    infos = textworld.EnvInfos(admissible_commands=True, moves=True)
    num_turns, started = 0, time.process_time()
    for task in tasks:
        player = textworld.start(
            str(Path(games.folder, str(task.data["file"])).with_suffix(".z8" if env.backend == "z8" else ".json")), infos
        )
        dice, state = random.Random(task.id), player.reset()
        for _ in range(TURNS):
            state, _, over = player.step(dice.choice(state["admissible_commands"]))
            num_turns += 1
            if over:
                break
        player.close()
    return 1e3 * (time.process_time() - started) / num_turns


async def through_workers(env: TextWorld, tasks: Sequence[Task], num_workers: int) -> tuple[float, float]:
    """Return CPU ms per turn, all processes together, and turns per second, of random play in workers that know the games."""
    limits = Limits(max_turns=TURNS, concurrency=64, env_deadline_s=DEADLINE_S)
    draws = [Draw(task, 1, sample) for sample, task in enumerate(tasks)]
    async with Workers(env, num_workers, DEADLINE_S) as host:
        await play_all(draws, policy=RandomPolicy(), host=host, seed=0, limits=limits)
        cpu, wall = cpu_s(host.pids), time.perf_counter()
        played = await play_all(draws, policy=RandomPolicy(), host=host, seed=0, limits=limits)
        cpu, wall = cpu_s(host.pids) - cpu, time.perf_counter() - wall
    if played.failures:
        raise SystemExit(f"an episode failed: {played.failures[0].error}")
    num_turns = sum(len(trajectory.turns) for group in played.groups for trajectory in group)
    return 1e3 * cpu / num_turns, num_turns / wall


async def latency_ms(env: TextWorld, tasks: Sequence[Task], num_idle: int) -> float:
    """Return the time of a turn of one active episode while ``num_idle`` others are open in its worker."""
    async with Workers(env, 1, DEADLINE_S) as host, AsyncExitStack() as stack:
        for index in range(num_idle):
            idle = await stack.enter_async_context(host.open(tasks[index % len(tasks)]))
            await idle.reset()
        times: list[float] = []
        for task in tasks:
            async with host.open(task) as active:
                observation, dice = await active.reset(), random.Random(task.id)
                for _ in range(TURNS):
                    started = time.perf_counter()
                    step = await active.step(dice.choice(observation.actions))
                    times.append(time.perf_counter() - started)
                    observation = step.observation
                    if step.terminated or step.truncated:
                        break
        return 1e3 * sorted(times)[len(times) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="w2-o3-q4")
    parser.add_argument("--backend", choices=["z8", "facts"], default="z8")
    parser.add_argument("--games", type=int, default=4, help="different games; each is compiled, which takes seconds")
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*is not fully supported.*")
    style: Style = "raw" if chosen.backend == "z8" else "brief"
    env = TextWorld(
        game=chosen.game, backend=chosen.backend, observation=style, max_turns=TURNS, train=0, valid=0, test=chosen.games, ood=0
    )
    env.prepare(lambda what, done, total: None)
    tasks = (list(env.tasks("test")) * chosen.episodes)[: chosen.episodes]
    bare, one, two, alone, crowded = [], [], [], [], []
    for _ in range(chosen.repeats):
        bare.append(bare_ms(env, tasks))
        one.append(asyncio.run(through_workers(env, tasks, 1)))
        two.append(asyncio.run(through_workers(env, tasks, 2)))
        alone.append(asyncio.run(latency_ms(env, tasks[:16], 0)))
        crowded.append(asyncio.run(latency_ms(env, tasks[:16], 256)))
    table = Table("measure", "without", "with", "ratio", "target")
    whole = min(ms for ms, _ in one)
    table.add_row(
        "CPU per turn, engine alone and whole path", f"{min(bare):.3f} ms", f"{whole:.3f} ms", f"{whole / min(bare):.3f}", "<= 1.15"
    )
    speeds = [max(speed for _, speed in runs) for runs in (one, two)]
    table.add_row("turns per second, one worker and two", f"{speeds[0]:.0f}", f"{speeds[1]:.0f}", f"{speeds[1] / speeds[0]:.2f}", ">= 1.8")
    table.add_row(
        "latency, alone and beside 256 idle", f"{min(alone):.3f} ms", f"{min(crowded):.3f} ms", f"{min(crowded) / min(alone):.2f}", "< 2"
    )
    Console().print(table)


if __name__ == "__main__":
    main()
