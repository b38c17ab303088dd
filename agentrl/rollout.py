"""The loop where policy meets environment, and the playing of many episodes at once.

``play`` is one episode: observe, act, step, until something ends it. It decides nothing else: what a turn is worth, and what is
trained on, comes later. ``play_all`` plays the draws of a sampler side by side and plays again what failed.

Episodes of one call share nothing but the policy and the host, and every seed is derived from (run seed, task, sample, turn). So the
trajectories do not depend on how many are played at once, in what order they finish, or how often a worker died on the way.
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
"""Episodes that play their last attempt, alone, at once."""


class Host(Protocol):
    """Opens episodes: in this process, or in worker processes.

    Whatever goes wrong inside an environment comes out as ``EnvError``, and leaving the context never waits without a deadline.
    """

    def open(self, task: Task, *, alone: bool = False) -> AbstractAsyncContextManager[Env]:
        """Open one episode of ``task``; ``alone``: where no other episode can break it, which is dear."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Return what is known of the sandboxes of this process, by the names of metrics."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on playing. Every wait has a deadline; what passes it fails its episode, and the episode is played again."""

    max_turns: int = 0
    """Turns after which an episode is truncated, whatever the environment says; 0: as many as ``within`` is told."""
    concurrency: int = 64
    """Episodes open at once."""
    env_deadline_s: float = 120.0
    """Longest wait for one call of an environment: open, reset or step."""
    act_deadline_s: float = 600.0
    """Longest wait for one action."""
    max_attempts: int = 3
    """Times an episode is started before it is given up; the last time alone, so that none is lost to what others broke."""

    def within(self, max_turns: int) -> Limits:
        """Return these limits with ``EnvSpec.max_turns`` where they name none of their own: environments leave it to who plays them.

        >>> Limits().within(20).max_turns, Limits(max_turns=5).within(20).max_turns
        (20, 5)
        """
        return replace(self, max_turns=self.max_turns or max_turns)


@dataclass(slots=True)
class Played:
    """What playing brought: groups in the order of the draws, without what failed; and the failed attempts, for the record."""

    groups: list[Group] = field(default_factory=list)
    failures: list[Trajectory] = field(default_factory=list)


async def play(
    task: Task, sample: int, *, policy: Policy, host: Host, seed: int, limits: Limits, alone: bool = False
) -> Trajectory:
    """Play one episode to its end and return its record.

    Never raises for an episode that breaks: that is a trajectory whose ``end`` is ``FAILED``, with the reason in ``error``.

    Raises:
        TokenDrift: the policy's stored tokens and its context disagree; training on them would be silently wrong.
    """
    turns: list[Turn] = []
    observation: Observation | None = None
    try:
        async with AsyncExitStack() as stack, Watch() as watch:
            watch.expect(limits.env_deadline_s, EnvError, f"opening {task.id}")
            env = await stack.enter_async_context(host.open(task, alone=True) if alone else host.open(task))
            watch.expect(limits.env_deadline_s, EnvError, f"reset of {task.id}")
            observation = await env.reset()
            while True:
                started = time.monotonic()
                watch.expect(
                    limits.act_deadline_s, EngineError, f"the policy, on turn {len(turns)} of {task.id},"
                )
                action = await policy.act(
                    turns, observation, seed=seed_of(seed, task.id, sample, "act", len(turns))
                )
                watch.expect(limits.env_deadline_s, EnvError, f"step of {task.id}")
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
        return Trajectory(
            task, tuple(turns), End.FAILED, sample, f"{type(problem).__name__}: {problem}", observation
        )


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

    ``on_end`` is called with each finished trajectory, failed ones included, in the order in which they end. A group that lost an
    episode for good is returned without it, an empty group not at all.
    """
    places, cells = asyncio.Semaphore(limits.concurrency), asyncio.Semaphore(MAX_ALONE)
    played = Played()

    async def episode(task: Task, sample: int, policy: Policy, host: Host) -> Trajectory | None:
        async with places:
            for attempt in range(limits.max_attempts):
                alone = 0 < attempt == limits.max_attempts - 1
                async with cells if alone else nullcontext():
                    trajectory = await play(
                        task, sample, policy=policy, host=host, seed=seed, limits=limits, alone=alone
                    )
                on_end(trajectory)
                if trajectory.end is not End.FAILED:
                    return trajectory
                played.failures.append(trajectory)
        return None

    def started(draw: Draw) -> Policy:
        return Started(policy, draw.prefix) if draw.prefix else policy

    async with asyncio.TaskGroup() as tasks:
        pending = [
            [
                tasks.create_task(
                    episode(
                        draw.task, draw.first_sample + index, started(draw), Telling.this(host, draw.preamble)
                    )
                )
                for index in range(draw.num_episodes)
            ]
            for draw in draws
        ]
    for episodes in pending:
        group = tuple(
            trajectory for trajectory in (task.result() for task in episodes) if trajectory is not None
        )
        if group:
            played.groups.append(group)
    return played


