"""The loop where policy meets environment, and the playing of many episodes at once.

``play`` plays one episode: observe, act, step, until the environment or a limit ends it. It decides nothing
else: what a turn is worth, and what is trained on, is decided later. ``play_all`` plays the draws of a
sampler concurrently, and plays failed episodes again.

The episodes of one call share only the policy and the host, and every seed is derived from (run seed, task,
sample, turn). So the trajectories do not depend on how many episodes are played at once, in what order they
finish, or how many workers died meanwhile.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Protocol

from agentrl.env import Env
from agentrl.errors import ContextFull, EngineError, EnvError, SandboxError, TokenDrift
from agentrl.policy import Policy
from agentrl.samplers import Draw
from agentrl.types import Action, End, Group, Message, Observation, Step, Task, Trajectory, Turn, seed_of

MAX_ALONE = 4
"""Maximum number of episodes that play their last attempt at the same time, each in its own process."""


class Host(Protocol):
    """Opens episodes: in this process, or in worker processes.

    Every error inside an environment is raised as ``EnvError``. Opening and closing an episode have
    deadlines.
    """

    def open(self, task: Task, *, alone: bool = False) -> AbstractAsyncContextManager[Env]:
        """Open one episode of ``task``; with ``alone``, in a process of its own, which is expensive."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Return metrics of the sandboxes that the episodes opened, by name."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on playing. Every wait has a deadline; an episode that misses one fails, and is played again."""

    max_turns: int = 0
    """Number of turns after which an episode is truncated; 0 uses the environment's ``max_turns``."""
    concurrency: int = 64
    """Maximum number of episodes that are open at once."""
    env_deadline_s: float = 120.0
    """Maximum number of seconds for one call of an environment: open, reset or step."""
    act_deadline_s: float = 600.0
    """Maximum number of seconds for one action of the policy."""
    max_attempts: int = 3
    """Number of times that an episode is started before it is given up. The last attempt is played in a
    process of its own, where no other episode can make it fail."""

    def within(self, max_turns: int) -> Limits:
        """Return these limits, with an environment's ``max_turns`` if they do not set their own.

        >>> Limits().within(20).max_turns, Limits(max_turns=5).within(20).max_turns
        (20, 5)
        """
        return replace(self, max_turns=self.max_turns or max_turns)


@dataclass(slots=True)
class Played:
    """The result of playing: the groups in the order of the draws, and the failed attempts.

    The groups contain no failed episodes.
    """

    groups: list[Group] = field(default_factory=list)
    failures: list[Trajectory] = field(default_factory=list)


async def play(
    task: Task, sample: int, *, policy: Policy, host: Host, seed: int, limits: Limits, alone: bool = False
) -> Trajectory:
    """Play one episode to its end and return its record.

    An episode that breaks does not raise: its trajectory's ``end`` is ``FAILED``, and ``error`` holds the
    reason.

    Raises:
        TokenDrift: the policy's stored tokens and its context disagree; training on them would be silently
            wrong.
    """
    turns: list[Turn] = []
    observation: Observation | None = None
    try:
        async with AsyncExitStack() as stack, Deadlines() as deadlines:
            deadlines.expect(limits.env_deadline_s, EnvError, f"opening {task.id}")
            env = await stack.enter_async_context(host.open(task, alone=alone))
            deadlines.expect(limits.env_deadline_s, EnvError, f"reset of {task.id}")
            observation = await env.reset()
            while True:
                started = time.monotonic()
                what = f"the policy, on turn {len(turns)} of {task.id},"
                deadlines.expect(limits.act_deadline_s, EngineError, what)
                turn_seed = seed_of(seed, task.id, sample, "act", len(turns))
                action = await policy.act(turns, observation, seed=turn_seed)
                deadlines.expect(limits.env_deadline_s, EnvError, f"step of {task.id}")
                step = await env.step(action.text)
                turns.append(Turn(observation, action, step.reward, step.info, time.monotonic() - started))
                observation = step.observation
                if step.terminated:
                    return Trajectory(task, tuple(turns), End.TERMINATED, sample, final=observation)
                if step.truncated or len(turns) == limits.max_turns:
                    return Trajectory(task, tuple(turns), End.TRUNCATED, sample, final=observation)
    except TokenDrift:
        raise
    except ContextFull as problem:
        return Trajectory(task, tuple(turns), End.TRUNCATED, sample, str(problem), observation)
    except (EnvError, SandboxError, EngineError) as problem:
        error = f"{type(problem).__name__}: {problem}"
        return Trajectory(task, tuple(turns), End.FAILED, sample, error, observation)


