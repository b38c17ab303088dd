"""``agentrl play``: a person is the policy, in the same loop as every other policy."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from agentrl.commands.reporter import ConsoleReporter
from agentrl.commands.tables import Table, show
from agentrl.commands.targets import find_target, sandbox
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
    target: str,
    options: Sequence[str],
    *,
    split: str,
    index: int,
    task: str | None,
    sandbox_text: str | None = None,
) -> None:
    """Let a person play one episode; print its signals and the rewards that its turns would get."""
    spec = find_target(target, options).env
    provider = sandbox(sandbox_text) if sandbox_text else None
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
        raise EnvError(f"the episode failed: {trajectory.error}")
    if trajectory.turns:
        _show_result(trajectory.turns[-1])
    if trajectory.final is not None:
        _show_observation(trajectory.final)
    outcome = "solved" if trajectory.success else "not solved"
    print(f"{trajectory.end.value} after {len(trajectory.turns)} turns: {outcome}\n")
    show(ledger_table(spec, trajectory))


def choose(spec: EnvSpec, split: str, index: int, task: str | None) -> Task:
    """Return the task with the id ``task``, or, if it is ``None``, the task at ``index`` of ``split``.

    Raises:
        ConfigError: there is no such task.
    """
    if task is None:
        tasks = spec.tasks(split)
        if not 0 <= index < len(tasks):
            raise ConfigError(
                f"split {split!r} has {len(tasks)} tasks, so --index must be from 0 to {len(tasks) - 1}; "
                f"found {index}"
            )
        return tasks[index]
    for name in spec.splits:
        for found in spec.tasks(name):
            if found.id == task:
                return found
    raise ConfigError(
        f"no task of {', '.join(spec.splits)} has the id {task!r}; "
        f"the first task of {split!r} is {spec.tasks(split)[0].id!r}"
    )


async def episode(spec: EnvSpec, task: Task, sandboxes: SandboxProvider | None = None) -> Trajectory:
    """Play ``task`` with the person at the terminal, who has practically unlimited time for each action."""
    limits = Limits(max_turns=spec.max_turns, act_deadline_s=_A_DAY_S)
    async with open_host(spec, num_workers=1, deadline_s=limits.env_deadline_s, sandboxes=sandboxes) as host:
        return await play(task, 0, policy=Person(), host=host, seed=0, limits=limits)


class _Quit(Exception):
    """Raised when the person ends the episode early."""


@dataclass(frozen=True, slots=True)
class Person:
    """A policy that reads its actions from the terminal.

    It blocks the event loop while it waits, which is harmless because no other episode is running.
    """

    async def act(self, turns: Sequence[Turn], observation: Observation, *, seed: int) -> Action:
        """Show the result of the last turn and the observation, then read an action.

        Raise ``_Quit`` if the person types ``q`` or closes the input.
        """
        if turns:
            _show_result(turns[-1])
        _show_observation(observation)
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
    """Return the expert's next action, taken from the plan of ``observation`` alone.

    The plans of earlier observations are not used: they are invalid once the person has deviated from them.
    """
    return (
        (await ExpertPolicy().act((), observation, seed=seed)).text
        if observation.plan
        else "no plan is known from here"
    )


def _read() -> str | None:
    """Return the next line of the input, or ``None`` at its end.

    During the wait, Python's default handler of interrupts replaces that of asyncio, so that Ctrl-C ends the
    wait at once.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        line = input("> ")
    except EOFError:
        return None
    finally:
        signal.signal(signal.SIGINT, before)
    if not sys.stdin.isatty():
        print(line)  # a terminal has echoed it already
    return line.strip()


def _show_observation(observation: Observation) -> None:
    for message in observation.messages:
        print(f"{message.content}" + (f"  [{len(message.images)} images]" if message.images else ""))


def _show_result(turn: Turn) -> None:
    """Print a turn's reward and signals, except those that are 0, and whether its action was refused."""
    shown = [f"{name} {value:g}" for name, value in turn.info.items() if value and name != "valid"]
    refused = ["refused"] if turn.info.get("valid", 1.0) <= 0 else []
    if turn.reward:
        shown.insert(0, f"reward {turn.reward:g}")
    if shown or refused:
        print(f"  [{', '.join(refused + shown)}]")


def ledger_table(spec: EnvSpec, trajectory: Trajectory) -> Table:
    """Return a table of what the common reward functions give each turn: a column per component, and sums."""
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
        "env: the environment's own reward; outcome and format: as rewards.outcome pays them; "
        "the rest: Process of a signal",
    )
    return Table("ledger", ("turn", "action", *names), (*rows, total), notes, left=(0, 1))
