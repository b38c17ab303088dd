"""The Kubernetes API as sandboxes use it: its client and errors, the state of a pod, and streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from types import ModuleType
from typing import Any  # Any: the client's models and responses

from agentrl.errors import ConfigError, ImageMissing, MissingExtra, SandboxError, boundary
from agentrl_sandboxes.pod import FILL
from agentrl_sandboxes.tasks import within

GONE, CONFLICT = 404, 409
FRAME = 1 << 20
"""Maximum number of bytes in one websocket message; a longer message resets the connection."""
HEARTBEAT_S = 30.0
STDIN, STDOUT, STDERR, STATUS = range(4)
"""Channels of the attach protocol; each message begins with the byte of its channel."""
NOT_PULLED = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
NOT_STARTED = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "StartError",
        "ContainerCannotRun",
    }
)
TAIL = 4096
"""Number of bytes of a container's standard error, and of its status, that are kept for error messages."""


def _library() -> tuple[ModuleType, ModuleType, ModuleType]:
    """Return three modules of the official client: those for the API, the configuration and streams."""
    try:
        from kubernetes.aio import client, config, stream
    except ImportError as problem:
        raise MissingExtra(
            "kubernetes sandboxes need the package 'kubernetes', version 37 or newer; "
            "in agentrl's folder: pip install '.[kubernetes]'"
        ) from problem
    return client, config, stream


@asynccontextmanager
async def api_clients(config_file: str, context: str) -> AsyncIterator[tuple[Any, Any, Any]]:
    """Open the APIs of pods, of attached streams (which need their own client), and of network policies."""
    client, config, stream = _library()
    configuration = client.Configuration()
    try:
        if config_file or context:
            raise config.ConfigException("a configuration is named, so that of the pod is not used")
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        with boundary(
            ConfigError,
            "no Kubernetes cluster is configured (see 'kubectl config view'): reading the configuration",
        ):
            await config.load_kube_config(
                config_file or None, context=context or None, client_configuration=configuration
            )
    async with (
        client.ApiClient(configuration) as plain,
        stream.WsApiClient(configuration, heartbeat=HEARTBEAT_S) as streams,
    ):
        yield client.CoreV1Api(plain), client.CoreV1Api(streams), client.NetworkingV1Api(plain)


class NotFound(SandboxError):
    """The object does not exist, or does not exist any more."""


class AlreadyExists(SandboxError):
    """An object of this name exists already."""


async def answered(answer: Any) -> Any:
    """Wait for the answer of the API; every error is a ``SandboxError``."""
    import aiohttp

    client, _, _ = _library()
    try:
        return await answer
    except client.ApiException as problem:
        try:
            reason = json.loads(problem.body)["message"]
        except (TypeError, ValueError, KeyError):
            reason = problem.reason
        kind = {GONE: NotFound, CONFLICT: AlreadyExists}.get(problem.status or 0, SandboxError)
        raise kind(f"the Kubernetes API answered {problem.status}: {reason}") from problem
    except aiohttp.WSServerHandshakeError as problem:
        kind = NotFound if problem.status == GONE else SandboxError
        raise kind(f"the Kubernetes API refused to attach: {problem.status} {problem.message}") from problem
    except (aiohttp.ClientError, OSError) as problem:
        raise SandboxError(f"the Kubernetes API does not answer: {problem}") from problem


def check_pod(name: str, status: Any, states: Mapping[str, Any]) -> None:
    """Raise the reason if a pod will never run; ``states`` has the states of its containers by name."""
    for container, state in states.items():
        waiting, ended = state.waiting, state.terminated
        if waiting is not None and waiting.reason in NOT_PULLED:
            raise ImageMissing(
                f"the cluster cannot pull the image: {waiting.reason}: {waiting.message or 'no reason given'}"
            )
        if waiting is not None and waiting.reason in NOT_STARTED:
            raise SandboxError(
                f"pod {name} cannot start: {waiting.reason}: {waiting.message or 'no reason given'}"
            )
        if ended is not None and not (container == FILL and ended.exit_code == 0):
            reason = f"{ended.reason or 'exit'} {ended.exit_code}: {ended.message or 'no reason given'}"
            raise SandboxError(
                f"pod {name} ended before it could be attached to: container {container}: {reason}"
            )
    if status.phase in {"Failed", "Succeeded"}:
        reason = f"{status.reason or status.phase}: {status.message or ''}"
        raise SandboxError(f"pod {name} ended before it could be attached to: {reason}")


def describe_pod(status: Any, states: Mapping[str, Any]) -> str:
    """Describe the state of a pod that does not run yet; ``states`` has its containers' states by name."""
    waits = [f"{name}: {state.waiting.reason}" for name, state in states.items() if state.waiting is not None]
    unmet = [
        f"{one.type}: {one.message}"
        for one in status.conditions or ()
        if one.status == "False" and one.message
    ]
    return "; ".join([str(status.phase), *waits, *unmet])


class PodStream:
    """The standard input and output of a container, through a websocket; a ``Stream`` of ``backend``."""

    def __init__(self, opening: Any) -> None:
        self._opening = opening
        self._socket: Any = None
        self._errors, self._status = b"", ""

    async def open(self) -> None:
        """Open the websocket; raise ``SandboxError`` if that fails."""
        async with within(60.0, "attaching to a pod"):
            self._socket = await answered(self._opening)

    def why(self) -> str:
        """Return what is known about why the container ended."""
        return self._errors.decode(errors="replace").strip() or self._status or "it ended without an error"

    async def send(self, data: bytes) -> None:
        """Send all of ``data``, in messages that the API server accepts."""
        view = memoryview(data)
        while view:
            if self._socket.closed:
                raise ConnectionError(f"the pod is gone: {self.why()}")
            await self._socket.send_bytes(bytes((STDIN,)) + view[: FRAME - 1])
            view = view[FRAME - 1 :]

    async def receive(self) -> bytes:
        """Return some bytes of output; ``b""`` once the other end is gone."""
        import aiohttp

        while True:
            message = await self._socket.receive()
            if message.type is aiohttp.WSMsgType.TEXT:
                data = message.data.encode()
            elif message.type is aiohttp.WSMsgType.BINARY:
                data = message.data
            else:
                return b""
            channel, data = data[0] if data else STDERR, data[1:]
            if channel == STDOUT and data:
                return bytes(data)
            if channel == STDERR:
                self._errors = (self._errors + data)[-TAIL:]
            elif channel == STATUS:
                self._status = data.decode(errors="replace")[-TAIL:]

    async def close(self) -> None:
        """Close both directions. May be called more than once."""
        if self._socket is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    await self._socket.close()
