"""The host for environments that never block: their episodes run on this event loop."""

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
    """Episodes on this event loop."""

    def __init__(self, spec: EnvSpec, deadline_s: float, sandboxes: SandboxProvider | None = None) -> None:
        self._spec, self._deadline_s, self._provider = spec, deadline_s, sandboxes
        self._sandboxes: Sandboxes | None = None
        self._service = AsyncExitStack()
        self._lock = asyncio.Lock()
        self._shared: _Shared | None = None

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
        """Return what the sandbox provider counted."""
        return (
            {}
            if self._sandboxes is None
            else {f"sandbox/{name}": value for name, value in self._sandboxes.metrics().items()}
        )

    @asynccontextmanager
    async def open(self, task: Task, *, alone: bool = False) -> AsyncIterator[Env]:
        """Open one episode of ``task``; opening and closing have a deadline each. ``alone``: with a shared resource of its own."""
        async with self._borrow(alone) as shared:
            limit = asyncio.timeout(self._deadline_s)
            try:
                async with limit, open_episode(self._spec, task, self._sandboxes, shared.value) as env:
                    limit.reschedule(None)
                    try:
                        yield _Guarded(env, task.id, shared)
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
    async def _borrow(self, alone: bool) -> AsyncIterator[_Shared]:
        if not alone:
            yield await self._lend()
            return
        shared = _Shared()
        await shared.open(self._spec, self._deadline_s)
        try:
            yield shared
        finally:
            await shared.close(self._deadline_s)

    async def _lend(self) -> _Shared:
        async with self._lock:
            if self._shared is not None and self._shared.broken:
                await self._shared.close(self._deadline_s)
                self._shared = None
            if self._shared is None:
                self._shared = _Shared()
                await self._shared.open(self._spec, self._deadline_s)
            return self._shared


class _Shared:
    """What the episodes of this process share, until it breaks. A task of its own enters and leaves it, as its author may expect."""

    def __init__(self) -> None:
        self.value: object = None
        self.broken = True
        self._leave = asyncio.Event()
        self._job: asyncio.Task[None] | None = None

    async def open(self, spec: EnvSpec, deadline_s: float) -> None:
        """Enter the spec's shared resource, or raise what that raised."""
        ready = asyncio.Event()
        self._job = asyncio.create_task(self._hold(spec, ready))
        waiting = asyncio.create_task(ready.wait())
        try:
            await asyncio.wait({waiting, self._job}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            if not ready.is_set():
                self._job.cancel()
        if self._job.done():
            await self._job
        if not ready.is_set():
            raise EnvError(f"what episodes share did not open within {deadline_s:g} s")
        self.broken = False

    async def close(self, deadline_s: float) -> None:
        """Leave the shared resource; an error there is only logged, for its episodes are over."""
        self._leave.set()
        if self._job is None:
            return
        _, late = await asyncio.wait({self._job}, timeout=deadline_s)
        if late:
            self._job.cancel()
            log.warning("what episodes share did not close within %g s", deadline_s)
        elif not self._job.cancelled() and (problem := self._job.exception()) is not None:
            log.warning("closing what episodes share: %s", problem)

    async def _hold(self, spec: EnvSpec, ready: asyncio.Event) -> None:
        with boundary(EnvError, "what episodes share"):
            async with spec.shared() as self.value:
                ready.set()
                await self._leave.wait()


class _Guarded:
    """An environment whose errors are ``EnvError``."""

    __slots__ = ("_env", "_name", "_shared")

    def __init__(self, env: Env, name: str, shared: _Shared) -> None:
        self._env, self._name, self._shared = env, name, shared

    async def reset(self) -> Observation:
        with boundary(EnvError, f"reset of {self._name!r}"):
            return await self._env.reset()

    async def step(self, action: str) -> Step:
        with boundary(EnvError, f"step of {self._name!r}"):
            if self._shared.broken:
                raise EnvError(f"step of {self._name!r}: what its episodes share broke in another of them")
            return await self._env.step(action)
