"""The conformance suite of environments: one function, one named message for each clause that is not kept.

The clauses are the contract of ``agentrl.env``, and what the rest of agentrl takes for granted: a spec is data that a worker can
import; splits are fixed and disjoint; every turn reports the declared signals; the same task and actions give the same trajectory,
whatever else is played; no action raises; an expert's plan succeeds, and doing nothing, or any attack that the environment knows of, does
not; closing leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import math
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from agentrl.env import STANDARD_SIGNALS, EnvSpec, panel_hash
from agentrl.errors import AgentRLError, ConfigError
from agentrl.hosts.in_process import InProcess
from agentrl.hosts.workers import Workers
from agentrl.policy import ExpertPolicy, Policy, RandomPolicy, ScriptedPolicy
from agentrl.rollout import Host, Limits, play
from agentrl.sandbox import SandboxProvider
from agentrl.types import Action, End, Observation, Task, Trajectory, Turn

ROLES = ("system", "user", "assistant", "tool")
STRANGE = (
    *(
        "",
        " ",
        "\n\n",
        "xyzzy plugh",
        "🦊 狐狸 \u202e",
        "\x00\x1b[2J",
        "<|endoftext|>",
        "-1",
        "9" * 400,
        '"; drop table--',
    ),
    "look " * 20_000,
)
"""Actions that somebody's policy will play one day."""
SETTLE_S = 2.0
"""Longest wait for what is closing in the background, such as a child that was told to end."""
AT_ONCE = 4
"""Attacks that are played side by side: each may need a sandbox, and time."""
PANELS = """
import json, pickle, sys
sys.path[:] = {path!r}
from agentrl.env import panel_hash
spec = pickle.loads({spec!r})
print()
print(json.dumps({{split: panel_hash(spec.tasks(split)) for split in spec.splits}}))
"""


class ContractViolation(AssertionError):
    """A contract is not kept; ``violations`` holds one line for each clause, ``clause: what was found``."""

    def __init__(self, violations: Sequence[str], contract: str = "environment") -> None:
        self.violations = tuple(violations)
        super().__init__(
            f"{len(self.violations)} clauses of the {contract} contract are not kept:\n"
            + "\n".join(self.violations)
        )


def check_env(
    spec: EnvSpec, *, num_tasks: int = 3, deadline_s: float = 60.0, sandboxes: SandboxProvider | None = None
) -> None:
    """Check an environment on the first ``num_tasks`` tasks of every split. Runs an event loop: not to be called inside one.

    Raises:
        ContractViolation: with every clause that is not kept; a clause is reported once, with the first place it was seen.
    """
    violations: dict[str, str] = {}
    for clause, found in _data(spec):
        violations.setdefault(clause, found)
    for clause, found in _panels(spec, elsewhere=not violations):
        violations.setdefault(clause, found)
    if not violations:  # what cannot be listed cannot be played
        tasks = [task for split in spec.splits for task in spec.tasks(split)[:num_tasks]]
        checks = _Play(spec, tasks, deadline_s, sandboxes)
        for clause, found in [*asyncio.run(checks.run()), *_gymnasium(spec, deadline_s, sandboxes)]:
            violations.setdefault(clause, found)
    if violations:
        raise ContractViolation([f"{clause}: {found}" for clause, found in violations.items()])


Found = tuple[str, str]
"""A clause, and how it is not kept."""


def _data(spec: EnvSpec) -> Iterator[Found]:
    """Clauses on the spec itself."""
    kind = type(spec)
    if not dataclasses.is_dataclass(spec) or not spec.__dataclass_params__.frozen:
        yield "frozen", f"{kind.__name__} must be a frozen dataclass"
    try:
        if pickle.loads(pickle.dumps(spec)) != spec:
            yield "picklable", "unpickling what was pickled gives another value"
    except (pickle.PicklingError, AttributeError, TypeError, ImportError) as problem:
        yield "picklable", f"{type(problem).__name__}: {problem}"
    if kind.__module__ == "__main__":
        yield (
            "importable",
            f"{kind.__name__} is defined in the program itself, where no worker can import it; move it to a module",
        )
    max_turns = getattr(spec, "max_turns", None)
    if not isinstance(max_turns, int) or max_turns < 1:
        yield "max_turns", f"must be a whole number of at least 1, found {max_turns!r}"
    for name in STANDARD_SIGNALS:
        if name not in spec.signals:
            yield "signals", f"the standard signal {name!r} is not declared; start from STANDARD_SIGNALS"
    for name, meaning in spec.signals.items():
        if not meaning.strip():
            yield "signals", f"signal {name!r} has no meaning written beside it"