@dataclass(frozen=True, slots=True)
class Started:
    """A policy whose first turns are given: they are replayed as text, without tokens, so they are context and nothing more."""

    policy: Policy
    prefix: tuple[str, ...]

    async def act(self, turns: Sequence[Turn], observation: Observation, *, seed: int) -> Action:
        """Return the next given action, then the policy's own."""
        if len(turns) < len(self.prefix):
            return Action(self.prefix[len(turns)])
        return await self.policy.act(turns, observation, seed=seed)


@dataclass(frozen=True, slots=True)
class Telling:
    """A host whose episodes begin with more than the environment says: ``tell`` makes a text of the task and its first observation.

    The text stands before the first observation's last message. It is observation like any other: in the record, and not learned from.
    """

    host: Host
    tell: Callable[[Task, Observation], str]

    @classmethod
    def this(cls, host: Host, text: str) -> Host:
        """Return a host that tells ``text``; with none, the host itself."""
        return cls(host, lambda task, observation: text) if text else host

    @asynccontextmanager
    async def open(self, task: Task, *, alone: bool = False) -> AsyncIterator[Env]:
        """Open an episode in which it is told."""
        async with self.host.open(task, alone=True) if alone else self.host.open(task) as env:
            yield _Told(env, task, self.tell)

    def metrics(self) -> Mapping[str, float]:
        """Return the host's."""
        return self.host.metrics()


@dataclass(frozen=True, slots=True)
class _Told:
    env: Env
    task: Task
    tell: Callable[[Task, Observation], str]

    async def reset(self) -> Observation:
        observation = await self.env.reset()
        text = self.tell(self.task, observation)
        *before, last = observation.messages or (Message("user", ""),)
        return replace(observation, messages=(*before, replace(last, content=text + last.content)))

    async def step(self, action: str) -> Step:
        return await self.env.step(action)


class Watch:
    """Bounds the waits of one task, one after another: ``expect`` ends the last wait and begins the next.

    A deadline that is met, as nearly all are, costs an assignment: the one timer is left where it is until it rings, and only then put off
    to the wait that is under way.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        self._wait: tuple[float, type[Exception], str] = (math.inf, TimeoutError, "")
        self._late: tuple[float, type[Exception], str] | None = None

    def expect(self, limit_s: float, error: type[Exception], what: str) -> None:
        """Bound what is awaited from here on by ``limit_s``; where that is passed, ``error`` is raised and says ``what`` did not answer."""
        self._wait, self._due = (limit_s, error, what), self._loop.time() + limit_s
        if self._timer is None or self._due < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(self._due, self._ring)

    def _ring(self) -> None:
        if self._loop.time() < self._due:
            self._timer = self._loop.call_at(self._due, self._ring)
        else:
            self._late = self._wait
            self._limit.reschedule(self._due)

    async def __aenter__(self) -> Watch:
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
    """Bound the block by ``limit_s``; where it is passed, raise ``error`` and say what did not answer."""
    async with Watch() as watch:
        watch.expect(limit_s, error, what)
        yield
