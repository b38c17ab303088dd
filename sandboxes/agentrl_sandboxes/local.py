"""Sandboxes of this machine's own kernel: user namespaces, an overlay in memory and bubblewrap. No daemon, no root, milliseconds.

Inside there is an image's root file system, all of it writable and gone afterwards, a loopback, and nothing of the host: see ``confine``
for how a process becomes a sandbox, ``launch`` for who starts and ends them, ``seccomp`` for what the kernel refuses. Limits on memory and
processors need control groups, which root has, and a user where systemd lends some; without them the provider says so and a spec is
refused unless ``unenforced`` accepts it. Files lie in memory and count there too.

The image ``"host"`` is the host's own ``/usr``, read-only, with little else: it needs no building, and shows what is installed here.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from agentrl.errors import ConfigError, ImageMissing, SandboxError
from agentrl.sandbox import Capabilities, Limit, Sandboxes, SandboxProvider
from agentrl.types import SandboxSpec
from agentrl_sandboxes import reaper, records
from agentrl_sandboxes.backend import Handle, Lease, Stream
from agentrl_sandboxes.confine import Order
from agentrl_sandboxes.launch import WELL
from agentrl_sandboxes.launcher import Launcher
from agentrl_sandboxes.pool import PoolOptions
from agentrl_sandboxes.service import serving
from agentrl_sandboxes.session import Session

HOST = "host"
"""The image that is the host's ``/usr``."""
USER = 61000
"""As whom sandboxes run that root starts: no account of the host has this uid. Images that root makes belong to it."""
_MIB = 1 << 20
_CHUNK = 1 << 18
_ENDED_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Local(SandboxProvider):
    """Sandboxes on this machine, of namespaces. Needs Linux, bubblewrap 0.8 and user namespaces; neither root nor a daemon."""

    unenforced: frozenset[Limit] = frozenset()
    """Limits that need not be enforced; without root or systemd these are ``memory`` and ``cpu``."""
    pool: PoolOptions = field(default_factory=PoolOptions)

    @asynccontextmanager
    async def serve(self, *, run: str = "") -> AsyncIterator[Sandboxes]:
        """Probe what this machine isolates and enforces, remove what dead owners left, and serve."""
        async with (
            backend() as opened,
            serving(
                opened, run=run, options=self.pool, unenforced=self.unenforced, start=Session.start
            ) as sandboxes,
        ):
            yield sandboxes


@asynccontextmanager
async def backend() -> AsyncIterator[LocalBackend]:
    """Open the back end; leaving it ends every sandbox that it made.

    Raises:
        ConfigError: sandboxes would not be closed on this machine; the message says why and how to mend it.
    """
    from agentrl_sandboxes.probe import bubblewrap, probe

    opened = LocalBackend(bubblewrap())
    try:
        opened.capabilities = await probe(opened)
        yield opened
    finally:
        await opened.close()


@dataclass(slots=True)
class _Sandbox:
    """What a handle is of."""

    launcher: Launcher
    stream: LocalStream
    ended: asyncio.Future[str]


