"""CPU time from ledger to advantages, compared with that of the update, for several numbers of turns.

    python benchmarks/chain.py
    python benchmarks/chain.py --episodes 64 --tokens-per-turn 200 --part 1

The first command takes 1,024 episodes of 50 turns and 200 action tokens, 4 in each turn: about two minutes of
CPU. The second takes episodes with 200 action tokens in each turn, 10,000 in an episode.

128 groups of 8 synthetic episodes are rewarded (outcome, format and process reward), transformed (gates,
clip, delta, overlong), filtered (dynamic sampling), credited and modified. That is everything between a
played episode and the learner, except the model's own measurements.

The update is one optimiser step of a 5M model (hidden 256, 6 layers, vocabulary 640) on the same episodes.
They show one token before each action, the least possible, because longer observations make only the update
more expensive. It is measured on a part of the episodes, in many micro-batches, and scaled by tokens. Times
are CPU seconds of one thread, of the fastest of three runs.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from agentrl.credit import Credit, Modifier
from agentrl.credit.anchors import HGPO, GiGPO
from agentrl.credit.baselines import OthersAtTurn
from agentrl.credit.components import GDPO, MTGRPO, EpisodeAndSteps
from agentrl.credit.constant import ConstantCredit
from agentrl.credit.entropy import EMPG
from agentrl.credit.gae import BiLevelGAE, TokenGAE, TurnGAE
from agentrl.credit.group import BNPO, GRPO, RLOO
from agentrl.credit.modifiers import UnitDeviation, Whiten
from agentrl.credit.returns import TurnReturn, reinforce_plus_plus, turn_rloo
from agentrl.credit.strata import CountOf, Stratified
from agentrl.credit.weights import ConflictTokens, DurationWeights, KeepTokens, KeepVaried
from agentrl.learner import Compute, Optimisation
from agentrl.learner.batch import make_batch
from agentrl.learner.learner import TorchLearner
from agentrl.learner.model import build_model
from agentrl.learner.spec import ModelSpec, Shape
from agentrl.losses.clip import Clip
from agentrl.losses.objective import Objective
from agentrl.rewards.compose import Sum
from agentrl.rewards.gates import Gates, Level
from agentrl.rewards.outcome import Format, Outcome, Process
from agentrl.rewards.payment import Payment
from agentrl.rewards.refine import ClipReward, DeltaReward, OverlongPenalty
from agentrl.samplers.filters import DynamicSampling
from agentrl.types import (
    Action,
    End,
    Group,
    Measured,
    Observation,
    Scored,
    ScoredGroup,
    Task,
    Trajectory,
    Turn,
    floats,
    ints,
)

GROUP_SIZE, VOCAB, NUM_PLACES = 8, 640, 40
PAYMENT = Payment(
    reward=Sum((Outcome(), Format(), Process("progress"))),
    transforms=(
        ClipReward("progress", 0.8),
        DeltaReward("progress"),
        Gates((Level(("outcome",), 0.0), Level(("progress", "format")))),
        OverlongPenalty(1_000_000, 10),
    ),
    filters=(DynamicSampling(),),
)
OUTCOME_ONLY = Payment(reward=Outcome())
"""For rules that need returns in [0, 1]."""


@dataclass(frozen=True)
class Chain:
    """A credit rule, with the modifiers after it and the rewards before it."""

    credit: Credit
    modifiers: tuple[Modifier, ...] = ()
    payment: Payment = PAYMENT

    def run(self, played: Sequence[Group], measured: Mapping[tuple[str, int], Scored]) -> int:
        """Pay, filter, credit and modify; return the number of action tokens that got an advantage.

        The measurements in ``measured`` replace those that the learner would make after paying.
        """
        groups: list[ScoredGroup] = [
            tuple(
                replace(measured[one.trajectory.task.id, one.trajectory.sample], ledger=one.ledger)
                for one in group
            )
            for group in self.payment.pay(played)
        ]
        credited = self.credit(groups)
        for modify in self.modifiers:
            credited = modify(groups, credited)
        return sum(len(one.advantages_T) for group in credited for one in group)


CHAINS: Mapping[str, Chain] = {
    "GRPO": Chain(GRPO()),
    "RLOO": Chain(RLOO()),
    "BNPO": Chain(BNPO(), payment=OUTCOME_ONLY),
    "REINFORCE++": Chain(reinforce_plus_plus()),
    "turn RLOO": Chain(turn_rloo()),
    "return to go - others at the turn": Chain(TurnReturn(0.97, OthersAtTurn()), (UnitDeviation(),)),
    "token GAE, whitened": Chain(TokenGAE(), (Whiten(per="token"),)),
    "turn GAE, whitened": Chain(TurnGAE(), (Whiten(),)),
    "bi-level GAE": Chain(BiLevelGAE()),
    "GiGPO": Chain(GiGPO()),
    "HGPO": Chain(HGPO()),
    "GDPO": Chain(GDPO({"outcome": 1.0, "progress": 0.5, "format": 0.1})),
    "MT-GRPO": Chain(MTGRPO(process="progress")),
    "iStar's combination": Chain(EpisodeAndSteps(process="progress")),
    "stratified": Chain(Stratified(CountOf("tool"))),
    "GRPO + EMPG": Chain(GRPO(), (EMPG(),)),
    "GRPO + duration": Chain(GRPO(), (DurationWeights(),)),
    "GRPO + GTPO": Chain(GRPO(), (ConflictTokens(),)),
    "GRPO + D3S": Chain(GRPO(), (KeepVaried(4), KeepTokens())),
}


def play(num_episodes: int, num_turns: int, tokens_per_turn: int) -> list[Group]:
    """Generate groups of episodes that walk at random between rooms, so that those of a group meet."""
    random = np.random.default_rng(0)
    rooms = [
        Observation.text(
            f"You are in room {place}. There is a door to the east and a door to the west. What now? " * 2
        )
        for place in range(NUM_PLACES)
    ]
    groups: list[Group] = []
    for index in range(num_episodes // GROUP_SIZE):
        task, members = Task(f"walk-{index}"), []
        for sample in range(GROUP_SIZE):
            places = np.abs(np.cumsum(random.integers(-1, 2, num_turns))) % NUM_PLACES
            tokens = random.integers(3, VOCAB, (num_turns, tokens_per_turn))
            progress = random.random(num_turns)
            outcome = float(random.random() < 0.5 if sample else index % 2)
            turns = tuple(
                Turn(
                    rooms[places[n]],
                    Action(
                        "go east", ints([2]), ints(tokens[n]), floats([-math.log(VOCAB)] * tokens_per_turn)
                    ),
                    info={
                        "success": outcome * (n == num_turns - 1),
                        "valid": 1.0,
                        "progress": float(progress[n]),
                        "tool": float(n % 3 == 0),
                    },
                    duration_s=float(progress[n]),
                )
                for n in range(num_turns)
            )
            members.append(Trajectory(task, turns, End.TERMINATED, sample))
        groups.append(tuple(members))
    return groups


def measure(played: Sequence[Group]) -> dict[tuple[str, int], Scored]:
    """Generate random values for what the learner would measure on the episodes' tokens."""
    random = np.random.default_rng(1)

    def one(trajectory: Trajectory) -> Scored:
        values_T, entropies_T = random.random((2, trajectory.num_tokens))
        return Scored(
            trajectory, {}, measured=Measured(values=floats(values_T), entropies=floats(entropies_T))
        )

    return {
        (trajectory.task.id, trajectory.sample): one(trajectory) for group in played for trajectory in group
    }


