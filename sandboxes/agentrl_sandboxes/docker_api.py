"""The Docker Engine API, as far as sandboxes need it: Docker's or podman's, by unix socket, TLS or ssh.

The ``docker`` package is a client of blocking calls: it would need a thread for each sandbox, applies no deadline to attached streams, and
hands out three kinds of socket for three transports, two of which asyncio cannot use. What is needed is a dozen calls and one byte
stream, so this speaks HTTP (h11) over whatever asyncio opens. Each call has its own connection: a cancelled call disturbs no other.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any  # Any: decoded JSON
from urllib.parse import quote, urlencode, urlsplit

import h11

from agentrl.errors import ConfigError, SandboxError

NEWEST, OLDEST = (1, 44), (1, 40)
"""API versions that are asked for: up to what this was written against, down to Docker 19.03 and podman 3."""
CHUNK = 1 << 18
CONNECT_S = 30.0
TAIL = 4096
"""Bytes of a program's standard error that are kept, to say why it ended."""

Json = Mapping[str, Any]


class ApiError(SandboxError):
    """The daemon answered with an error."""

    def __init__(self, what: str, status: int, message: str) -> None:
        super().__init__(f"{what}: {message}")
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Address:
    """Where a daemon is. Reaching it is ``open``."""

    url: str
    tls: str = ""
    """Folder of ``ca.pem``, ``cert.pem`` and ``key.pem``, for tcp."""
    name: str = ""
    """What it is called in messages, where that is not its url."""

    def __str__(self) -> str:
        return self.name or self.url

    @asynccontextmanager
    async def open(self) -> AsyncIterator[_Connection]:
        """Open a connection; raises ``OSError`` where that fails."""
        connection = await self.connect()
        try:
            yield connection
        finally:
            await connection.close()

    async def connect(self) -> _Connection:
        """Return an open connection, to be closed by the caller."""
        parts = urlsplit(self.url)
        if parts.scheme == "unix":
            return _Connection(*await asyncio.open_unix_connection(parts.path, limit=CHUNK))
        assert parts.scheme == "tcp", "ssh goes through a tunnel"
        context = _tls(self.tls) if self.tls else None
        return _Connection(
            *await asyncio.open_connection(parts.hostname, parts.port, ssl=context, limit=CHUNK)
        )


def locate(url: str = "", tls: str = "") -> Address:
    """Return the daemon's address: the one given, else the one that the ``docker`` command would use here.

    Raises:
        ConfigError: the URL is none that can be used, or would be open to everybody on the network.
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
            f"{url} without TLS makes everybody on that network root of that machine; set tls to the folder of ca.pem, cert.pem and key.pem"
        )
    for name in ("ca.pem", "cert.pem", "key.pem") if tls else ():
        if not Path(tls, name).is_file():
            raise ConfigError(f"tls names the folder {tls!r}, which has no {name}")
    return Address(url, tls)


def _context() -> str:
    """Return the URL of the ``docker`` command's current context, if one was chosen."""
    folder = Path.home() / ".docker"
    try:
        name = json.loads((folder / "config.json").read_text()).get("currentContext", "")
        if name in {"", "default"}:
            return ""
        about = json.loads(
            (
                folder / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
            ).read_text()
        )
        return str(about["Endpoints"]["docker"]["Host"])
    except (OSError, ValueError, KeyError):
        return ""


def _tls(folder: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(Path(folder, "ca.pem")))
    context.load_cert_chain(Path(folder, "cert.pem"), Path(folder, "key.pem"))
    return context


