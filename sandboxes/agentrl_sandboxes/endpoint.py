"""Access to a server inside a sandbox through a unix socket on this host.

Each connection is a channel of the link to the guest.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from agentrl.errors import SandboxError
from agentrl_sandboxes.guest.wire import CHUNK
from agentrl_sandboxes.link import Link


@asynccontextmanager
async def endpoint(link: Link, port: int) -> AsyncIterator[Path]:
    """Yield a unix socket, for this user only, that leads to ``port`` on the guest's loopback interface."""
    folder = Path(tempfile.mkdtemp(prefix="agentrl-"))  # short: a socket's path has at most 107 bytes
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await _carry(link, port, reader, writer)
        finally:
            connections.discard(task)
            writer.close()

    try:
        server = await asyncio.start_unix_server(serve, folder / "s")
        async with server:
            yield folder / "s"
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _carry(link: Link, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry one connection until either side closes it. On an error the client sees its connection closed."""
    with suppress(SandboxError, ConnectionError):
        async with link.pipe("connect", port=port) as channel:

            async def outward() -> None:
                while data := await reader.read(CHUNK):
                    await channel.feed(data, end=False)
                channel.end()

            sending = asyncio.create_task(outward())
            try:
                while data := await channel.next():
                    writer.write(data)
                    await writer.drain()
                    channel.taken(len(data))
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