def cpu_s(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the CPU seconds of the fastest of several runs."""
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def update_s(played: Sequence[Group], part_tokens: int) -> tuple[float, int, int]:
    """Return the extrapolated CPU seconds of an update on all episodes, and two numbers.

    They are the number of episodes that were measured and the number of parameters.
    """
    tokens = [
        sum(len(turn.action.prompt) + len(turn.action.tokens) for turn in one.turns)
        for group in played
        for one in group
    ]
    longest = max(tokens)
    model = build_model(
        ModelSpec(
            shape=Shape(hidden=256, layers=6, heads=8, kv_heads=4, mlp=768, max_context=longest),
            tokenizer="-",
        ),
        VOCAB,
        seed=0,
    )
    learner = TorchLearner(model, Compute(token_budget=max(1024, longest)))
    learner.start(Optimisation(lr=1e-4), 3)
    part = [(one,) for group in played for one in group][: max(1, part_tokens // longest)]
    groups = OUTCOME_ONLY.score(part)
    batch = make_batch(groups, ConstantCredit()(groups))
    seconds = cpu_s(lambda: learner.update(batch, Objective(loss=Clip())))
    num_parameters = sum(weight.numel() for weight in model.parameters())
    return seconds * sum(tokens) / batch.num_tokens, len(batch.sequences), num_parameters


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=1024)
    parser.add_argument(
        "--turns",
        type=int,
        nargs=3,
        default=[25, 50, 100],
        help="numbers of turns; the middle one is compared with the update",
    )
    parser.add_argument("--tokens-per-turn", type=int, default=4, help="action tokens of a turn")
    parser.add_argument(
        "--part", type=int, default=8_000, help="number of tokens on which the update is measured"
    )
    parser.add_argument("--only", default="", help="chains whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in CHAINS if options.only in name}
    middle, whole = options.turns[1], math.nan
    for num_turns in options.turns:
        played = play(options.episodes, num_turns, options.tokens_per_turn)
        measured = measure(played)
        # A filter drops groups without contrast.
        least = 0.8 * sum(one.trajectory.num_tokens for one in measured.values())
        for name, taken in seconds.items():
            assert CHAINS[name].run(played, measured) > least
            taken.append(cpu_s(partial(CHAINS[name].run, played, measured)))
        if num_turns == middle:
            whole, num_measured, num_parameters = update_s(played, options.part)
            print(
                f"{options.episodes:,} episodes of {middle} turns and "
                f"{middle * options.tokens_per_turn:,} action tokens: an update of "
                f"{num_parameters / 1e6:.1f}M parameters takes {whole:.0f} CPU s "
                f"({num_measured} episodes, scaled)",
                flush=True,
            )
    table = Table(title=f"from ledger to advantages, {options.episodes:,} episodes")
    table.add_column("chain")
    for num_turns in options.turns:
        table.add_column(f"{num_turns} turns", justify="right")
    table.add_column(f"of the update at {middle}", justify="right")
    table.add_column(f"{options.turns[2]} to {middle}", justify="right")
    for name, taken in seconds.items():
        table.add_row(
            name, *(f"{one:.2f} s" for one in taken), f"{taken[1] / whole:.3%}", f"{taken[2] / taken[1]:.2f}x"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