def _panels(spec: EnvSpec, *, elsewhere: bool) -> Iterator[Found]:
    """Clauses on splits and tasks."""
    where: dict[str, str] = {}
    contents: dict[str, str] = {}
    hashes: dict[str, str] = {}
    if not spec.splits:
        yield "splits", "there are none"
    spec.prepare(lambda what, done, total: None)
    for split in spec.splits:
        tasks = spec.tasks(split)
        if not tasks:
            yield "tasks", f"split {split!r} is empty"
            continue
        if list(spec.tasks(split)) != list(tasks):
            yield "same tasks", f"split {split!r} lists other tasks, or another order, when asked again"
        for task in tasks:
            if (
                not task.id
                or where.setdefault(task.id, split) != split
                or len({task.id for task in tasks}) < len(tasks)
            ):
                yield "task ids", f"{task.id!r} of split {split!r} is empty or not unique"
                break
            try:
                content = json.dumps(task.data, sort_keys=True, allow_nan=False) + repr(task.sandbox)
            except (TypeError, ValueError) as problem:
                yield "task data", f"the data of {task.id!r} is not JSON: {problem}"
                break
            if contents.setdefault(content, split) != split:
                yield (
                    "disjoint splits",
                    f"{task.id!r} of split {split!r} has the same data as a task of split {contents[content]!r}",
                )
                break
        else:
            hashes[split] = panel_hash(tasks)
    if elsewhere:
        yield from _panels_elsewhere(spec, hashes)
    try:
        spec.tasks("no such split")
    except ConfigError:
        pass
    else:
        yield "unknown split", "tasks('no such split') must raise ConfigError"


def _panels_elsewhere(spec: EnvSpec, here: Mapping[str, str]) -> Iterator[Found]:
    """Whether another process, with another hash seed, lists the same panels."""
    code = PANELS.format(path=sys.path, spec=pickle.dumps(spec))
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    if ran.returncode != 0:
        yield (
            "importable",
            f"another process cannot list the tasks: {(ran.stderr.strip().splitlines() or ['it died'])[-1]}",
        )
        return
    there = json.loads(ran.stdout.splitlines()[-1])
    for split in here:
        if here[split] != there[split]:
            yield (
                "same tasks",
                f"split {split!r} lists other tasks in another process; is something ordered by hash, time or chance?",
            )


