"""A back end without isolation, for tests of the layers above back ends: its guest is a child process."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from agentrl_sandboxes.backend import Handle, Lease
from agentrl_sandboxes.session import Session

from agentrl.sandbox import Capabilities, SandboxProvider
from agentrl.types import SandboxSpec

SPEC = SandboxSpec()


class PlainStream:
    """The standard input and output of a child process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def send(self, data: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(data)
        await self.process.stdin.drain()

    async def receive(self) -> bytes:
        assert self.process.stdout
        return await self.process.stdout.read(1 << 18)

    async def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()


class Plain:
    """Each sandbox is a child process in a temporary folder, with the rights of the user who runs it."""

    capabilities = Capabilities(
        isolation="namespaces", limits=frozenset({"files", "lifetime"}), networks=frozenset({"none", "open"})
    )

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="plain-"))
        self.running: dict[str, asyncio.subprocess.Process] = {}
        self.python = sys.executable
        self.patience_s = 10.0

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    async def prepare(self, image: str) -> None:
        pass

    async def create(self, spec: SandboxSpec, lease: Lease, command: Sequence[str]) -> Handle:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.root)}
        self.running[lease.id] = await asyncio.create_subprocess_exec(
            self.python,
            *command[1:],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            cwd=self.root,
            start_new_session=True,
        )
        return Handle(lease.id)

    async def open_stream(self, handle: Handle) -> PlainStream:
        return PlainStream(self.running[handle.id])

    async def destroy(self, handle: Handle) -> None:
        process = self.running.pop(handle.id, None)
        if not process:
            return
        assert process.stdin
        process.stdin.close()  # the guest kills its processes and exits
        try:
            async with asyncio.timeout(self.patience_s):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def reap(self, now: float) -> int:
        return 0


@dataclass(frozen=True)
class PlainProvider(SandboxProvider):
    """The back end as a provider. ``backend`` makes it, so that a test can replace it by a broken one."""

    backend: Callable[[], Plain] = Plain

    @asynccontextmanager
    async def serve(self, *, run: str = "") -> AsyncIterator["PlainSandboxes"]:
        plain = self.backend()
        try:
            yield PlainSandboxes(plain)
        finally:
            plain.close()


class PlainSandboxes:
    """Replaces the workdir of each spec by a new folder."""

    def __init__(self, backend: Plain) -> None:
        self.backend, self.num_opened, self.num_open, self.start_s = backend, 0, 0, 0.0

    @property
    def capabilities(self) -> Capabilities:
        return self.backend.capabilities

    async def missing(self, images: Sequence[str]) -> Mapping[str, str]:
        return {}

    @asynccontextmanager
    async def open(self, spec: SandboxSpec) -> AsyncIterator[Session]:
        self.num_opened += 1
        started = time.monotonic()
        async with session(
            replace(spec, workdir=str(self.backend.root / f"{self.num_opened}")), self.backend
        ) as opened:
            self.start_s = max(self.start_s, time.monotonic() - started)
            self.num_open += 1
            try:
                yield opened
            finally:
                self.num_open -= 1

    def metrics(self) -> Mapping[str, float]:
        return {"opened": float(self.num_opened), "open": float(self.num_open), "start_s": self.start_s}


_ids = iter(range(10**9))


def lease() -> Lease:
    return Lease(id=f"plain-{os.getpid()}-{next(_ids)}", owner="test", run="test", deadline=2**40)


@asynccontextmanager
async def session(spec: SandboxSpec = SPEC, backend: Plain | None = None) -> AsyncIterator[Session]:
    """Open a plain sandbox with its own workdir; remove everything in the end."""
    plain = backend or Plain()
    if spec.workdir == SPEC.workdir:
        spec = replace(spec, workdir=str(plain.root / "work"))
    try:
        opened = await Session.start(plain, spec, lease())
        try:
            yield opened
        finally:
            await opened.close()
    finally:
        if backend is None:
            plain.close()
