"""Waiting for work that must not be left half done, or that must not take too long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import (
    Any,
    TypeVar,
)  # Any: the types that a coroutine yields and is sent, which do not matter here

from agentrl.errors import SandboxError, boundary

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end even if this task is cancelled meanwhile; then raise the cancellation."""
    job = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not job.done():
        try:
            await asyncio.wait({job})
        except asyncio.CancelledError as stop:
            cancelled = stop
    if cancelled is None:
        return job.result()
    if not job.cancelled():
        job.exception()  # mark it as retrieved: the cancellation is raised in its place
    raise cancelled


@asynccontextmanager
async def within(deadline_s: float, what: str) -> AsyncIterator[None]:
    """Give a block a deadline.

    Every error that leaves it is a ``SandboxError`` that names ``what`` was being done.
    """
    try:
        async with asyncio.timeout(deadline_s):
            with boundary(SandboxError, what):
                yield
    except TimeoutError as late:
        raise SandboxError(f"{what} took longer than {deadline_s:g} s") from late
