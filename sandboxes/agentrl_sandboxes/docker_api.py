"""A client of the Docker Engine API, for the calls that sandboxes need; podman's service offers the same API.

The ``docker`` package makes blocking calls: it would need a thread for each sandbox, applies no deadline to
attached streams, and returns three kinds of sockets for three transports, two of which asyncio cannot use.
Sandboxes need a dozen calls and one byte stream, so this client sends HTTP (h11) over connections that
asyncio opens. Each call has its own connection, so a cancelled call does not disturb others.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import IO, Any  # Any: decoded JSON
from urllib.parse import quote, urlencode

import h11

from agentrl.errors import SandboxError
from agentrl_sandboxes.docker_address import CHUNK, TAIL, Address, Connection

NEWEST, OLDEST = (1, 44), (1, 40)
"""The newest and the oldest usable version of the API; Docker 19.03 and podman 3 have the oldest."""

Json = Mapping[str, Any]


class ApiError(SandboxError):
    """The daemon answered a call with an error."""

    def __init__(self, what: str, status: int, message: str) -> None:
        super().__init__(f"{what}: {message}")
        self.status = status
        self.message = message


class Api:
    """The Engine API of one daemon."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._prefix = ""

    async def negotiate(self) -> Json:
        """Choose the version of the API, and return the daemon's description of itself.

        Raises:
            SandboxError: the daemon does not answer, is too old, or is not a Docker daemon.
        """
        about = await self.json("GET", "/version", deadline_s=20.0)
        try:
            newest = tuple(int(part) for part in str(about["ApiVersion"]).split("."))
        except (TypeError, KeyError, ValueError) as problem:
            raise SandboxError(f"the server at {self.address} is not a Docker daemon") from problem
        if newest < OLDEST:
            raise SandboxError(
                f"the daemon at {self.address} has version {about['ApiVersion']} of the API; "
                "1.40 (Docker 19.03) or newer is needed"
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
        """Make a call and return the body of the answer. If ``body`` is a file, it is sent as a tar archive.

        Raises:
            ApiError: the daemon answered with an error.
            SandboxError: the daemon did not answer within the deadline.
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
        """Make a call and return its answer, decoded from JSON.

        It raises the same errors as ``call``, and ``SandboxError`` if the answer is not JSON.
        """
        answer = await self.call(method, path, query, body, deadline_s=deadline_s)
        try:
            return json.loads(answer) if answer.strip() else None
        except ValueError as problem:
            raise SandboxError(
                f"the server at {self.address} is not a Docker daemon: it answered {answer[:100]!r}"
            ) from problem

    async def attach(self, container: str) -> Attached:
        """Return the stream to the first process of a container that has not started yet.

        It raises the same errors as ``call``.
        """
        path = f"/containers/{container}/attach"
        query = {"stream": "1", "stdin": "1", "stdout": "1", "stderr": "1"}
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
        connection: Connection,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Json | IO[bytes] | None = None,
        *,
        upgrade: bool = False,
    ) -> None:
        """Send a request. A mapping as ``body`` is sent as JSON, and a file as a tar archive."""
        content = json.dumps(body).encode() if isinstance(body, Mapping) else b""
        headers = [("Host", "docker"), ("User-Agent", "agentrl")]
        headers += [("Connection", "Upgrade"), ("Upgrade", "tcp")] if upgrade else [("Connection", "close")]
        if body is None or isinstance(body, Mapping):
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
        else:
            headers += [("Content-Type", "application/x-tar"), ("Transfer-Encoding", "chunked")]
        target = self._prefix + quote(path) + (f"?{urlencode(query)}" if query else "")
        await connection.send(h11.Request(method=method, target=target, headers=headers))
        with suppress(ConnectionError):  # the daemon stopped reading, and its answer says why (a full disk)
            if content:
                await connection.send(h11.Data(data=content))
            if body is not None and not isinstance(body, Mapping):
                while chunk := await asyncio.to_thread(body.read, CHUNK):
                    await connection.send(h11.Data(data=chunk))
            await connection.send(h11.EndOfMessage())

    @asynccontextmanager
    async def _reached(self, deadline_s: float) -> AsyncIterator[None]:
        """Give a call its deadline, and turn errors of the connection into errors that name the daemon."""
        try:
            async with asyncio.timeout(deadline_s):
                yield
        except TimeoutError as late:
            raise SandboxError(
                f"the Docker daemon at {self.address} did not answer within {deadline_s:g} s"
            ) from late
        except (OSError, h11.ProtocolError) as problem:
            raise SandboxError(f"the Docker daemon at {self.address} does not answer: {problem}") from problem


async def _rest(connection: Connection, response: object) -> tuple[int, bytes]:
    """Read the rest of a response, and return its status and its body."""
    assert isinstance(response, h11.Response)
    parts = []
    while isinstance(event := await connection.next(), h11.Data):
        parts.append(bytes(event.data))
    return response.status_code, b"".join(parts)


class Attached:
    """The standard input and output of a container; a ``Stream`` of ``backend``.

    Because the container has no terminal, the daemon sends frames. A frame is a header, ``[stream, 0, 0, 0,
    length]``, and ``length`` bytes; stream 1 is standard output, and stream 2 standard error.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._frame, self._left, self._ahead = 0, 0, connection.trailing()
        self._heard = False
        self.errors = b""
        """The last bytes that arrived on standard error."""

    async def send(self, data: bytes) -> None:
        """Send all of ``data``; raise ``ConnectionError`` once the other end is gone."""
        self._connection.writer.write(data)
        await self._connection.writer.drain()

    async def receive(self) -> bytes:
        """Wait for some bytes of output and return them; ``b""`` once the other end is gone.

        Raises:
            SandboxError: the container ended and had sent nothing but errors; the message holds them.
        """
        data = await self._output()
        if not data and not self._heard and self.errors:
            errors = self.errors.decode(errors="replace").strip()[-500:]
            raise SandboxError(f"a container ended before it sent anything: {errors}")
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
        """Read ``count`` bytes; if cancelled, consume none."""
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
        """Close both directions. May be called more than once."""
        await self._connection.close()


def _message(answer: bytes) -> str:
    """Return the message in the daemon's answer to a call that failed."""
    try:
        return str(json.loads(answer)["message"]).strip()
    except (ValueError, KeyError, TypeError):
        return answer[:TAIL].decode(errors="replace").strip() or "no reason given"