class _Play:
    """Clauses on episodes."""

    def __init__(
        self, spec: EnvSpec, tasks: Sequence[Task], deadline_s: float, sandboxes: SandboxProvider | None
    ) -> None:
        self.spec, self.tasks, self.deadline_s, self.sandboxes = spec, tasks, deadline_s, sandboxes
        self.limits = Limits(max_turns=spec.max_turns, env_deadline_s=deadline_s)
        self.found: list[Found] = []

    async def run(self) -> list[Found]:
        """Check everything, in this process and then in a worker."""
        async with self.host() as host:
            await self.record(
                host, self.tasks[0], ScriptedPolicy(("",))
            )  # what is loaded on first use is no leak
        before = _Held.now()
        async with self.host() as host:
            records = [await self.task(host, task) for task in self.tasks]
        if self.found and any(clause == "opens" for clause, _ in self.found):
            return self.found
        if left := await _left_over(before):
            self.say("leaves nothing", f"after every episode was closed there are {left}")
        await self.in_a_worker(records[0])
        return self.found

    @asynccontextmanager
    async def host(self) -> AsyncIterator[Host]:
        try:
            async with InProcess(self.spec, self.deadline_s, self.sandboxes) as host:
                yield host
        except AgentRLError as problem:
            self.say("shared", str(problem))

    def say(self, clause: str, found: str) -> None:
        self.found.append((clause, found))

    async def record(self, host: Host, task: Task, policy: Policy) -> Trajectory:
        return await play(task, 0, policy=policy, host=host, seed=0, limits=self.limits)

    async def task(self, host: Host, task: Task) -> Trajectory:
        """Check one task; returns an episode of it to compare with."""
        idle = await self.record(host, task, ScriptedPolicy(("",)))
        if idle.final is None:
            self.say("opens", f"{task.id}: {idle.error}")
            return idle
        self.episode("doing nothing", idle)
        if idle.success or (idle.turns and idle.turns[-1].info.get("success", 0.0) != 0.0):
            self.say("doing nothing", f"{task.id}: playing empty actions succeeds")
        played = 0
        while played < len(STRANGE):  # an episode that they end is followed by another
            odd = await self.record(host, task, ScriptedPolicy(STRANGE[played:]))
            self.episode(f"strange actions from {STRANGE[played][:20]!r} on", odd)
            played += max(len(odd.turns), 1)
        example = idle
        first = idle.turns[0].observation if idle.turns else idle.final
        if first.actions:
            example = await self.record(host, task, RandomPolicy())
            self.episode("random admissible play", example)
            if refused := [turn.action.text for turn in example.turns if turn.info.get("valid") == 0.0]:
                self.say(
                    "admissible actions",
                    f"{task.id}: {refused[0]!r} was listed, and refused when it was played",
                )
        if first.plan:
            example = await self.record(host, task, ExpertPolicy())
            self.episode("the plan", example)
            if not example.success:
                ended = f"ended as {example.end} after {len(example.turns)} turns {example.error}"
                self.say("the plan succeeds", f"{task.id}: following the plan did not: {ended}")
        await self.attack(host, task)
        await self.repeat(host, example)
        return example

    async def attack(self, host: Host, task: Task) -> None:
        """Play what would be paid without being earned."""
        places = asyncio.Semaphore(AT_ONCE)

        async def hack(actions: Sequence[str]) -> Trajectory:
            async with places:
                return await self.record(host, task, ScriptedPolicy(tuple(actions)))

        attacks = self.spec.attacks(task)
        for name, hacked in zip(attacks, await asyncio.gather(*map(hack, attacks.values())), strict=True):
            self.episode(f"the attack {name!r}", hacked)
            if hacked.success:
                self.say("attacks fail", f"{task.id}: {name!r} succeeds after {len(hacked.turns)} turns")

    def episode(self, what: str, trajectory: Trajectory) -> None:
        """Check what every episode must keep."""
        name = f"{trajectory.task.id}, {what}"
        if trajectory.end is End.FAILED and not trajectory.error.startswith(
            "EngineError"
        ):  # that is the policy's
            self.say("never raises", f"{name}: {trajectory.error}")
        for observation in (*(turn.observation for turn in trajectory.turns), trajectory.final):
            if observation is not None and (problem := _odd(observation)):
                self.say("observations", f"{name}: {problem}")
        for index, turn in enumerate(trajectory.turns):
            if missing := sorted(set(STANDARD_SIGNALS) - set(turn.info)):
                self.say("standard signals", f"{name}: turn {index} does not report {', '.join(missing)}")
            if undeclared := sorted(set(turn.info) - set(self.spec.signals)):
                self.say(
                    "declared signals",
                    f"{name}: turn {index} reports {', '.join(undeclared)}, which {type(self.spec).__name__} does not declare",
                )
            for key, value in [*turn.info.items(), ("reward", turn.reward)]:
                if not isinstance(value, float | int) or not math.isfinite(value):
                    self.say("finite numbers", f"{name}: {key} is {value!r} on turn {index}")
        if any(turn.info.get("success", 0.0) > 0 for turn in trajectory.turns[:-1]):
            self.say("success ends", f"{name}: success was reported before the last turn")
        if trajectory.success and trajectory.end is End.FAILED:
            self.say("success ends", f"{name}: the episode went on after success was reported")

    async def repeat(self, host: Host, example: Trajectory) -> None:
        """Play the same actions again: alone, and while an episode of another task is played."""
        actions = tuple(turn.action.text for turn in example.turns)
        if not actions or example.end is End.FAILED:
            return
        again = await self.record(host, example.task, ScriptedPolicy(actions))
        if difference := _difference(example, again):
            self.say("same actions, same trajectory", f"{example.task.id}: played twice, {difference}")
        other = next((task for task in self.tasks if task.id != example.task.id), example.task)
        policy = _Alternating(actions)
        one, _, two = await asyncio.gather(
            *[self.record(host, task, policy) for task in (example.task, other, example.task)]
        )
        for beside in (one, two):
            if difference := _difference(example, beside):
                self.say(
                    "episodes do not see each other",
                    f"{example.task.id}: played beside another episode, {difference}",
                )

    async def in_a_worker(self, example: Trajectory) -> None:
        """Play the same actions in a worker process."""
        actions = tuple(turn.action.text for turn in example.turns)
        try:
            async with Workers(self.spec, 1, self.deadline_s, self.sandboxes) as host:
                there = await self.record(host, example.task, ScriptedPolicy(actions or ("",)))
        except AgentRLError as problem:
            self.say("runs in a worker", str(problem))
            return
        if example.end is not End.FAILED and (difference := _difference(example, there)):
            self.say("runs in a worker", f"{example.task.id}: {difference}")


