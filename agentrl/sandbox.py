"""The sandbox contract: where an environment runs code that it does not trust.

It has four parts. ``SandboxSpec`` is what a task asks for: frozen data, isolated and small by default.
``SandboxProvider`` is a configured back end: frozen data, picklable, found in the entry-point group
``agentrl.sandboxes``. ``Sandboxes`` is a provider in service: it holds what many sandboxes share (a
connection, a warm pool, the reaper) and opens them. ``Sandbox`` is an open sandbox.

Errors of commands and errors of the infrastructure are kept apart. Whatever a *command* does is an
``ExecResult``: returned, never raised. A failure of the *infrastructure* is a ``SandboxError``: the episode
has failed, is played again, and is never rewarded. Every call has a deadline; a sandbox that misses one is
destroyed and not used again.

``agentrl.testing.check_sandbox`` checks a provider against all of this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from agentrl.types import Network, SandboxSpec

Limit = Literal["cpu", "memory", "processes", "disk", "files", "lifetime"]
"""A resource that a sandbox's spec bounds."""

MAX_OUTPUT = 1 << 20
"""Maximum number of bytes of each output stream that a result keeps by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """The result of a command: returned, never raised.

    Of an output longer than ``max_output``, the beginning and the end are kept, half of ``max_output`` each,
    and ``*_total`` is the whole length.
    """

    exit_code: int
    """The command's exit code. As in ``subprocess``, it is minus the number of the signal if a signal ended
    the command, so -9 if its deadline ended it."""
    stdout: bytes
    stderr: bytes
    stdout_total: int
    stderr_total: int
    timed_out: bool = False
    duration_s: float = 0.0
    num_killed: int = 0
    """Number of processes of the command that still ran at the deadline and were killed."""

    @property
    def truncated(self) -> bool:
        """Whether output is missing from the middle of a stream."""
        return self.stdout_total > len(self.stdout) or self.stderr_total > len(self.stderr)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellResult:
    """The result of a command in a persistent shell.

    ``output`` is stdout and stderr in the order in which they were written, byte for byte.
    """

    exit_code: int
    output: bytes
    output_total: int
    cwd: str
    """The shell's folder after the command."""
    timed_out: bool = False
    """Whether the command was interrupted at its deadline; the shell keeps its state unless ``restarted``."""
    restarted: bool = False
    """Whether the command ended the shell (``exit``, ``set -e``, a kill), so that a new one was started in
    ``cwd``, without the old one's variables and functions."""
    duration_s: float = 0.0

    @property
    def truncated(self) -> bool:
        """Whether the middle of the output is missing."""
        return self.output_total > len(self.output)


class Shell(Protocol):
    """A bash session that keeps its folder, variables, functions and jobs between commands.

    One command at a time.
    """

    async def run(
        self, command: str, *, timeout_s: float = 60.0, max_output: int = MAX_OUTPUT
    ) -> ShellResult:
        """Run a command line, of any content, to its end or its deadline. Its standard input is empty.

        Raises:
            SandboxError: the sandbox itself failed.
        """
        ...


