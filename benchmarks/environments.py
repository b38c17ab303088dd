"""The cost and the scaling of environments: playing through a worker compared with the bare engine.

    python benchmarks/environments.py                  # the compiled game, which is compiled first
    python benchmarks/environments.py --backend facts  # the game's logic, with much cheaper steps

Every measurement is random play with admissible commands on the same games, each loaded before the clock
starts. A ratio compares two runs made right after each other, and is the median over the repeats. Times are
the minimum over the repeats, because other work on the machine only adds time.

- *the package's loop*: CPU per turn of everything (parent, contract, signals, worker), over the package's own
  loop, which requests the same infos, starts each game once and resets it for each episode;
- *our engine's loop*: the same, over a plain loop of this environment's own episodes. It shows what the path
  through a worker adds, without the gain of our engine;
- *one core*: turns per second of the whole path with two workers on two cores, over the whole path with one
  worker confined to one core (parent and worker share it), with 64 episodes at the same time;
- *one worker*: the same, over one worker with two cores, where the parent already uses the second core;
- *idle*: latency of one active episode with 256 idle ones open in the same worker, over its latency alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
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

from agentrl.hosts.workers import Workers
from agentrl.policy import RandomPolicy
from agentrl.rollout import Limits, play_all
from agentrl.samplers import Draw
from agentrl.types import Task

TURNS = 20
DEADLINE_S = 120.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pids: Sequence[int]) -> float:
    """Return CPU seconds that this process and ``pids`` have used."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
    return time.process_time() + TICK_S * sum(int(field[11]) + int(field[12]) for field in fields)


def package_ms(env: TextWorld, tasks: Sequence[Task]) -> float:
    """Return CPU ms per turn of random play in the package's own loop."""
    folder, suffix = Games(env.game).folder, ".z8" if env.backend == "z8" else ".json"
    infos = textworld.EnvInfos(admissible_commands=True, moves=True)
    players = {
        file: textworld.start(str((folder / file).with_suffix(suffix)), infos)
        for file in {task.data["file"] for task in tasks}
    }
    num_turns, started = 0, time.process_time()
    for task in tasks:
        player = players[task.data["file"]]
        dice, state = random.Random(task.id), player.reset()
        for _ in range(TURNS):
            state, _, over = player.step(dice.choice(state["admissible_commands"]))
            num_turns += 1
            if over:
                break
    spent = time.process_time() - started
    for player in players.values():
        player.close()
    return 1e3 * spent / num_turns


async def engine_ms(env: TextWorld, tasks: Sequence[Task]) -> float:
    """Return CPU ms per turn of random play in a plain loop of the environment's own episodes."""
    async with env.shared() as shared:
        for _ in range(2):  # the first round loads the games
            num_turns, started = 0, time.process_time()
            for task in tasks:
                dice, over = random.Random(task.id), False
                async with env.open(task, None, shared) as episode:
                    observation = await episode.reset()
                    while not over:
                        step = await episode.step(dice.choice(observation.actions))
                        observation, over, num_turns = (
                            step.observation,
                            step.terminated or step.truncated,
                            num_turns + 1,
                        )
            spent = time.process_time() - started
    return 1e3 * spent / num_turns


def on(cores: set[int], env: TextWorld, tasks: Sequence[Task], num_workers: int) -> tuple[float, float]:
    """Return the result of `through_workers`, with this process and its workers confined to some cores."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        return asyncio.run(through_workers(env, tasks, num_workers))
    finally:
        os.sched_setaffinity(0, allowed)


async def through_workers(env: TextWorld, tasks: Sequence[Task], num_workers: int) -> tuple[float, float]:
    """Return CPU ms per turn of all processes, and turns per second, in workers that know the games."""
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--game", default="w2-o3-q4")
    parser.add_argument("--backend", choices=["z8", "facts"], default="z8")
    parser.add_argument(
        "--games", type=int, default=4, help="different games; each is compiled, which takes seconds"
    )
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*is not fully supported.*")
    style: Style = "raw" if chosen.backend == "z8" else "brief"
    env = TextWorld(
        game=chosen.game,
        backend=chosen.backend,
        observation=style,
        max_turns=TURNS,
        train=0,
        valid=0,
        test=chosen.games,
        ood=0,
    )
    env.prepare(lambda what, done, total: None)
    tasks = (list(env.tasks("test")) * chosen.episodes)[: chosen.episodes]
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("this benchmark needs two cores")
    rows: list[dict[str, float]] = []
    for _ in range(chosen.repeats):
        row = {"package": package_ms(env, tasks), "engine": asyncio.run(engine_ms(env, tasks))}
        row["whole"], row["two workers"] = on(set(cores), env, tasks, 2)
        _, row["one core"] = on(set(cores[:1]), env, tasks, 1)
        _, row["one worker"] = on(set(cores), env, tasks, 1)
        row["alone"], row["crowded"] = (
            asyncio.run(latency_ms(env, tasks[:16], 0)),
            asyncio.run(latency_ms(env, tasks[:16], 256)),
        )
        rows.append(row)
    table = Table("measure", "without", "with", "ratio", "target")
    for measure, without, with_it, unit, target in (
        ("CPU per turn, the package's loop and the whole path", "package", "whole", "ms", "<= 1.15"),
        ("CPU per turn, our engine's loop and the whole path", "engine", "whole", "ms", ""),
        ("turns per second, one core and two", "one core", "two workers", "", ">= 1.8"),
        ("turns per second on two cores, one worker and two", "one worker", "two workers", "", ""),
        ("latency, alone and beside 256 idle", "alone", "crowded", "ms", "< 2"),
    ):
        best = min if unit else max
        figures = [
            f"{best(row[name] for row in rows):.{3 if unit else 0}f} {unit}" for name in (without, with_it)
        ]
        table.add_row(
            measure, *figures, f"{statistics.median(row[with_it] / row[without] for row in rows):.2f}", target
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
