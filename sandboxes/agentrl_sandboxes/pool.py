"""The pool: how many sandboxes exist at once, which of them are kept warm, and which request is served next.

Every sandbox holds a slot while it is starting, warm, open or being closed. Requests wait in one queue and
are served in its order. The first one gets a warm sandbox of its spec; else a free slot to start one in; else
the slot of the warm sandbox that was idle for longest, which is closed for it. So a request never waits
because of warm sandboxes, and is never overtaken.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

from agentrl.errors import ConfigError, SandboxError
from agentrl.types import SandboxSpec

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """How a provider starts sandboxes and how many it keeps.

    Each process that serves the provider has its own pool.
    """

    num_warm: int = 0
    """Number of sandboxes kept ready for each spec in use; opening one of them needs no wait for a start."""
    num_open: int = 256
    """Number of slots: the maximum number of sandboxes that exist at once, including warm ones and those that
    are being started."""
    num_starting: int = 4
    """Maximum number of sandboxes that are started at the same time."""
    attempts: int = 3
    """Number of times that a start is tried before the episode fails."""
    backoff_s: float = 0.25
    """Wait before the second attempt to start. It is doubled for each later attempt, and each wait is
    multiplied by a random number between 0.5 and 1.5."""
    start_deadline_s: float = 60.0
    """Maximum duration of one attempt to start a sandbox."""
    wait_deadline_s: float = 1800.0
    """Maximum time that an episode waits for a slot."""
    quarantine_after: int = 6
    """Number of consecutive failed starts after which an image is refused at once, without an attempt."""
    quarantine_s: float = 120.0
    """How long an image in quarantine (see ``quarantine_after``) is refused before it is tried again."""
    idle_s: float = 300.0
    """Time after which a warm sandbox that was not used is closed."""
    reap_every_s: float = 30.0
    """Interval between searches for sandboxes of dead owners."""

    def __post_init__(self) -> None:
        least = {"num_warm": 0, "num_open": 1, "num_starting": 1, "attempts": 1, "quarantine_after": 1}
        for option in fields(self):
            value, low = getattr(self, option.name), least.get(option.name, 0.0)
            if not low <= value < float("inf") or (option.name in least and not isinstance(value, int)):
                kind = "a whole number" if option.name in least else "a finite number of seconds"
                raise ConfigError(
                    f"PoolOptions.{option.name} must be {kind}, at least {low}, found {value!r}"
                )


@dataclass(frozen=True, slots=True)
class _Warm(Generic[T]):
    item: T
    since: float


class Pool(Generic[T]):
    """The slots, the warm sandboxes, and the queue of requests.

    It does not start or close sandboxes itself. When the slot of a warm sandbox is needed, it calls
    ``evict``, which closes that sandbox and then calls ``give_back``.
    """

    def __init__(self, num_slots: int, evict: Callable[[T], object]) -> None:
        self.num_slots = num_slots
        self._free = num_slots
        self._evict, self._evicting = evict, 0
        self._warm: dict[SandboxSpec, deque[_Warm[T]]] = {}
        self._queue: deque[tuple[SandboxSpec, asyncio.Future[T | None]]] = deque()

    @property
    def num_waiting(self) -> int:
        """Number of requests in the queue."""
        return sum(not future.done() for _, future in self._queue)

    @property
    def num_used(self) -> int:
        """Number of slots that are not free."""
        return self.num_slots - self._free

    def num_warm(self, spec: SandboxSpec | None = None) -> int:
        """Return the number of warm sandboxes of ``spec``, or of all specs if it is ``None``."""
        return sum(len(kept) for key, kept in self._warm.items() if spec is None or key == spec)

    async def take(self, spec: SandboxSpec, *, deadline_s: float) -> T | None:
        """Return a warm sandbox with its slot, or ``None`` and a slot to start one in.

        Raises:
            SandboxError: the request was not served within the deadline.
        """
        future: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()
        self._queue.append((spec, future))
        self._serve()
        try:
            async with asyncio.timeout(deadline_s):
                return await future
        except BaseException as problem:
            if future.done() and not future.cancelled():  # served at the moment of giving up
                self._return(spec, future.result())
            self._serve()
            if isinstance(problem, TimeoutError):
                raise SandboxError(
                    f"no sandbox became free within {deadline_s:g} s: all {self.num_slots} are in use, and "
                    f"{self.num_waiting} more episodes wait; "
                    "play fewer episodes at once, or raise num_open of the provider's pool"
                ) from problem
            raise

    def take_spare(self) -> bool:
        """Take a slot if one is free and no request waits; return whether that worked."""
        if self._free == 0 or self.num_waiting:
            return False
        self._free -= 1
        return True

    def put(self, spec: SandboxSpec, item: T) -> None:
        """Keep a sandbox warm; it holds its slot."""
        self._warm.setdefault(spec, deque()).append(_Warm(item, time.monotonic()))
        self._serve()

    def give_back(self) -> None:
        """Free the slot of a sandbox that is gone."""
        assert self._free < self.num_slots, "a slot was given back twice"
        self._free += 1
        self._evicting = max(self._evicting - 1, 0)
        self._serve()

    def idle(self, longer_than_s: Callable[[SandboxSpec], float]) -> list[T]:
        """Remove and return the sandboxes that were warm for ``longer_than_s`` of their spec or longer.

        The caller must close them.
        """
        now, found = time.monotonic(), []
        for spec, kept in list(self._warm.items()):
            while kept and now - kept[0].since >= longer_than_s(spec):
                found.append(self._pop(spec).item)
        return found

    def _pop(self, spec: SandboxSpec) -> _Warm[T]:
        kept = self._warm[spec]
        one = kept.popleft()
        if not kept:
            del self._warm[spec]
        return one

    def _return(self, spec: SandboxSpec, served: T | None) -> None:
        if served is None:
            self.give_back()
        else:
            self.put(spec, served)

    def _serve(self) -> None:
        """Serve the queue from its head, while there is a warm sandbox or a slot for the first request."""
        while self._queue:
            spec, future = self._queue[0]
            if future.done():  # the request was given up
                pass
            elif spec in self._warm:
                future.set_result(self._pop(spec).item)
            elif self._free:
                self._free -= 1
                future.set_result(None)
            else:
                if not self._evicting and (oldest := min(self._oldest(), default=None)) is not None:
                    self._evicting += 1
                    self._evict(self._pop(oldest[2]).item)
                return
            self._queue.popleft()

    def _oldest(self) -> Iterator[tuple[float, int, SandboxSpec]]:
        for index, (spec, kept) in enumerate(self._warm.items()):
            yield kept[0].since, index, spec
