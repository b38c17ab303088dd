"""Where a Docker daemon is, and connections to it: by unix socket, TLS or ssh."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import ssl
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import h11

from agentrl.errors import ConfigError, SandboxError

CHUNK = 1 << 18
CONNECT_S = 30.0
TAIL = 4096
"""Number of bytes of a program's standard error that are kept for error messages."""


class Connection:
    """A connection to a Docker daemon, which serves one request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._http = h11.Connection(h11.CLIENT)

    async def close(self) -> None:
        """Close the connection at once."""
        self.writer.close()
        self.writer.transport.abort()

    async def send(self, event: h11.Event) -> None:
        """Send a part of the request."""
        if data := self._http.send(event):
            self.writer.write(data)
            await self.writer.drain()

    async def next(self) -> h11.Event | type[h11.PAUSED]:
        """Return the next part of the response."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self.reader.read(CHUNK))
        return event  # type: ignore[return-value]  # it is not NEED_DATA

    def trailing(self) -> bytes:
        """Return the bytes that arrived together with the response that switched protocols."""
        return self._http.trailing_data[0]


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a Docker daemon."""

    url: str
    tls: str = ""
    """Folder of ``ca.pem``, ``cert.pem`` and ``key.pem``, for a ``url`` that begins with ``tcp``."""
    name: str = ""
    """The daemon's name in messages; empty to use the url."""

    def __str__(self) -> str:
        return self.name or self.url

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Connection]:
        """Open a connection; raise ``OSError`` if that fails."""
        connection = await self.connect()
        try:
            yield connection
        finally:
            await connection.close()

    async def connect(self) -> Connection:
        """Return an open connection, which the caller must close."""
        parts = urlsplit(self.url)
        if parts.scheme == "unix":
            return Connection(*await asyncio.open_unix_connection(parts.path, limit=CHUNK))
        assert parts.scheme == "tcp", "ssh addresses are used through a tunnel"
        context = _tls(self.tls) if self.tls else None
        return Connection(
            *await asyncio.open_connection(parts.hostname, parts.port, ssl=context, limit=CHUNK)
        )


def locate(url: str = "", tls: str = "") -> Address:
    """Return the daemon's address, by default the one that the ``docker`` command would use.

    Raises:
        ConfigError: the URL cannot be used, or the daemon would be open to everyone on the network.
    """
    if not url:
        url = os.environ.get("DOCKER_HOST", "") or _context() or "unix:///var/run/docker.sock"
        tls = tls or (os.environ.get("DOCKER_CERT_PATH", "") if os.environ.get("DOCKER_TLS_VERIFY") else "")
    parts = urlsplit(url)
    if parts.scheme not in {"unix", "tcp", "ssh"} or (parts.scheme == "tcp" and parts.port is None):
        raise ConfigError(
            f"a daemon's url is unix:///PATH, tcp://HOST:PORT with tls, or ssh://USER@HOST, found {url!r}"
        )
    if parts.scheme == "tcp" and not tls and parts.hostname not in {"localhost", "127.0.0.1", "::1"}:
        raise ConfigError(
            f"{url} without TLS makes everyone on that network root on that machine; "
            "set tls to the folder of ca.pem, cert.pem and key.pem"
        )
    for name in ("ca.pem", "cert.pem", "key.pem") if tls else ():
        if not Path(tls, name).is_file():
            raise ConfigError(f"tls is the folder {tls!r}, which has no {name}")
    return Address(url, tls)


def _context() -> str:
    """Return the URL of the ``docker`` command's current context; empty if there is none."""
    folder = Path.home() / ".docker"
    try:
        name = json.loads((folder / "config.json").read_text()).get("currentContext", "")
        if name in {"", "default"}:
            return ""
        context = folder / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
        about = json.loads((context / "meta.json").read_text())
        return str(about["Endpoints"]["docker"]["Host"])
    except (OSError, ValueError, KeyError):
        return ""


def _tls(folder: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(Path(folder, "ca.pem")))
    context.load_cert_chain(Path(folder, "cert.pem"), Path(folder, "key.pem"))
    return context


@asynccontextmanager
async def tunnelled(address: Address) -> AsyncIterator[Address]:
    """Yield an address that leads to a daemon behind ssh through a tunnel to its unix socket.

    Any other address is yielded unchanged. The remote command is ``cat``, whose input ends with this process:
    so the tunnel ends even if this process is killed.

    Raises:
        SandboxError: ssh cannot reach the machine; the message has its error.
    """
    parts = urlsplit(address.url)
    if parts.scheme != "ssh":
        yield address
        return
    target = f"{parts.username}@{parts.hostname}" if parts.username else str(parts.hostname)
    port = ["-p", str(parts.port)] if parts.port else []
    options = [
        f"-o{option}"
        for option in (
            "BatchMode=yes",
            "ConnectTimeout=15",
            "ExitOnForwardFailure=yes",
            "ServerAliveInterval=30",
        )
    ]
    with tempfile.TemporaryDirectory(prefix="ssh-") as folder:
        forward = f"{folder}/s:{parts.path or '/var/run/docker.sock'}"
        process = await asyncio.create_subprocess_exec(
            *("ssh", "-T", *options, *port, "-L", forward, "--", target, "cat"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stderr is not None
        try:
            until = time.monotonic() + CONNECT_S
            while not Path(folder, "s").exists():
                await asyncio.sleep(0.02)
                if process.returncode is not None:
                    error = (await process.stderr.read(TAIL)).decode(errors="replace").strip()
                    raise SandboxError(
                        f"{address} cannot be reached: {error or 'ssh ended without an error'}"
                    )
                if time.monotonic() > until:
                    raise SandboxError(f"{address} cannot be reached: ssh took longer than {CONNECT_S:g} s")
            yield Address(f"unix://{folder}/s", name=address.url)
        finally:
            process.stdin.close()
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.kill(
                        process.pid, signal.SIGKILL
                    )  # process.kill() would reap it, which asyncio must do
            await process.wait()
            # otherwise its pipes stay open until the garbage collector finds them
            process._transport.close()  # type: ignore[attr-defined]
