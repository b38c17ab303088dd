"""Clauses on the episodes of an environment: what they report, that they repeat, what they leave behind."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from agentrl.env import STANDARD_SIGNALS, EnvSpec
from agentrl.errors import AgentRLError, EnvError
from agentrl.hosts.in_process import InProcess
from agentrl.hosts.workers import Workers
from agentrl.policy import ExpertPolicy, Policy, RandomPolicy, ScriptedPolicy
from agentrl.rollout import Host, Limits, play
from agentrl.sandbox import SandboxProvider
from agentrl.testing.contract import Violation
from agentrl.testing.leftovers import OpenResources, left_over
from agentrl.types import Action, End, Observation, Task, Trajectory, Turn

ROLES = ("system", "user", "assistant", "tool")
STRANGE = (
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
    "look " * 20_000,
)
"""Odd actions that a policy may produce."""
AT_ONCE = 4
"""Number of attacks that are played concurrently; each may need a sandbox, and time."""


class EpisodeChecks:
    """Plays episodes and collects the violated clauses in ``found``."""

    def __init__(
        self, spec: EnvSpec, tasks: Sequence[Task], deadline_s: float, sandboxes: SandboxProvider | None
    ) -> None:
        self.spec, self.tasks, self.deadline_s, self.sandboxes = spec, tasks, deadline_s, sandboxes
        self.limits = Limits(max_turns=spec.max_turns, env_deadline_s=deadline_s)
        self.found: list[Violation] = []

    async def run(self) -> list[Violation]:
        """Check everything, in this process and then in a worker.

        Raises:
            SandboxError: the sandbox provider could not start, which is no fault of the environment.
        """
        try:
            async with self.host() as host:
                # a first episode, because what is loaded on first use is no leak
                await self.record(host, self.tasks[0], ScriptedPolicy(("",)))
            before = OpenResources.now()
            async with self.host() as host:
                records = [await self.task(host, task) for task in self.tasks]
        except EnvError as problem:  # an error in an episode is in its trajectory, so the host did not open
            self.report("shared", str(problem))
            return self.found
        if any(clause == "opens" for clause, _ in self.found):
            return self.found
        if left := await left_over(before):
            self.report("leaves nothing", f"after every episode was closed, these are left: {left}")
        await self.in_a_worker(records[0])
        return self.found

    def host(self) -> InProcess:
        """Return a host for the episodes, not opened yet."""
        return InProcess(self.spec, self.deadline_s, self.sandboxes)

    def report(self, clause: str, found: str) -> None:
        """Add a violated clause."""
        self.found.append((clause, found))

    async def record(self, host: Host, task: Task, policy: Policy) -> Trajectory:
        """Play one episode."""
        return await play(task, 0, policy=policy, host=host, seed=0, limits=self.limits)

    async def task(self, host: Host, task: Task) -> Trajectory:
        """Check one task; return an episode of it for later comparison."""
        idle = await self.record(host, task, ScriptedPolicy(("",)))
        if idle.final is None:
            self.report("opens", f"{task.id}: {idle.error}")
            return idle
        self.episode("doing nothing", idle)
        if idle.success or (idle.turns and idle.turns[-1].info.get("success", 0.0) != 0.0):
            self.report("doing nothing", f"{task.id}: playing empty actions succeeds")
        played = 0
        while played < len(STRANGE):  # if they end the episode, the next one continues with the rest
            odd = await self.record(host, task, ScriptedPolicy(STRANGE[played:]))
            self.episode(f"strange actions from {STRANGE[played][:20]!r} on", odd)
            played += max(len(odd.turns), 1)
        example = idle
        first = idle.turns[0].observation if idle.turns else idle.final
        if first.actions:
            example = await self.record(host, task, RandomPolicy())
            self.episode("random admissible play", example)
            if refused := [turn.action.text for turn in example.turns if turn.info.get("valid") == 0.0]:
                self.report(
                    "admissible actions",
                    f"{task.id}: {refused[0]!r} was listed, but refused when it was played",
                )
        if first.plan:
            example = await self.record(host, task, ExpertPolicy())
            self.episode("the plan", example)
            if not example.success:
                ended = f"ended as {example.end} after {len(example.turns)} turns {example.error}"
                self.report("the plan succeeds", f"{task.id}: following the plan did not succeed: {ended}")
        await self.attack(host, task)
        await self.repeat(host, example)
        return example

    async def attack(self, host: Host, task: Task) -> None:
        """Play the attacks that the environment lists: ways to succeed without solving the task."""
        places = asyncio.Semaphore(AT_ONCE)

        async def hack(actions: Sequence[str]) -> Trajectory:
            async with places:
                return await self.record(host, task, ScriptedPolicy(tuple(actions)))

        attacks = self.spec.attacks(task)
        for name, hacked in zip(attacks, await asyncio.gather(*map(hack, attacks.values())), strict=True):
            self.episode(f"the attack {name!r}", hacked)
            if hacked.success:
                self.report("attacks fail", f"{task.id}: {name!r} succeeds after {len(hacked.turns)} turns")

    def episode(self, what: str, trajectory: Trajectory) -> None:
        """Check the clauses that hold for every episode."""
        name = f"{trajectory.task.id}, {what}"
        # an EngineError is the policy's failure, not the environment's
        if trajectory.end is End.FAILED and not trajectory.error.startswith("EngineError"):
            self.report("never raises", f"{name}: {trajectory.error}")
        for observation in (*(turn.observation for turn in trajectory.turns), trajectory.final):
            if observation is not None and (problem := _malformed(observation)):
                self.report("observations", f"{name}: {problem}")
        for index, turn in enumerate(trajectory.turns):
            if missing := sorted(set(STANDARD_SIGNALS) - set(turn.info)):
                self.report("standard signals", f"{name}: turn {index} does not report {', '.join(missing)}")
            if undeclared := sorted(set(turn.info) - set(self.spec.signals)):
                self.report(
                    "declared signals",
                    f"{name}: turn {index} reports {', '.join(undeclared)}, which "
                    f"{type(self.spec).__name__} does not declare",
                )
            for key, value in [*turn.info.items(), ("reward", turn.reward)]:
                if not isinstance(value, float | int) or not math.isfinite(value):
                    self.report("finite numbers", f"{name}: {key} is {value!r} on turn {index}")
        if any(turn.info.get("success", 0.0) > 0 for turn in trajectory.turns[:-1]):
            self.report("success ends", f"{name}: success was reported before the last turn")
        if trajectory.success and trajectory.end is End.FAILED:
            self.report("success ends", f"{name}: the episode continued after success was reported")

    async def repeat(self, host: Host, example: Trajectory) -> None:
        """Play the actions of ``example`` again, alone and then beside an episode of another task."""
        actions = tuple(turn.action.text for turn in example.turns)
        if not actions or example.end is End.FAILED:
            return
        again = await self.record(host, example.task, ScriptedPolicy(actions))
        if difference := _difference(example, again):
            self.report("same actions, same trajectory", f"{example.task.id}: played twice, {difference}")
        other = next((task for task in self.tasks if task.id != example.task.id), example.task)
        policy = _Yielding(actions)
        one, _, two = await asyncio.gather(
            *[self.record(host, task, policy) for task in (example.task, other, example.task)]
        )
        for beside in (one, two):
            if difference := _difference(example, beside):
                self.report(
                    "episodes do not see each other",
                    f"{example.task.id}: played concurrently with another episode, {difference}",
                )

    async def in_a_worker(self, example: Trajectory) -> None:
        """Play the actions of ``example`` in a worker process, and compare the trajectories."""
        actions = tuple(turn.action.text for turn in example.turns)
        try:
            async with Workers(self.spec, 1, self.deadline_s, self.sandboxes) as host:
                there = await self.record(host, example.task, ScriptedPolicy(actions or ("",)))
        except AgentRLError as problem:
            self.report("runs in a worker", str(problem))
            return
        if example.end is not End.FAILED and (difference := _difference(example, there)):
            self.report("runs in a worker", f"{example.task.id}: {difference}")


class _Yielding(ScriptedPolicy):
    """A script that lets the other episodes run before each action."""

    async def act(self, turns: Sequence[Turn], observation: Observation, *, seed: int) -> Action:
        await asyncio.sleep(0)
        return await super().act(turns, observation, seed=seed)


def _malformed(observation: Observation) -> str:
    """Describe what is wrong with an observation; empty if nothing is."""
    if not isinstance(observation, Observation):
        return f"must be an Observation, found {type(observation).__name__}"
    if not observation.messages:
        return "an observation has no messages"
    for message in observation.messages:
        if message.role not in ROLES:
            return f"{message.role!r} is not a role; the roles are {', '.join(ROLES)}"
        if not isinstance(message.content, str) or not (message.content.strip() or message.images):
            return f"a message must hold text or images, found {message.content!r}"
    if len(set(observation.actions)) < len(observation.actions):
        return f"an action is listed twice: {observation.actions}"
    return ""


def _difference(one: Trajectory, two: Trajectory) -> str:
    """Describe the first difference of two trajectories; empty if there is none."""
    if two.end is End.FAILED:
        return f"it failed: {two.error}"
    for index, (mine, theirs) in enumerate(zip(one.turns, two.turns, strict=False)):
        for name in ("observation", "reward", "info"):
            if getattr(mine, name) != getattr(theirs, name):
                return f"turn {index} has {name} {getattr(theirs, name)!r} instead of {getattr(mine, name)!r}"
    if (len(one.turns), one.end) != (len(two.turns), two.end):
        return (
            f"it ended as {two.end} after {len(two.turns)} turns instead of {one.end} after {len(one.turns)}"
        )
    return "" if one.final == two.final else f"the last observation is {two.final!r} instead of {one.final!r}"
