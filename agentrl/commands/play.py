"""``agentrl play``: a person is the policy, in the same loop as every other."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from agentrl.commands.places import place, sandbox
from agentrl.commands.reporter import ConsoleReporter
from agentrl.commands.tables import Table, show
from agentrl.env import STANDARD_SIGNALS, EnvSpec
from agentrl.errors import ConfigError, EnvError
from agentrl.hosts import open_host
from agentrl.plugins import sandboxes_for
from agentrl.policy import ExpertPolicy
from agentrl.rewards.compose import Sum
from agentrl.rewards.outcome import EnvReward, Format, Outcome, Process
from agentrl.rollout import Limits, play
from agentrl.sandbox import SandboxProvider
from agentrl.types import Action, End, Observation, Task, Trajectory, Turn

HELP = "type an action; ? lists the admissible ones, ! shows what an expert would do, q quits"
_A_DAY_S = 86_400.0


def run(
    target: str, options: Sequence[str], *, split: str, index: int, task: str | None, given: str | None = None
) -> None:
    """Play one episode and print what it measured and would be paid."""
    spec, provider = place(target, options).env, sandbox(given) if given else None
    with ConsoleReporter() as reporter:
        spec.prepare(reporter.progress)
    chosen = choose(spec, split, index, task)
    print(f"{chosen.id}, at most {spec.max_turns} turns; {HELP}\n")
    try:
        trajectory = asyncio.run(episode(spec, chosen, provider or sandboxes_for((chosen,))))
    except _Quit:
        print("\nquit")
        return
    if trajectory.end is End.FAILED:
        raise EnvError(f"the episode broke: {trajectory.error}")
    if trajectory.turns:
        _tell(trajectory.turns[-1])
    if trajectory.final is not None:
        _print(trajectory.final)
    print(
        f"{trajectory.end.value} after {len(trajectory.turns)} turns: {'solved' if trajectory.success else 'not solved'}\n"
    )
    show(ledger_table(spec, trajectory))


def choose(spec: EnvSpec, split: str, index: int, task: str | None) -> Task:
    """Return the task of an id, or of a place in a split.

    Raises:
        ConfigError: there is none.
    """
    if task is None:
        tasks = spec.tasks(split)
        if not 0 <= index < len(tasks):
            raise ConfigError(
                f"split {split!r} has {len(tasks)} tasks, so --index goes from 0 to {len(tasks) - 1}; found {index}"
            )
        return tasks[index]
    for name in spec.splits:
        for found in spec.tasks(name):
            if found.id == task:
                return found
    raise ConfigError(
        f"no task of {', '.join(spec.splits)} has the id {task!r}; the first of {split!r} is {spec.tasks(split)[0].id!r}"
    )


async def episode(spec: EnvSpec, task: Task, sandboxes: SandboxProvider | None = None) -> Trajectory:
    """Play ``task`` with the person at the terminal; nobody is hurried."""
    limits = Limits(max_turns=spec.max_turns, act_deadline_s=_A_DAY_S)
    async with open_host(spec, num_workers=1, deadline_s=limits.env_deadline_s, sandboxes=sandboxes) as host:
        return await play(task, 0, policy=Person(), host=host, seed=0, limits=limits)


class _Quit(Exception):
    """The person wants no more."""


@dataclass(frozen=True, slots=True)
class Person:
    """A policy that asks on the terminal. It blocks the loop while it waits: there is only this one episode."""

    async def act(self, turns: Sequence[Turn], observation: Observation, *, seed: int) -> Action:
        """Show what came back and the observation, and read an action; ends the episode on ``q`` and at the end of the input."""
        if turns:
            _tell(turns[-1])
        _print(observation)
        while True:
            text = _read()
            if text == "?":
                print(
                    "  " + ("\n  ".join(observation.actions) or "the environment lists no admissible actions")
                )
            elif text == "!":
                print("  " + await _advice(turns, observation, seed))
            elif text is None or text == "q":
                raise _Quit
            elif text:
                return Action(text)


async def _advice(turns: Sequence[Turn], observation: Observation, seed: int) -> str:
    """Return what the plan says now; plans of earlier observations do not hold once a person went another way."""
    return (
        (await ExpertPolicy().act((), observation, seed=seed)).text
        if observation.plan
        else "no plan is known from here"
    )


def _read() -> str | None:
    """Read a line; ``None`` at the end of the input. An interrupt ends the wait at once, which asyncio's own handler would not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        line = input("> ")
    except EOFError:
        return None
    finally:
        signal.signal(signal.SIGINT, before)
    if not sys.stdin.isatty():
        print(line)  # a terminal has shown it already
    return line.strip()


def _print(observation: Observation) -> None:
    for message in observation.messages:
        print(f"{message.content}" + (f"  [{len(message.images)} images]" if message.images else ""))


def _tell(turn: Turn) -> None:
    """Show the signals of a turn that are not 0, and a refusal."""
    shown = [f"{name} {value:g}" for name, value in turn.info.items() if value and name != "valid"]
    refused = ["refused"] if turn.info.get("valid", 1.0) <= 0 else []
    if turn.reward:
        shown.insert(0, f"reward {turn.reward:g}")
    if shown or refused:
        print(f"  [{', '.join(refused + shown)}]")


def ledger_table(spec: EnvSpec, trajectory: Trajectory) -> Table:
    """Return what each turn would be paid by the common rewards, one column per component, and the sums."""
    extra = sorted(set(spec.signals) - set(STANDARD_SIGNALS))
    reward = Sum(
        (
            EnvReward(),
            Outcome(),
            Format(),
            *(Process(signal) for signal in extra if signal not in ("env", "outcome", "format")),
        )
    )
    ledger = reward(trajectory)
    names = ["env", "outcome", "format", *(name for name in extra if name in ledger)]
    rows = [
        (str(index + 1), turn.action.text, *(f"{ledger[name][index]:g}" for name in names))
        for index, turn in enumerate(trajectory.turns)
    ]
    total = ("", "sum", *(f"{float(ledger[name].sum()):g}" for name in names))
    notes = (
        "env: the environment's own reward; outcome and format: as rewards.outcome pays them; the rest: Process of a signal",
    )
    return Table("ledger", ("turn", "action", *names), (*rows, total), notes, left=(0, 1))
