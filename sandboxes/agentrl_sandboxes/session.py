"""An open sandbox: implements the ``Sandbox`` protocol by requests to the guest in it, for every back end."""

from __future__ import annotations

import errno
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any  # arguments of a request, what JSON holds

from agentrl.errors import SandboxError, boundary
from agentrl.sandbox import MAX_OUTPUT, ExecResult, Shell
from agentrl.types import SandboxSpec
from agentrl_sandboxes import guest
from agentrl_sandboxes.backend import Backend, Handle, Lease
from agentrl_sandboxes.endpoint import endpoint
from agentrl_sandboxes.guest.commands import NOT_RUN
from agentrl_sandboxes.link import Answer, Link, RequestTooLong
from agentrl_sandboxes.shell import GuestShell
from agentrl_sandboxes.tasks import to_the_end

HEARTBEAT_S = 120.0
"""Time after which a guest that has received nothing exits, which ends its sandbox."""
START_S = 60.0
FILE_S = 60.0
"""Deadline of a file operation; a second is added for every MiB of data."""
SLACK = 1 << 16
"""Number of bytes that the end of an archive may take in addition to its content."""
CLOSED = "the sandbox is closed"


class Session:
    """An open sandbox. Created by ``Session.start``; its creator must close it."""

    def __init__(self, backend: Backend, spec: SandboxSpec, lease: Lease, python: str) -> None:
        self.backend, self.lease, self.python = backend, lease, python
        self._spec = spec
        self._handle: Handle | None = None
        self._link: Link | None = None

    @classmethod
    async def start(
        cls, backend: Backend, spec: SandboxSpec, lease: Lease, *, python: str = "/usr/bin/python3"
    ) -> Session:
        """Create a sandbox. If that is cancelled or fails, nothing is left.

        Raises:
            SandboxError: the sandbox did not start.
        """
        session = cls(backend, spec, lease, python)
        await session._open()
        return session

    @property
    def spec(self) -> SandboxSpec:
        """The spec that the sandbox was created from."""
        return self._spec

    @property
    def alive(self) -> bool:
        """Whether the sandbox can be used."""
        return self._link is not None and not self._link.reason

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
        """Run a command to its end or its deadline; see ``agentrl.sandbox.Sandbox``."""
        if not argv:
            raise ValueError("argv must name a program, found an empty sequence")
        arguments = {
            "argv": list(argv),
            "cwd": cwd,
            "env": dict(env or {}),
            "timeout_s": timeout_s,
            "max_output": max_output,
        }
        started = time.monotonic()
        try:
            answer = await self._request(
                "exec", stdin, deadline_s=timeout_s, expect=2 * max_output + 1024, **arguments
            )
        except RequestTooLong:
            reason = b"cannot start: Argument list too long\n"
            return ExecResult(
                exit_code=NOT_RUN, stdout=b"", stderr=reason, stdout_total=0, stderr_total=len(reason)
            )
        if "errno" in answer.result:  # an error of the guest itself: errors of the command are results
            raise SandboxError(f"the guest cannot start commands: {answer.result.get('error')}")
        with boundary(SandboxError, "the guest's answer"):
            result, length = answer.result, int(answer.result["length"])
            return ExecResult(
                exit_code=int(result["code"]),
                stdout=answer.data[:length],
                stderr=answer.data[length:],
                stdout_total=int(result["totals"][0]),
                stderr_total=int(result["totals"][1]),
                timed_out=bool(result["timed_out"]),
                duration_s=time.monotonic() - started,
                num_killed=int(result["num_killed"]),
            )

    async def read(self, path: str, *, max_bytes: int = 1 << 30) -> bytes:
        """Return a regular file's bytes; see ``agentrl.sandbox.Sandbox``."""
        answer = await self._request(
            "read", deadline_s=FILE_S + max_bytes / 2**20, expect=max_bytes, path=path, max_bytes=max_bytes
        )
        answer.raise_for_errno(path)
        return answer.data

    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file and create its parent folders; see ``agentrl.sandbox.Sandbox``."""
        answer = await self._request(
            "write", data, deadline_s=FILE_S + len(data) / 2**20, path=path, mode=mode
        )
        answer.raise_for_errno(path)

    async def put_tar(self, path: str, data: bytes) -> None:
        """Unpack a tar archive into a folder; see ``agentrl.sandbox.Sandbox``."""
        deadline_s = FILE_S + len(data) / 2**20
        answer = await self._request("put_tar", data, deadline_s=deadline_s, path=path, timeout_s=deadline_s)
        answer.raise_for_errno(path)
        if reason := answer.result.get("invalid"):
            raise ValueError(f"cannot unpack the archive: {reason}")

    async def get_tar(self, path: str, *, max_bytes: int = 1 << 30) -> bytes:
        """Return a plain tar archive of a file or folder; see ``agentrl.sandbox.Sandbox``."""
        deadline_s = FILE_S + max_bytes / 2**20
        limits: dict[str, Any] = {"max_bytes": max_bytes, "timeout_s": deadline_s}
        answer = await self._request(
            "get_tar", deadline_s=deadline_s, expect=max_bytes + SLACK, path=path, **limits
        )
        answer.raise_for_errno(path)
        if reason := answer.result.get("invalid"):
            raise OSError(errno.EIO, str(reason), path)
        return answer.data

    @asynccontextmanager
    async def shell(self, *, cwd: str = "", env: Mapping[str, str] | None = None) -> AsyncIterator[Shell]:
        """Open a persistent shell; leaving the context kills it and all it started."""
        answer = await self._request("shell", deadline_s=FILE_S, cwd=cwd, env=dict(env or {}))
        answer.raise_for_errno(cwd)
        link = self._link
        with boundary(SandboxError, "the guest's answer"):
            shell = GuestShell(self._request, int(answer.result["shell"]), cwd or self._spec.workdir)
        try:
            yield shell
        finally:
            if link is self._link and self.alive:  # else the shell is gone with its sandbox
                await self._request("close_shell", deadline_s=FILE_S, shell=answer.result["shell"])

    def endpoint(self, port: int) -> AbstractAsyncContextManager[Path]:
        """Yield a unix socket on this host that leads to a TCP server on the sandbox's loopback interface."""
        if self._link is None:
            raise SandboxError(CLOSED)
        return endpoint(self._link, port)

    async def kill_all(self) -> int:
        """Kill all processes inside, including shells, and return the number of killed processes."""
        answer = await self._request("kill_all", deadline_s=FILE_S)
        with boundary(SandboxError, "the guest's answer"):
            return int(answer.result["num"])

    async def reset(self) -> None:
        """Replace the sandbox with a new one of the same spec."""
        await self.close()
        await self._open()

    async def close(self) -> None:
        """Destroy the sandbox; return when nothing is left of it. May be called more than once."""
        link, handle = self._link, self._handle
        self._link = self._handle = None
        await to_the_end(self._destroy(link, handle))

    async def _open(self) -> None:
        """Create the sandbox and connect to its guest; if that fails, leave nothing."""
        command = guest.command(self._spec, heartbeat_s=HEARTBEAT_S, python=self.python)
        handle = await self.backend.create(self._spec, self.lease, command)
        try:
            stream = await self.backend.open_stream(handle)
            self._link = await Link.open(stream, heartbeat_s=HEARTBEAT_S, start_s=START_S)
        except BaseException:
            await to_the_end(self._destroy(None, handle))
            raise
        self._handle = handle

    async def _destroy(self, link: Link | None, handle: Handle | None) -> None:
        if link:
            await link.close()
        if handle:
            await self.backend.destroy(handle)

    async def _request(
        self, op: str, data: bytes = b"", *, deadline_s: float, expect: int = 0, **arguments: Any
    ) -> Answer:
        """Send a request to the guest. If the guest is lost, destroy the sandbox and then raise the error."""
        link = self._link
        if link is None:
            raise SandboxError(CLOSED)
        try:
            return await link.request(op, data, deadline_s=deadline_s, expect=expect, **arguments)
        except SandboxError:
            if link is self._link:  # else a reset has already replaced the sandbox
                await self.close()
            raise