class _Alternating(ScriptedPolicy):
    """A script that lets every other episode go on before each action."""

    async def act(self, turns: Sequence[Turn], observation: Observation, *, seed: int) -> Action:
        await asyncio.sleep(0)
        return await super().act(turns, observation, seed=seed)


@dataclasses.dataclass(frozen=True, slots=True)
class _Held:
    """What this process holds open."""

    threads: frozenset[str]
    children: frozenset[str]
    num_files: int

    @classmethod
    def now(cls) -> _Held:
        threads = {
            f"{thread.name} ({thread.ident})"
            for thread in threading.enumerate()
            if not thread.name.startswith("asyncio_")
        }
        children = [file.read_text().split() for file in Path("/proc/self/task").glob("*/children")]
        return cls(
            frozenset(threads), frozenset(itertools.chain(*children)), len(list(Path("/dev/fd").iterdir()))
        )

    def exceeds(self, before: _Held) -> str:
        """Say what is held now and was not before."""
        return ", ".join(
            [f"thread {name}" for name in sorted(self.threads - before.threads)]
            + [f"process {pid}" for pid in sorted(self.children - before.children)]
            + [f"{self.num_files - before.num_files} open files"] * (self.num_files > before.num_files)
        )


async def _left_over(before: _Held) -> str:
    """Say what is still held, once what closes in the background had its time."""
    until = time.monotonic() + SETTLE_S
    while (left := _Held.now().exceeds(before)) and time.monotonic() < until:
        await asyncio.sleep(0.02)
    return left


def _gymnasium(spec: EnvSpec, deadline_s: float, sandboxes: SandboxProvider | None) -> Iterator[Found]:
    """Whether gymnasium's own checker is content; a single turn is too short for it."""
    import gymnasium.utils.env_checker  # here and not above, for every environment imports this module in its tests

    from agentrl.gym import TextEnv

    if spec.max_turns == 1:
        return
    env = TextEnv(spec, split=spec.splits[0], deadline_s=deadline_s, sandbox=sandboxes or "auto")
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            gymnasium.utils.env_checker.check_env(env, skip_render_check=True)
        for warning in warned:
            yield "gymnasium", str(warning.message)
    except (AssertionError, AgentRLError, gymnasium.error.Error) as problem:
        yield "gymnasium", str(problem)
    finally:
        env.close()


def _odd(observation: Observation) -> str:
    """Return what is wrong with an observation, if anything."""
    if not isinstance(observation, Observation):
        return f"must be an Observation, found {type(observation).__name__}"
    if not observation.messages:
        return "an observation has no messages"
    for message in observation.messages:
        if message.role not in ROLES:
            return f"{message.role!r} is no role; the roles are {', '.join(ROLES)}"
        if not isinstance(message.content, str) or not (message.content.strip() or message.images):
            return f"a message must hold text or images, found {message.content!r}"
    if len(set(observation.actions)) < len(observation.actions):
        return f"an action is listed twice: {observation.actions}"
    return ""


def _difference(one: Trajectory, two: Trajectory) -> str:
    """Say where two trajectories part, if they do."""
    if two.end is End.FAILED:
        return f"it failed: {two.error}"
    for index, (mine, theirs) in enumerate(zip(one.turns, two.turns, strict=False)):
        for name in ("observation", "reward", "info"):
            if getattr(mine, name) != getattr(theirs, name):
                return (
                    f"turn {index} has {name} {getattr(theirs, name)!r} in place of {getattr(mine, name)!r}"
                )
    if (len(one.turns), one.end) != (len(two.turns), two.end):
        return (
            f"it ended as {two.end} after {len(two.turns)} turns in place of {one.end} after {len(one.turns)}"
        )
    return (
        "" if one.final == two.final else f"the last observation is {two.final!r} in place of {one.final!r}"
    )
