"""The sandbox contract: where an environment runs what it does not trust.

Four things. ``SandboxSpec`` is what a task asks for: frozen data, closed and small by default. ``SandboxProvider`` is a configured back
end: frozen data, picklable, found under the entry-point group ``agentrl.sandboxes``. ``Sandboxes`` is a provider in service: it holds what
many sandboxes share (a connection, a warm pool, the reaper) and opens them. ``Sandbox`` is one that is open.

Two kinds of trouble never mix. Whatever a *command* does is an ``ExecResult``: returned, never raised. Whatever the *infrastructure* does
is a ``SandboxError``: the episode failed, it is played again, and it is never paid. Every call has a deadline; a sandbox that missed one
is destroyed, not used again.

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
"""What a sandbox is bounded in."""

MAX_OUTPUT = 1 << 20
"""Bytes of each output stream that a result keeps unless the caller says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """What a command did: returned, never raised.

    Of an output longer than was asked for, the first and the last half of the allowance are kept and ``*_total`` tells the whole length.
    """

    exit_code: int
    """As ``subprocess`` has it: minus the signal's number where one ended it; -9 where the deadline did."""
    stdout: bytes
    stderr: bytes
    stdout_total: int
    stderr_total: int
    timed_out: bool = False
    duration_s: float = 0.0
    num_killed: int = 0
    """Processes that were still there at the deadline, and were killed."""

    @property
    def truncated(self) -> bool:
        """Whether output is missing from the middle of a stream."""
        return self.stdout_total > len(self.stdout) or self.stderr_total > len(self.stderr)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellResult:
    """What a command in a persistent shell did. ``output`` is stdout and stderr in the order they were written, byte for byte."""

    exit_code: int
    output: bytes
    output_total: int
    cwd: str
    """The shell's folder after the command."""
    timed_out: bool = False
    """The command was interrupted at its deadline. The shell is usable, unless ``restarted``."""
    restarted: bool = False
    """The command ended the shell (``exit``, ``set -e``, a kill). A new one was started in ``cwd``; variables and functions are gone."""
    duration_s: float = 0.0

    @property
    def truncated(self) -> bool:
        """Whether the middle of the output is missing."""
        return self.output_total > len(self.output)


class Shell(Protocol):
    """A bash session that keeps its folder, variables, functions and jobs between commands. One command at a time."""

    async def run(
        self, command: str, *, timeout_s: float = 60.0, max_output: int = MAX_OUTPUT
    ) -> ShellResult:
        """Run a command line, of any content, to its end or its deadline. Its standard input is empty.

        Raises:
            SandboxError: the sandbox itself broke.
        """
        ...


class Sandbox(Protocol):
    """An open sandbox. Its provider's context manager closes it and leaves nothing behind. Calls may run at the same time."""

    @property
    def spec(self) -> SandboxSpec:
        """What was asked for."""
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
        """Run a command to its end or its deadline; the deadline kills its whole process tree, daemonised children included.

        A program that does not exist is exit code 127, one that may not be run 126, with the reason on stderr. ``env`` adds to the
        sandbox's own small environment; ``cwd`` is the spec's ``workdir`` unless given.

        Raises:
            SandboxError: the sandbox itself broke.
        """
        ...

    def shell(
        self, *, cwd: str = "", env: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[Shell]:
        """Open a persistent shell; leaving the context kills it and all it started.

        Raises:
            OSError: bash cannot be started in ``cwd``.
            SandboxError: the sandbox itself broke.
        """
        ...

    async def read(self, path: str, *, max_bytes: int = 1 << 30) -> bytes:
        """Return a regular file's bytes; never blocks on pipes or devices.

        Raises:
            FileNotFoundError, IsADirectoryError, PermissionError, OSError: as on a local file system; longer than ``max_bytes``
                is an ``OSError`` with ``errno.EFBIG``.
            SandboxError: the sandbox itself broke.
        """
        ...

    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file, making its parent folders. ``mode`` is a new file's; one that exists keeps its own.

        Raises:
            IsADirectoryError, PermissionError, OSError: as on a local file system; a full disk is ``errno.ENOSPC``.
            SandboxError: the sandbox itself broke.
        """
        ...

    async def put_tar(self, path: str, data: bytes) -> None:
        """Unpack a tar archive (plain or compressed) into a folder, made if need be. No member may leave it.

        Raises:
            ValueError: it is no archive, or a member would be written outside ``path``, or is a device.
            OSError: as on a local file system.
            SandboxError: the sandbox itself broke.
        """
        ...

    async def get_tar(self, path: str, *, max_bytes: int = 1 << 30) -> bytes:
        """Return a plain tar archive of a file or folder, its members relative to ``path``'s parent; raises as ``read``."""
        ...

    async def kill_all(self) -> int:
        """Kill every process but the sandbox's own; return how many there were. Shells are gone."""
        ...

    def endpoint(self, port: int) -> AbstractAsyncContextManager[Path]:
        """Reach a TCP server that listens on the sandbox's loopback, as a unix socket on this host. No network is opened."""
        ...

    async def reset(self) -> None:
        """Put a new sandbox of the same spec in this one's place: files, processes and shells of the old one are gone."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a back end really does on this machine: probed, not promised."""

    isolation: Literal["namespaces", "container", "kernel", "machine"]
    """What separates the inside from the host, weakest first: one user's namespaces, a hardened container, an own kernel or machine."""
    limits: frozenset[Limit]
    """Limits that are enforced. A spec's other limits are refused unless the provider was told to accept that."""
    networks: frozenset[Network] = frozenset({"none"})
    images: bool = True
    """Whether root file systems other than the provider's own can be used."""


class Sandboxes(Protocol):
    """A provider in service."""

    @property
    def capabilities(self) -> Capabilities:
        """What was probed at the start."""
        ...

    async def missing(self, images: Sequence[str]) -> Mapping[str, str]:
        """Return the images that cannot be had, each with the reason, after pulling, importing or building the others.

        Called once before a run: the tasks of a missing image are left out, visibly.
        """
        ...

    def open(self, spec: SandboxSpec) -> AbstractAsyncContextManager[Sandbox]:
        """Open a sandbox for one episode; leaving the context destroys it.

        Raises:
            ConfigError: the back end cannot give what the spec asks, such as a limit it cannot enforce.
            SandboxError: it could not be started within the provider's attempts.
        """
        ...

    def metrics(self) -> Mapping[str, float]:
        """Return counts and times since the start, by name: opened, failed, retried, from_pool, start_s, reaped ..."""
        ...


class SandboxProvider(ABC):
    """A configured back end: a frozen dataclass, picklable."""

    @abstractmethod
    def serve(self, *, run: str = "") -> AbstractAsyncContextManager[Sandboxes]:
        """Connect, probe, remove what dead owners left, and hold what sandboxes share. ``run`` labels what is opened.

        Raises:
            ConfigError: it cannot work on this machine; the message says why and how to mend it.
        """