class LocalBackend:
    """The six members, over a launcher; one that was lost is replaced with the next sandbox."""

    def __init__(self, bwrap: str) -> None:
        self._bwrap = bwrap
        self._launcher: Launcher | None = None
        self._launching = asyncio.Lock()
        self._images: dict[str, Path | None] = {}
        self.capabilities = Capabilities(isolation="namespaces", limits=frozenset())

    async def prepare(self, image: str) -> None:
        """Find an image, or build the base image: seconds."""
        if image == HOST:
            if not os.access("/usr/bin/python3", os.X_OK):
                raise ImageMissing(
                    "the image 'host' needs /usr/bin/python3, which is not there; install python3, or use another image"
                )
            self._images[HOST] = None
            return
        from agentrl_sandboxes import images

        self._images[image] = await asyncio.to_thread(images.rootfs, image)

    async def create(self, spec: SandboxSpec, lease: Lease, command: Sequence[str]) -> Handle:
        """Start ``command`` as the first process of a new sandbox."""
        if spec.image not in self._images:
            await self.prepare(spec.image)
        order = _order(spec, lease, command, self._images[spec.image])
        launcher = await self._launch()
        ours, theirs = socket.socketpair()
        try:
            ended = await launcher.start(order, lease.labels(), theirs.fileno())
        except BaseException:
            ours.close()
            if launcher.lost:
                await asyncio.shield(asyncio.to_thread(reaper.remove_by_name, lease.id))
            raise
        finally:
            theirs.close()
        return Handle(lease.id, _Sandbox(launcher, LocalStream(ours, ended), ended))

    async def open_stream(self, handle: Handle) -> Stream:
        """Return the byte pipe to the first process."""
        sandbox = _native(handle)
        await sandbox.stream.open()
        return sandbox.stream

    async def destroy(self, handle: Handle) -> None:
        """Kill everything inside and remove the sandbox."""
        sandbox = _native(handle)
        await sandbox.launcher.stop(handle.id)
        if records.exists(handle.id) and not await asyncio.to_thread(reaper.remove_by_name, handle.id):
            raise SandboxError(
                f"sandbox {handle.id} cannot be removed: its processes or control groups do not go"
            )
        await sandbox.stream.close()

    async def reap(self, now: float) -> int:
        """Remove what launchers left that were killed themselves, and sandboxes whose deadline passed."""
        return await asyncio.to_thread(reaper.reap, now)

    async def close(self) -> None:
        """End the launcher, and with it every sandbox that is left."""
        if self._launcher is not None:
            await self._launcher.close()

    async def controllers(self) -> frozenset[str]:
        """Return the control group controllers that limit sandboxes here."""
        return (await self._launch()).controllers

    async def _launch(self) -> Launcher:
        async with self._launching:
            if self._launcher is not None and self._launcher.lost:
                await self._launcher.close()
                self._launcher = None
            if self._launcher is None:
                self._launcher = await Launcher.open(bwrap=self._bwrap, uid=USER)
            return self._launcher


class LocalStream:
    """A socket whose other end is the first process's standard input and output."""

    def __init__(self, end: socket.socket, ended: asyncio.Future[str]) -> None:
        self._socket, self._ended = end, ended
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._heard = False
        ended.add_done_callback(self._cut)

    async def open(self) -> None:
        """Attach it to the running loop."""
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._socket, limit=4 * _CHUNK)

    async def send(self, data: bytes) -> None:
        """Send all of ``data``."""
        assert self._writer is not None, "open_stream comes first"
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self) -> bytes:
        """Return some bytes; ``b""`` once the other end is gone.

        Raises:
            SandboxError: it ended without a word; the message says what bubblewrap said.
        """
        assert self._reader is not None, "open_stream comes first"
        try:
            data = await self._reader.read(_CHUNK)
        except ConnectionError:
            data = b""
        if data:
            self._heard = True
        elif not self._heard:
            async with asyncio.timeout(_ENDED_S):
                how = await asyncio.shield(self._ended)
            if how != WELL:
                raise SandboxError(f"a local sandbox ended before it said a word: {how}")
        return data

    def _cut(self, ended: asyncio.Future[str]) -> None:
        """End it with the sandbox, even where the launcher was killed and something inside still lives."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        """Close both directions."""
        if self._writer is None:
            self._socket.close()
            return
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


def _order(spec: SandboxSpec, lease: Lease, command: Sequence[str], image: Path | None) -> Order:
    """Return what the launcher is asked for.

    Raises:
        ConfigError: the image ``host`` cannot give what the spec asks.
    """
    if spec.image == HOST:
        for path in (spec.workdir, *spec.writable):
            if path.rstrip("/") == "" or path.split("/")[1] in {
                "usr",
                "bin",
                "sbin",
                "lib",
                "lib32",
                "lib64",
                "proc",
                "dev",
            }:
                raise ConfigError(
                    f"a sandbox of image 'host' cannot write to {path}: it is the host's own; build an image instead"
                )
    return Order(
        id=lease.id,
        command=tuple(command),
        workdir=spec.workdir,
        folders=spec.writable,
        image="" if image is None else str(image),
        memory=spec.memory_mib * _MIB,
        disk=spec.disk_mib * _MIB,
        cpus=spec.cpus,
        num_processes=spec.num_processes,
        num_files=spec.num_files,
    )


def _native(handle: Handle) -> _Sandbox:
    assert isinstance(handle.native, _Sandbox), f"{handle} is not of this back end"
    return handle.native
