"""The local back end: implements the six members of ``Backend`` with a launcher process."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentrl.errors import ConfigError, ImageMissing, SandboxError
from agentrl.sandbox import Capabilities
from agentrl.types import SandboxSpec
from agentrl_sandboxes import reaper, records
from agentrl_sandboxes.backend import SANDBOX_UID, Handle, Lease, Stream
from agentrl_sandboxes.confine import StartRequest
from agentrl_sandboxes.launcher_client import LauncherClient
from agentrl_sandboxes.launcher_server import ENDED_WELL

HOST = "host"
"""Name of the image that is the host's ``/usr``."""
_HOST_FOLDERS = frozenset({"usr", "bin", "sbin", "lib", "lib32", "lib64", "proc", "dev"})
"""Top folders of the image ``host`` that belong to the host and cannot be written to."""
_MIB = 1 << 20
_CHUNK = 1 << 18
_ENDED_S = 5.0


@dataclass(slots=True)
class _Sandbox:
    """The ``native`` part of a local sandbox's handle; ``ended`` gets the reason of the sandbox's end."""

    launcher: LauncherClient
    stream: LocalStream
    ended: asyncio.Future[str]


class LocalBackend:
    """The local back end. If its launcher is lost, the next sandbox starts another one."""

    def __init__(self, bwrap: str) -> None:
        self._bwrap = bwrap
        self._launcher: LauncherClient | None = None
        self._launching = asyncio.Lock()
        self._images: dict[str, Path | None] = {}
        self.capabilities = Capabilities(isolation="namespaces", limits=frozenset())

    async def prepare(self, image: str) -> None:
        """Find an image; if it is the base image and does not exist, build it, which takes seconds."""
        if image == HOST:
            if not os.access("/usr/bin/python3", os.X_OK):
                raise ImageMissing(
                    "the image 'host' needs /usr/bin/python3, which is missing; "
                    "install python3, or use another image"
                )
            self._images[HOST] = None
            return
        from agentrl_sandboxes import images  # only now: the image 'host' does not need it

        self._images[image] = await asyncio.to_thread(images.rootfs, image)

    async def create(self, spec: SandboxSpec, lease: Lease, command: Sequence[str]) -> Handle:
        """Start ``command`` as the first process of a new sandbox."""
        if spec.image not in self._images:
            await self.prepare(spec.image)
        request = _request(spec, lease, command, self._images[spec.image])
        launcher = await self._launch()
        ours, theirs = socket.socketpair()
        try:
            ended = await launcher.start(request, lease.labels(), theirs.fileno())
        except BaseException:
            ours.close()
            if launcher.lost:
                await asyncio.shield(asyncio.to_thread(reaper.remove_by_name, lease.id))
            raise
        finally:
            theirs.close()
        return Handle(lease.id, _Sandbox(launcher, LocalStream(ours, ended), ended))

    async def open_stream(self, handle: Handle) -> Stream:
        """Return the stream to the first process."""
        sandbox = _native(handle)
        await sandbox.stream.open()
        return sandbox.stream

    async def destroy(self, handle: Handle) -> None:
        """Kill everything inside and remove the sandbox."""
        sandbox = _native(handle)
        await sandbox.launcher.stop(handle.id)
        if records.exists(handle.id) and not await asyncio.to_thread(reaper.remove_by_name, handle.id):
            raise SandboxError(
                f"sandbox {handle.id} cannot be removed: its processes or control groups are still there"
            )
        await sandbox.stream.close()

    async def reap(self, now: float) -> int:
        """Remove sandboxes whose owner is dead or whose deadline has passed; return their number."""
        return await asyncio.to_thread(reaper.reap, now)

    async def close(self) -> None:
        """End the launcher, and with it all its sandboxes."""
        if self._launcher is not None:
            await self._launcher.close()

    async def controllers(self) -> frozenset[str]:
        """Return the control group controllers that limit sandboxes here."""
        return (await self._launch()).controllers

    async def _launch(self) -> LauncherClient:
        """Return the launcher; start one if there is none."""
        async with self._launching:
            if self._launcher is not None and self._launcher.lost:
                await self._launcher.close()
                self._launcher = None
            if self._launcher is None:
                self._launcher = await LauncherClient.open(bwrap=self._bwrap, uid=SANDBOX_UID)
            return self._launcher


class LocalStream:
    """A socket whose other end is the standard input and output of a sandbox's first process."""

    def __init__(self, end: socket.socket, ended: asyncio.Future[str]) -> None:
        self._socket, self._ended = end, ended
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._heard = False
        ended.add_done_callback(self._cut)

    async def open(self) -> None:
        """Attach the socket to the running event loop."""
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._socket, limit=4 * _CHUNK)

    async def send(self, data: bytes) -> None:
        """Send all of ``data``."""
        assert self._writer is not None, "open_stream comes first"
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self) -> bytes:
        """Return some bytes; ``b""`` once the other end is gone.

        Raises:
            SandboxError: the sandbox ended before it sent anything; the message has bubblewrap's error.
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
            if how != ENDED_WELL:
                raise SandboxError(f"a local sandbox ended before it sent anything: {how}")
        return data

    def _cut(self, ended: asyncio.Future[str]) -> None:
        """Shut down the socket after the sandbox has ended, even if a process still holds its other end."""
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


def _request(spec: SandboxSpec, lease: Lease, command: Sequence[str], image: Path | None) -> StartRequest:
    """Return the request to the launcher.

    Raises:
        ConfigError: the spec wants to write to a folder that the image ``host`` shares with the host.
    """
    if spec.image == HOST:
        for path in (spec.workdir, *spec.writable):
            if path.rstrip("/") == "" or path.split("/")[1] in _HOST_FOLDERS:
                raise ConfigError(
                    f"a sandbox of image 'host' cannot write to {path}, which belongs to the host; "
                    "build an image instead"
                )
    return StartRequest(
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
