"""The host for environments that never block: their episodes run on the event loop of this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from agentrl.env import Env, EnvSpec, open_episode
from agentrl.errors import EnvError, SharedBroken, boundary
from agentrl.sandbox import Sandboxes, SandboxProvider
from agentrl.types import Observation, Step, Task

log = logging.getLogger(__name__)


class InProcess:
    """Plays episodes on the running event loop."""

    def __init__(self, spec: EnvSpec, deadline_s: float, sandboxes: SandboxProvider | None = None) -> None:
        self._spec, self._deadline_s, self._provider = spec, deadline_s, sandboxes
        self._sandboxes: Sandboxes | None = None
        self._service = AsyncExitStack()
        self._lock = asyncio.Lock()
        self._shared: _SharedResource | None = None

    async def __aenter__(self) -> InProcess:
        async with AsyncExitStack() as stack:
            if self._provider is not None:
                self._sandboxes = await stack.enter_async_context(self._provider.serve())
            await self._lend()
            self._service = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        async with self._service:
            if self._shared is not None:
                await self._shared.close(self._deadline_s)

    def metrics(self) -> Mapping[str, float]:
        """Return the sandbox provider's metrics, prefixed with ``sandbox/``; empty without a provider."""
        return (
            {}
            if self._sandboxes is None
            else {f"sandbox/{name}": value for name, value in self._sandboxes.metrics().items()}
        )

    @asynccontextmanager
    async def open(self, task: Task, *, alone: bool = False) -> AsyncIterator[Env]:
        """Open one episode of ``task``. Opening and closing may each take at most ``deadline_s``.

        With ``alone`` the episode gets its own instance of the shared resource, which no other episode uses.
        """
        async with self._borrow(alone) as shared:
            limit = asyncio.timeout(self._deadline_s)
            try:
                async with limit, open_episode(self._spec, task, self._sandboxes, shared.value) as env:
                    limit.reschedule(None)
                    try:
                        yield _GuardedEnv(env, task.id, shared)
                    finally:
                        limit.reschedule(asyncio.get_running_loop().time() + self._deadline_s)
            except SharedBroken:
                shared.broken = True
                raise
            except TimeoutError as late:
                if not limit.expired():
                    raise
                raise EnvError(
                    f"opening or closing {task.id!r} took longer than {self._deadline_s:g} s"
                ) from late

    @asynccontextmanager
    async def _borrow(self, alone: bool) -> AsyncIterator[_SharedResource]:
        if not alone:
            yield await self._lend()
            return
        shared = _SharedResource()
        await shared.open(self._spec, self._deadline_s)
        try:
            yield shared
        finally:
            await shared.close(self._deadline_s)

    async def _lend(self) -> _SharedResource:
        """Return the resource that episodes share; open one if there is none yet or the last one broke."""
        async with self._lock:
            if self._shared is not None and self._shared.broken:
                await self._shared.close(self._deadline_s)
                self._shared = None
            if self._shared is None:
                self._shared = _SharedResource()
                await self._shared.open(self._spec, self._deadline_s)
            return self._shared


class _SharedResource:
    """The value of ``EnvSpec.shared``, held open until it breaks or is closed.

    One asyncio task of its own both enters and leaves the context of ``EnvSpec.shared``, as authors of
    environments may expect.
    """

    def __init__(self) -> None:
        self.value: object = None
        self.broken = True
        self._leave = asyncio.Event()
        self._holder: asyncio.Task[None] | None = None

    async def open(self, spec: EnvSpec, deadline_s: float) -> None:
        """Enter the context of ``spec.shared()``; an error that is raised there is raised here."""
        ready = asyncio.Event()
        self._holder = asyncio.create_task(self._hold(spec, ready))
        waiting = asyncio.create_task(ready.wait())
        try:
            await asyncio.wait(
                {waiting, self._holder}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            waiting.cancel()
            if not ready.is_set():
                self._holder.cancel()
        if self._holder.done():
            await self._holder
        if not ready.is_set():
            raise EnvError(f"the environment's shared resource did not open within {deadline_s:g} s")
        self.broken = False

    async def close(self, deadline_s: float) -> None:
        """Leave the context of the resource; an error is only logged: the episodes that used it are over."""
        self._leave.set()
        if self._holder is None:
            return
        _, late = await asyncio.wait({self._holder}, timeout=deadline_s)
        if late:
            self._holder.cancel()
            log.warning("the environment's shared resource did not close within %g s", deadline_s)
        elif not self._holder.cancelled() and (problem := self._holder.exception()) is not None:
            log.warning("closing the environment's shared resource: %s", problem)

    async def _hold(self, spec: EnvSpec, ready: asyncio.Event) -> None:
        with boundary(EnvError, "the environment's shared resource"):
            async with spec.shared() as self.value:
                ready.set()
                await self._leave.wait()


class _GuardedEnv:
    """An environment whose errors are all raised as ``EnvError``."""

    __slots__ = ("_env", "_shared", "_task_id")

    def __init__(self, env: Env, task_id: str, shared: _SharedResource) -> None:
        self._env, self._task_id, self._shared = env, task_id, shared

    async def reset(self) -> Observation:
        with boundary(EnvError, f"reset of {self._task_id!r}"):
            return await self._env.reset()

    async def step(self, action: str) -> Step:
        with boundary(EnvError, f"step of {self._task_id!r}"):
            if self._shared.broken:
                raise EnvError(
                    f"step of {self._task_id!r}: the environment's shared resource broke in another episode"
                )
            return await self._env.step(action)
