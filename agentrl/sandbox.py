"""The sandbox contract: where an environment runs what it does not trust.

Providers live in their own distributions and register under the entry-point group ``agentrl.sandboxes``. A provider is closed by
default: no network, no privileges, bounded CPU, memory, processes, disk and lifetime.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What a task asks of its sandbox. The defaults are closed and small."""

    image: str = ""
    """Name of the root file system; empty for the provider's base image."""
    cpus: float = 1.0
    memory_mib: int = 1024
    disk_mib: int = 1024
    num_processes: int = 256
    lifetime_s: float = 3600.0
    network: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """What a command did: returned, never raised. ``exit_code`` is -1 where the deadline ended it."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    timed_out: bool = False


class Sandbox(Protocol):
    """An open sandbox. Its provider's context manager closes it and leaves nothing behind."""

    async def exec(
        self, argv: Sequence[str], *, stdin: bytes = b"", env: Mapping[str, str] | None = None, timeout_s: float = 60.0
    ) -> ExecResult:
        """Run a command to its end or its deadline; the deadline kills its whole process tree.

        Raises:
            SandboxError: the sandbox itself broke.
        """
        ...

    async def read(self, path: str) -> bytes:
        """Return a file's bytes.

        Raises:
            FileNotFoundError, IsADirectoryError, PermissionError: as on a local file system.
            SandboxError: the sandbox itself broke.
        """
        ...

    async def write(self, path: str, data: bytes) -> None:
        """Write a file, making its parent folders.

        Raises:
            IsADirectoryError, PermissionError: as on a local file system.
            SandboxError: the sandbox itself broke.
        """
        ...


class SandboxProvider(ABC):
    """A configured back end: frozen data that opens sandboxes."""

    @abstractmethod
    def open(self, spec: SandboxSpec) -> AbstractAsyncContextManager[Sandbox]:
        """Open a sandbox for one episode; leaving the context destroys it."""