async def play_all(
    draws: Sequence[Draw],
    *,
    policy: Policy,
    host: Host,
    seed: int,
    limits: Limits,
    on_end: Callable[[Trajectory], None] = lambda _: None,
) -> Played:
    """Play every episode of ``draws``, at most ``limits.concurrency`` at once; play failed ones again.

    ``on_end`` is called with each finished trajectory, also of failed attempts, in the order in which they
    end. An episode that failed in every attempt is missing from its group; a group without any episode is
    not returned.
    """
    places, places_alone = asyncio.Semaphore(limits.concurrency), asyncio.Semaphore(MAX_ALONE)
    played = Played()

    async def episode(draw: Draw, sample: int) -> Trajectory | None:
        acts = WithPrefix(policy, draw.prefix) if draw.prefix else policy
        opens = WithPreamble(host, lambda task, observation: draw.preamble) if draw.preamble else host
        async with places:
            for attempt in range(limits.max_attempts):
                alone = 0 < attempt == limits.max_attempts - 1
                async with places_alone if alone else nullcontext():
                    trajectory = await play(
                        draw.task, sample, policy=acts, host=opens, seed=seed, limits=limits, alone=alone
                    )
                on_end(trajectory)
                if trajectory.end is not End.FAILED:
                    return trajectory
                played.failures.append(trajectory)
        return None

    async with asyncio.TaskGroup() as tasks:
        pending = [
            [
                tasks.create_task(episode(draw, draw.first_sample + index))
                for index in range(draw.num_episodes)
            ]
            for draw in draws
        ]
    for episodes in pending:
        found = (task.result() for task in episodes)
        group = tuple(trajectory for trajectory in found if trajectory is not None)
        if group:
            played.groups.append(group)
    return played


@dataclass(frozen=True, slots=True)
class WithPrefix:
    """A policy whose first actions are given.

    They are replayed as text, without tokens: they are context, and nothing is learned from them.
    """

    policy: Policy
    prefix: tuple[str, ...]

    async def act(self, turns: Sequence[Turn], observation: Observation, *, seed: int) -> Action:
        """Return the next given action, and after those the policy's own."""
        if len(turns) < len(self.prefix):
            return Action(self.prefix[len(turns)])
        return await self.policy.act(turns, observation, seed=seed)


@dataclass(frozen=True, slots=True)
class WithPreamble:
    """A host that puts a text before the last message of each episode's first observation.

    ``preamble`` makes the text from the task and that observation. The text is part of the observation: it is
    in the record, and nothing is learned from it.
    """

    host: Host
    preamble: Callable[[Task, Observation], str]

    @asynccontextmanager
    async def open(self, task: Task, *, alone: bool = False) -> AsyncIterator[Env]:
        """Open an episode that begins with the preamble."""
        async with self.host.open(task, alone=alone) as env:
            yield _EnvWithPreamble(env, task, self.preamble)

    def metrics(self) -> Mapping[str, float]:
        """Return the host's metrics."""
        return self.host.metrics()


@dataclass(frozen=True, slots=True)
class _EnvWithPreamble:
    env: Env
    task: Task
    preamble: Callable[[Task, Observation], str]

    async def reset(self) -> Observation:
        observation = await self.env.reset()
        text = self.preamble(self.task, observation)
        *before, last = observation.messages or (Message("user", ""),)
        return replace(observation, messages=(*before, replace(last, content=text + last.content)))

    async def step(self, action: str) -> Step:
        return await self.env.step(action)


class Deadlines:
    """Bounds the waits of one task, one after another: ``expect`` ends the last wait and begins the next.

    Nearly all deadlines are met, and one that is met costs only an assignment: there is a single timer, and
    it is moved to the current wait only when it fires.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        self._wait: tuple[float, type[Exception], str] = (math.inf, TimeoutError, "")
        self._late: tuple[float, type[Exception], str] | None = None

    def expect(self, limit_s: float, error: type[Exception], what: str) -> None:
        """Bound everything awaited from now on by ``limit_s``.

        If a wait takes longer, ``error`` is raised with the message that ``what`` did not answer.
        """
        self._wait, self._due = (limit_s, error, what), self._loop.time() + limit_s
        if self._timer is None or self._due < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(self._due, self._fire)

    def _fire(self) -> None:
        if self._loop.time() < self._due:
            self._timer = self._loop.call_at(self._due, self._fire)
        else:
            self._late = self._wait
            self._limit.reschedule(self._due)

    async def __aenter__(self) -> Deadlines:
        await self._limit.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._limit.__aexit__(kind, problem, trace)
        except TimeoutError as late:
            problem = late
        if isinstance(problem, TimeoutError):
            limit_s, error, what = self._late or self._wait
            raise error(f"{what} did not answer within {limit_s:g} s") from problem


@asynccontextmanager
async def deadline(limit_s: float, error: type[Exception], what: str) -> AsyncIterator[None]:
    """Raise ``error`` with the message that ``what`` did not answer if the block takes over ``limit_s``."""
    async with Deadlines() as deadlines:
        deadlines.expect(limit_s, error, what)
        yield