@asynccontextmanager
async def tunnelled(address: Address) -> AsyncIterator[Address]:
    """Carry all connections to a daemon behind ssh through one, to its unix socket; any other address stays as it is.

    The other end is told to copy this end's input, which ends with this process: so does the tunnel, even if this process is killed.

    Raises:
        SandboxError: ssh does not get there; the message holds what it said.
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
                if process.returncode is not None or time.monotonic() > until:
                    said = (
                        (await process.stderr.read(TAIL)).decode(errors="replace").strip()
                        if process.returncode is not None
                        else ""
                    )
                    raise SandboxError(
                        f"{address} cannot be reached: {said or f'ssh took longer than {CONNECT_S:g} s'}"
                    )
            yield Address(f"unix://{folder}/s", name=address.url)
        finally:
            process.stdin.close()
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.kill(
                        process.pid, signal.SIGKILL
                    )  # its own 'kill' would collect it first, behind asyncio's back
            await process.wait()
            process._transport.close()  # type: ignore[attr-defined]  # or its pipes stay open until they are collected


class _Connection:
    """One connection, for one request."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        process: asyncio.subprocess.Process | None = None,
    ) -> None:
        self.reader, self.writer, self._process = reader, writer, process
        self._http = h11.Connection(h11.CLIENT)

    async def close(self) -> None:
        self.writer.close()
        self.writer.transport.abort()

    async def send(self, event: h11.Event) -> None:
        if data := self._http.send(event):
            self.writer.write(data)
            await self.writer.drain()

    async def next(self) -> h11.Event | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self.reader.read(CHUNK))
        return event  # type: ignore[return-value]  # NEED_DATA is excluded

    def left(self) -> bytes:
        """Return what came behind the response that switched protocols."""
        return self._http.trailing_data[0]


