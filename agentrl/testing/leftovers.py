"""What this process holds open, and what is left of it after something should have been closed."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import threading
import time
from pathlib import Path

SETTLE_S = 2.0
"""Maximum wait for what closes in the background, such as a child process that was asked to end."""


@dataclasses.dataclass(frozen=True, slots=True)
class OpenResources:
    """Names of the threads, ids of the child processes, and number of open files of this process."""

    threads: frozenset[str]
    children: frozenset[str]
    num_files: int

    @classmethod
    def now(cls) -> OpenResources:
        """Return what is open at this moment."""
        threads = {
            f"{thread.name} ({thread.ident})"
            for thread in threading.enumerate()
            if not thread.name.startswith("asyncio_")
        }
        children = [file.read_text().split() for file in Path("/proc/self/task").glob("*/children")]
        return cls(
            frozenset(threads), frozenset(itertools.chain(*children)), len(list(Path("/dev/fd").iterdir()))
        )

    def exceeds(self, before: OpenResources) -> str:
        """Describe what is open now and was not before; empty if there is nothing."""
        return ", ".join(
            [f"thread {name}" for name in sorted(self.threads - before.threads)]
            + [f"process {pid}" for pid in sorted(self.children - before.children)]
            + [f"{self.num_files - before.num_files} open files"] * (self.num_files > before.num_files)
        )


async def left_over(before: OpenResources) -> str:
    """Describe what is open now and was not ``before``; empty if there is nothing.

    Wait up to ``SETTLE_S`` for such things to close.
    """
    until = time.monotonic() + SETTLE_S
    while (left := OpenResources.now().exceeds(before)) and time.monotonic() < until:
        await asyncio.sleep(0.02)
    return left
