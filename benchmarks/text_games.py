"""Text games: success without learning, and the cost of a step compared with the package's own player.

    python benchmarks/text_games.py             # the table of environments/README.md, and the cost of a step
    python benchmarks/text_games.py --games coin-r8-q4 --test 50 --z8 4

Baselines: one episode per game of the test panel; success with its 95% interval, and turns. Random play draws
uniformly from all admissible commands. Cost: CPU ms per step of uniform random play with admissible commands,
resets included, compared with the package's own player in a plain loop: ``TextWorldEnv`` for the game's
logic, ``textworld.start`` for the compiled game. ``--z8`` is the number of games to compile for that, which
takes seconds each; 0 leaves the compiled game out. Games are loaded before the clock starts, on both sides.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from agentrl_environments.textworld import TextWorld
from rich.console import Console
from rich.table import Table

from agentrl.env import panel_hash
from agentrl.evaluation import evaluate
from agentrl.hosts.in_process import InProcess
from agentrl.policy import ExpertPolicy, Policy, RandomPolicy
from agentrl.rollout import Limits
from agentrl.types import Task

GAMES = (
    "coin-r6-q4",
    "coin-r8-q4",
    "coin-r12-q6",
    "w2-o3-q4",
    "w4-o6-q4",
    "w4-o6-q8",
    "treasure-l5",
    "treasure-l12",
    "cooking-r1-t1-g1",
    "cooking-r2-t1-g6-open-cook-cut",
)
PLAIN_COST = ("coin-r8-q4", "w2-o3-q4", "w4-o6-q8", "cooking-r2-t1-g6-open-cook-cut")
REPEATS = 3
TURNS = 20


async def baseline(env: TextWorld, policy: Policy) -> tuple[str, str]:
    """Return success and turns of a policy on the test panel, as text."""
    async with InProcess(env, 120.0) as host:
        report = await evaluate(
            policy, host, env.tasks("test"), seed=0, limits=Limits(max_turns=env.max_turns)
        )
    success, turns = report.measures()["success"], report.measures()["turns"]
    return f"{success.mean:.2f} [{success.low:.2f}, {success.high:.2f}]", f"{turns.mean:.1f}"


def baselines(games: Sequence[str], num_test: int) -> Table:
    """Play the baselines and return them as a table."""
    table = Table("game", "turn limit", "test panel", "random", "turns", "expert", "turns")
    for game in games:
        env = TextWorld(game=game, test=num_test, max_turns=50 if game.startswith("cooking") else 20)
        cells = [
            cell for policy in (RandomPolicy(), ExpertPolicy()) for cell in asyncio.run(baseline(env, policy))
        ]
        table.add_row(
            game, str(env.max_turns), f"{len(env.tasks('test'))}, {panel_hash(env.tasks('test'))}", *cells
        )
    return table


async def ours(env: TextWorld, tasks: Sequence[Task]) -> float:
    """Return CPU ms per step of random play through the contract, on games not yet played in this process."""
    num_steps = 0
    async with env.shared() as shared:
        for task in tasks:  # loading a game is not part of the measurement
            async with env.open(task, None, shared):
                pass
        started = time.process_time()
        for task in tasks:
            dice = random.Random(task.id)
            async with env.open(task, None, shared) as episode:
                observation, over = await episode.reset(), False
                while not over:
                    step = await episode.step(dice.choice(observation.actions))
                    observation, over, num_steps = (
                        step.observation,
                        step.terminated or step.truncated,
                        num_steps + 1,
                    )
        return 1e3 * (time.process_time() - started) / num_steps


def bare(env: TextWorld, tasks: Sequence[Task]) -> float:
    """Return CPU ms per step of the same play in the package's own loop."""
    import textworld
    from agentrl_environments.textworld import engine
    from agentrl_environments.textworld.games import Games
    from textworld.envs.tw import TextWorldEnv
    from textworld.generator.inform7 import Inform7Game

    games, infos = Games(env.game), textworld.EnvInfos(admissible_commands=True, moves=True)

    def logic(task: Task) -> textworld.Environment:
        player = TextWorldEnv(infos)
        player._game = engine.load(games.load(task.data["file"]))
        player._inform7 = Inform7Game(player._game)
        return player

    def compiled(task: Task) -> textworld.Environment:
        return textworld.start(str(Path(games.folder, task.data["file"]).with_suffix(".z8")), infos)

    make = logic if env.backend == "facts" else compiled
    players = {task.id: make(task) for task in tasks}
    num_steps, started = 0, time.process_time()
    for task in tasks:
        player = players[task.id]
        dice, state = random.Random(task.id), player.reset()
        for _ in range(TURNS):
            state, _, over = player.step(dice.choice(state["admissible_commands"]))
            num_steps += 1
            if over:
                break
    spent = time.process_time() - started
    for player in players.values():
        player.close()
    return 1e3 * spent / num_steps


def costs(games: Sequence[str], num_z8: int) -> Table:
    """Measure steps and return a table; times are the minimum of a few repeats (other work only adds)."""
    table = Table("game", "back end", "observation", "package ms", "ours ms", "ratio")
    for game in games:
        modes = [TextWorld(game=game, test=40, max_turns=TURNS)]
        if num_z8:
            modes += [
                TextWorld(game=game, test=num_z8, max_turns=TURNS, backend="z8", observation=style)
                for style in ("brief", "raw")
            ]
        for env in modes:
            tasks = list(env.tasks("test")) * (1 if env.backend == "facts" else 10)
            asyncio.run(ours(env, tasks))
            pairs = [(bare(env, tasks), asyncio.run(ours(env, tasks))) for _ in range(REPEATS)]
            engine_ms, ours_ms = (min(column) for column in zip(*pairs, strict=True))
            table.add_row(
                game,
                env.backend,
                env.observation,
                f"{engine_ms:.2f}",
                f"{ours_ms:.2f}",
                f"{ours_ms / engine_ms:.2f}",
            )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--games", nargs="+", default=None, help="families; by default those of the README")
    parser.add_argument("--test", type=int, default=200, help="games of a test panel")
    parser.add_argument(
        "--z8", type=int, default=4, help="games to compile for the cost of a step on the compiled game"
    )
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*is not fully supported.*")
    console = Console(width=140)
    console.print(baselines(chosen.games or GAMES, chosen.test))
    console.print(costs(chosen.games or PLAIN_COST, chosen.z8))


if __name__ == "__main__":
    main()