class Api:
    """A daemon's API."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._prefix = ""

    async def negotiate(self) -> Json:
        """Agree on a version of the API, and return what the daemon says about itself.

        Raises:
            SandboxError: nobody answers, or somebody else does.
        """
        about = await self.json("GET", "/version", deadline_s=20.0)
        try:
            newest = tuple(int(part) for part in str(about["ApiVersion"]).split("."))
        except (TypeError, KeyError, ValueError) as problem:
            raise SandboxError(f"what answers at {self.address} is no Docker daemon") from problem
        if newest < OLDEST:
            raise SandboxError(
                f"the daemon at {self.address} speaks version {about['ApiVersion']} of the API; 1.40 (Docker 19.03) is needed"
            )
        self._prefix = "/v{}.{}".format(*min(newest, NEWEST))
        return dict(about)

    async def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Json | IO[bytes] | None = None,
        *,
        deadline_s: float = 60.0,
    ) -> bytes:
        """Make a call and return the body of the answer. A file as ``body`` is sent as a tar archive.

        Raises:
            ApiError: the daemon answered with an error.
            SandboxError: it did not answer, or not within the deadline.
        """
        what = f"{method} {path} at {self.address}"
        async with self._reached(deadline_s), self.address.open() as connection:
            await self._ask(connection, method, path, query, body)
            response = await connection.next()
            while isinstance(response, h11.InformationalResponse):
                response = await connection.next()
            status, answer = await _rest(connection, response)
        if status >= 400:
            raise ApiError(what, status, _message(answer))
        return answer

    async def json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        *,
        deadline_s: float = 60.0,
    ) -> Any:
        """Make a call and return its decoded answer; raises as ``call``."""
        answer = await self.call(method, path, query, body, deadline_s=deadline_s)
        try:
            return json.loads(answer) if answer.strip() else None
        except ValueError as problem:
            raise SandboxError(
                f"what answers at {self.address} is no Docker daemon: {answer[:100]!r}"
            ) from problem

    async def attach(self, container: str) -> Attached:
        """Return the byte stream to the first process of a container that is not started yet; raises as ``call``."""
        path, query = (
            f"/containers/{container}/attach",
            {"stream": "1", "stdin": "1", "stdout": "1", "stderr": "1"},
        )
        async with self._reached(60.0):
            connection = await self.address.connect()
            try:
                await self._ask(connection, "POST", path, query, upgrade=True)
                response = await connection.next()
                if not isinstance(response, h11.InformationalResponse):
                    status, answer = await _rest(connection, response)
                    raise ApiError(f"attaching to {container} at {self.address}", status, _message(answer))
            except BaseException:
                await connection.close()
                raise
        return Attached(connection)

    async def _ask(
        self,
        connection: _Connection,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Json | IO[bytes] | None = None,
        *,
        upgrade: bool = False,
    ) -> None:
        """Send a request."""
        content = json.dumps(body).encode() if isinstance(body, Mapping) else b""
        headers = [("Host", "docker"), ("User-Agent", "agentrl")]
        headers += [("Connection", "Upgrade"), ("Upgrade", "tcp")] if upgrade else [("Connection", "close")]
        if body is None or isinstance(body, Mapping):
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
        else:
            headers += [("Content-Type", "application/x-tar"), ("Transfer-Encoding", "chunked")]
        target = self._prefix + quote(path) + (f"?{urlencode(query)}" if query else "")
        await connection.send(h11.Request(method=method, target=target, headers=headers))
        with suppress(ConnectionError):  # it stopped listening, to say why (a full disk)
            if content:
                await connection.send(h11.Data(data=content))
            while not (body is None or isinstance(body, Mapping)) and (
                chunk := await asyncio.to_thread(body.read, CHUNK)
            ):
                await connection.send(h11.Data(data=chunk))
            await connection.send(h11.EndOfMessage())

    @asynccontextmanager
    async def _reached(self, deadline_s: float) -> AsyncIterator[None]:
        """Say of which daemon it was that something went wrong on the way."""
        try:
            async with asyncio.timeout(deadline_s):
                yield
        except TimeoutError as late:
            raise SandboxError(
                f"the Docker daemon at {self.address} did not answer within {deadline_s:g} s"
            ) from late
        except (OSError, h11.ProtocolError) as problem:
            raise SandboxError(f"the Docker daemon at {self.address} does not answer: {problem}") from problem


async def _rest(connection: _Connection, response: object) -> tuple[int, bytes]:
    """Return the status and the body of a response."""
    assert isinstance(response, h11.Response)
    parts = []
    while isinstance(event := await connection.next(), h11.Data):
        parts.append(bytes(event.data))
    return response.status_code, b"".join(parts)


class Attached:
    """A container's standard input and output; a ``Stream`` of the back-end contract.

    Without a terminal the daemon sends frames, ``[stream, 0, 0, 0, length]`` and bytes: 1 is output, 2 is errors.
    """

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._frame, self._left, self._ahead = 0, 0, connection.left()
        self._heard = False
        self.errors = b""
        """The end of what came on standard error."""

    async def send(self, data: bytes) -> None:
        """Send all of ``data``; raises ``ConnectionError`` once the other end is gone."""
        self._connection.writer.write(data)
        await self._connection.writer.drain()

    async def receive(self) -> bytes:
        """Return some bytes of output as soon as there are any; ``b""`` once the other end is gone.

        Raises:
            SandboxError: it ended before it put out anything but errors; the message holds them.
        """
        data = await self._output()
        if not data and not self._heard and self.errors:
            raise SandboxError(
                f"a container ended before it said a word: {self.errors.decode(errors='replace').strip()[-500:]}"
            )
        self._heard = True
        return data

    async def _output(self) -> bytes:
        try:
            while True:
                while self._left == 0:
                    header = await self._exactly(8)
                    self._frame, self._left = header[0], int.from_bytes(header[4:], "big")
                data = await self._some(self._left)
                if not data:
                    return b""
                self._left -= len(data)
                if self._frame == 1:
                    return data
                self.errors = (self.errors + data)[-TAIL:]
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            return b""

    async def _exactly(self, count: int) -> bytes:
        """Read ``count`` bytes; cancelled, it has read none."""
        if len(self._ahead) < count:
            self._ahead += await self._connection.reader.readexactly(count - len(self._ahead))
        data, self._ahead = self._ahead[:count], self._ahead[count:]
        return data

    async def _some(self, most: int) -> bytes:
        if self._ahead:
            data, self._ahead = self._ahead[:most], self._ahead[most:]
            return data
        return await self._connection.reader.read(min(most, CHUNK))

    async def close(self) -> None:
        """Close both directions. Closing twice is fine."""
        await self._connection.close()


def _message(answer: bytes) -> str:
    """Return what the daemon says in an error."""
    try:
        return str(json.loads(answer)["message"]).strip()
    except (ValueError, KeyError, TypeError):
        return answer[:TAIL].decode(errors="replace").strip() or "no reason given"