class Sandbox(Protocol):
    """An open sandbox. Its provider's context manager closes it and leaves nothing behind.

    Calls may run concurrently.
    """

    @property
    def spec(self) -> SandboxSpec:
        """The spec with which the sandbox was opened."""
        ...

    async def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        timeout_s: float = 60.0,
        max_output: int = MAX_OUTPUT,
    ) -> ExecResult:
        """Run a command to its end or its deadline, which kills its whole process tree, including daemons.

        The exit code is 127 if the program does not exist and 126 if it cannot be run, with the reason on
        stderr. ``env`` adds to the sandbox's own small environment; ``cwd`` is by default the spec's
        ``workdir``.

        Raises:
            SandboxError: the sandbox itself failed.
        """
        ...

    def shell(
        self, *, cwd: str = "", env: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[Shell]:
        """Open a persistent shell; leaving the context kills it and all it started.

        Raises:
            OSError: bash cannot be started in ``cwd``.
            SandboxError: the sandbox itself failed.
        """
        ...

    async def read(self, path: str, *, max_bytes: int = 1 << 30) -> bytes:
        """Return the bytes of a regular file; never block on pipes or devices.

        Raises:
            FileNotFoundError, IsADirectoryError, PermissionError, OSError: as on a local file system; a file
                longer than ``max_bytes`` is an ``OSError`` with ``errno.EFBIG``.
            SandboxError: the sandbox itself failed.
        """
        ...

    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file, and create its parent folders.

        A new file gets ``mode``; an existing one keeps its own.

        Raises:
            IsADirectoryError, PermissionError, OSError: as on a local file system; a full disk is
                ``errno.ENOSPC``.
            SandboxError: the sandbox itself failed.
        """
        ...

    async def put_tar(self, path: str, data: bytes) -> None:
        """Unpack a tar archive (plain or compressed) into a folder, which is created if it does not exist.

        Raises:
            ValueError: it is not an archive, or a member is a device, or would be written outside ``path``.
            OSError: as on a local file system.
            SandboxError: the sandbox itself failed.
        """
        ...

    async def get_tar(self, path: str, *, max_bytes: int = 1 << 30) -> bytes:
        """Return a plain tar archive of a file or folder; raises the same errors as ``read``.

        Names of members are relative to the parent folder of ``path``.
        """
        ...

    async def kill_all(self) -> int:
        """Kill every process, shells included, except the sandbox's own; return how many were killed."""
        ...

    def endpoint(self, port: int) -> AbstractAsyncContextManager[Path]:
        """Yield a unix socket on this host that leads to a TCP server on the sandbox's loopback interface.

        No network is opened.
        """
        ...

    async def reset(self) -> None:
        """Replace this sandbox with a new one of the same spec.

        The old files, processes and shells are gone.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a back end really does on this machine, as it was probed."""

    isolation: Literal["namespaces", "container", "kernel", "machine"]
    """What separates sandboxes from the host. Weakest first: namespaces of an ordinary user, a hardened
    container, a separate kernel, a separate machine."""
    limits: frozenset[Limit]
    """Limits that are enforced here. A spec that needs any other limit is refused, unless the provider is
    configured to accept it."""
    networks: frozenset[Network] = frozenset({"none"})
    images: bool = True
    """Whether other root file systems than the provider's own can be used."""


class Sandboxes(Protocol):
    """A provider in service: it opens sandboxes, and holds what they share."""

    @property
    def capabilities(self) -> Capabilities:
        """What the back end can do on this machine, as it was probed when service began."""
        ...

    async def missing(self, images: Sequence[str]) -> Mapping[str, str]:
        """Pull, import or build images; return those that are not available, each with the reason.

        Called once before a run, which leaves out the tasks of missing images and reports that.
        """
        ...

    def open(self, spec: SandboxSpec) -> AbstractAsyncContextManager[Sandbox]:
        """Open a sandbox for one episode; leaving the context destroys it.

        Raises:
            ConfigError: the back end cannot provide what the spec asks for, such as a limit that it cannot
                enforce.
            SandboxError: the sandbox could not be started in the provider's number of attempts.
        """
        ...

    def metrics(self) -> Mapping[str, float]:
        """Return counts and durations since the start, by name: ``opened``, ``failed``, ``start_s`` ..."""
        ...


class SandboxProvider(ABC):
    """A configured back end: a frozen dataclass, picklable."""

    @abstractmethod
    def serve(self, *, run: str = "") -> AbstractAsyncContextManager[Sandboxes]:
        """Connect, probe, remove sandboxes of dead owners, and serve.

        ``run`` labels the sandboxes that are opened.

        Raises:
            ConfigError: the provider cannot work on this machine; the message says why and how to fix it.
        """
