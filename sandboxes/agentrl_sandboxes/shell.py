"""The host's side of a persistent shell: the ``Shell`` that a session returns."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from agentrl.errors import SandboxError, boundary
from agentrl.sandbox import MAX_OUTPUT, ShellResult
from agentrl_sandboxes.link import Answer

SETTLE_S = 30.0
"""Time beyond a command's deadline in which the guest may interrupt it, kill it and start a new bash."""
SYNTAX_ERROR = 2
NUL = b"bash: a command cannot hold a NUL byte\n"


class Request(Protocol):
    """A session's method that sends a request to its guest."""

    async def __call__(
        self, op: str, data: bytes = b"", *, deadline_s: float, expect: int = 0, **arguments: object
    ) -> Answer:
        """Send a request and wait for the answer."""
        ...


class GuestShell:
    """A bash inside the sandbox; see ``agentrl.sandbox.Shell``."""

    def __init__(self, request: Request, number: int, cwd: str) -> None:
        self._request, self._number, self._cwd = request, number, cwd
        self._one_at_a_time = asyncio.Lock()

    async def run(
        self, command: str, *, timeout_s: float = 60.0, max_output: int = MAX_OUTPUT
    ) -> ShellResult:
        """Run a command line to its end or its deadline."""
        if "\0" in command:
            return ShellResult(exit_code=SYNTAX_ERROR, output=NUL, output_total=len(NUL), cwd=self._cwd)
        try:
            text = command.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # half of a surrogate pair, which a model's JSON may hold, has no encoding
            text = command.encode("utf-8", "replace")
        async with self._one_at_a_time:
            started = time.monotonic()
            arguments = {"shell": self._number, "timeout_s": timeout_s, "max_output": max_output}
            answer = await self._request(
                "run", text, deadline_s=timeout_s + SETTLE_S, expect=max_output, **arguments
            )
            result = answer.result
            if "errno" in result:
                raise SandboxError(f"the guest has no such shell: {result.get('error')}")
            with boundary(SandboxError, "the guest's answer"):
                self._cwd = str(result["cwd"])
                return ShellResult(
                    exit_code=int(result["code"]),
                    output=answer.data,
                    output_total=int(result["total"]),
                    cwd=self._cwd,
                    timed_out=bool(result["timed_out"]),
                    restarted=bool(result["restarted"]),
                    duration_s=time.monotonic() - started,
                )
