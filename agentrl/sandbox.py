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
    """The command's exit code. If a signal ended the command, it is minus the signal's number, as in
    ``subprocess``; so it is -9 after a deadline, at which the command is killed."""
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
    """Whether the command was interrupted at its deadline. The shell kept its state unless ``restarted``."""
    restarted: bool = False
    """Whether the command ended the shell (``exit``, ``set -e``, a kill), so that a new one was started in
    ``cwd``. Then variables and functions are lost."""
    duration_s: float = 0.0

    @property
    def truncated(self) -> bool:
        """Whether the middle of the output is missing."""
        return self.output_total > len(self.output)


class Shell(Protocol):
    """A bash session that keeps its folder, variables, functions and jobs between commands.

    It runs one command at a time.
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
        """The spec that the sandbox was opened with."""
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
        """Run a command to its end or its deadline.

        At the deadline, the command's whole process tree is killed, including daemons.

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
            ValueError: ``data`` is not an archive, or a member is a device or would be outside ``path``.
            OSError: as on a local file system.
            SandboxError: the sandbox itself failed.
        """
        ...

    async def get_tar(self, path: str, *, max_bytes: int = 1 << 30) -> bytes:
        """Return a plain tar archive of a file or folder.

        Names of members are relative to the parent folder of ``path``. It raises the same errors as ``read``.
        """
        ...

    async def kill_all(self) -> int:
        """Kill all processes inside, including shells, and return the number of killed processes.

        The sandbox's own processes, which serve these calls, are neither killed nor counted.
        """
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
    """The limits that are enforced. If any limit is missing here, specs are refused, unless the provider is
    configured to accept that."""
    networks: frozenset[Network] = frozenset({"none"})
    images: bool = True
    """Whether specs may name an image. If not, every sandbox has the provider's own root file system."""


class Sandboxes(Protocol):
    """A provider in service: it prepares images and opens sandboxes."""

    @property
    def capabilities(self) -> Capabilities:
        """What the back end really does on this machine, as it was probed at the start."""
        ...

    async def missing(self, images: Sequence[str]) -> Mapping[str, str]:
        """Pull, import or build images; return the names of those that are not available, with the reasons.

        This is called once before a run, which then leaves out the tasks whose image is missing, and reports
        that.
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
