"""Sandboxes that are pods of a Kubernetes cluster, over the official client's asyncio half and its websockets.

A sandbox is one pod with one container, attached to by websocket. Its program waits until it is attached, for what a container says before
that is lost; then it is the guest, the container's first process. The attached stream is the container's only standard input: when it ends,
so does the guest, and the pod is done; the reaper removes the record. The cluster ends every pod after its lifetime in any case.

What a cluster does not promise is probed in a pod at the start: the number of processes (a setting of the kubelet), and whether its network
plugin heeds network policies. This has been run against the real client and a server that speaks the API, not against a real
cluster. The container's output, which is the guest's frames, goes to the node's log files as every container's does: see
``containerLogMaxSize`` of the kubelet.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any  # Any: the client's models and responses

from agentrl.errors import ConfigError, ImageMissing, MissingExtra, SandboxError, boundary
from agentrl.sandbox import Capabilities, Limit, Sandboxes, SandboxProvider
from agentrl.types import SandboxSpec
from agentrl_sandboxes import inside
from agentrl_sandboxes.backend import Handle, Lease
from agentrl_sandboxes.leases import new_lease, reapable
from agentrl_sandboxes.pod import FILL, SANDBOX, pod, policy
from agentrl_sandboxes.pool import PoolOptions
from agentrl_sandboxes.service import serving
from agentrl_sandboxes.session import Session
from agentrl_sandboxes.tasks import to_the_end

GONE, CONFLICT, TOO_MANY = 404, 409, 429
FRAME = 1 << 20
"""Bytes in one websocket message; longer ones reset the connection."""
HEARTBEAT_S = 30.0
STDIN, STDOUT, STDERR, STATUS = range(4)
"""Channels of the attach protocol: the first byte of each message."""
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


@dataclass(frozen=True, kw_only=True)
class Kubernetes(SandboxProvider):
    """Sandboxes that are pods."""

    base: str = ""
    """The image of specs that name none, and of the probe: any that the cluster can pull and that has python3."""
    namespace: str = "default"
    config: str = ""
    """The client's configuration file; empty for the service account inside a pod, else what ``kubectl`` would use."""
    context: str = ""
    """Of that file; empty for its current one."""
    runtime: str = ""
    """The pods' runtime class, such as gVisor's; empty for the cluster's default."""
    python: str = ""
    """The interpreter in the images; empty for ``/usr/bin/python3``."""
    secrets: tuple[str, ...] = ()
    """Names of the secrets to pull images with."""
    nodes: tuple[tuple[str, str], ...] = ()
    """Labels of the nodes that pods may run on."""
    ready_s: float = 300.0
    """How long a pod may take to be scheduled, pulled and started. Keep the pool's ``start_deadline_s`` above it."""
    num_pulling: int = 8
    """Images that are tried at the same time before a run."""
    unenforced: frozenset[Limit] = frozenset()
    """Limits whose lack is accepted, such as ``processes`` where the kubelet sets no ``podPidsLimit``."""
    pool: PoolOptions = field(default_factory=lambda: PoolOptions(num_starting=16, start_deadline_s=360.0))

    @asynccontextmanager
    async def serve(self, *, run: str = "") -> AsyncIterator[Sandboxes]:
        """Reach the cluster, start one pod to see what it really enforces, and serve; raises as the contract says."""
        async with _client(self) as (core, stream, network):
            backend = KubernetesBackend(self, core, stream)
            await backend.open(network)
            async with serving(
                backend, run=run, options=self.pool, unenforced=self.unenforced, start=Session.start
            ) as sandboxes:
                yield sandboxes


def _library() -> tuple[ModuleType, ModuleType, ModuleType]:
    """Return the client's modules: API, configuration, streams."""
    try:
        from kubernetes.aio import client, config, stream
    except ImportError as problem:
        raise MissingExtra(
            "kubernetes sandboxes need the package 'kubernetes' from version 37 on; in agentrl's folder: pip install '.[kubernetes]'"
        ) from problem
    return client, config, stream


@asynccontextmanager
async def _client(options: Kubernetes) -> AsyncIterator[tuple[Any, Any, Any]]:
    """Open the APIs: pods, attached streams (which need a client object of their own), network policies."""
    client, config, stream = _library()
    configuration = client.Configuration()
    try:
        if options.config or options.context:
            raise config.ConfigException("one is named")
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        with boundary(
            ConfigError,
            "no Kubernetes cluster is configured (see 'kubectl config view'): reading the configuration",
        ):
            await config.load_kube_config(
                options.config or None, context=options.context or None, client_configuration=configuration
            )
    async with (
        client.ApiClient(configuration) as plain,
        stream.WsApiClient(configuration, heartbeat=HEARTBEAT_S) as streams,
    ):
        yield client.CoreV1Api(plain), client.CoreV1Api(streams), client.NetworkingV1Api(plain)


class KubernetesBackend:
    """The six members over a cluster."""

    def __init__(self, options: Kubernetes, core: Any, stream: Any) -> None:
        self.options, self._core, self._stream = options, core, stream
        self._pulling = asyncio.Semaphore(options.num_pulling)
        self._capabilities = Capabilities(isolation="container", limits=frozenset())

    @property
    def capabilities(self) -> Capabilities:
        """What was read back inside a pod at the start."""
        return self._capabilities

    async def open(self, network: Any) -> None:
        """Close the namespace's network for sandboxes, and probe what the cluster enforces.

        Raises:
            ConfigError: it cannot be used, or does not isolate.
        """
        what = f"kubernetes namespace {self.options.namespace!r} cannot be used"
        if not self.options.base:
            raise ConfigError(
                f"{what}: no image is named; set base to one that the cluster can pull and that has python3"
            )
        try:
            with suppress(_Conflict):
                await _asked(network.create_namespaced_network_policy(self.options.namespace, dict(policy())))
            report = await self._inspected()
        except (SandboxError, ImageMissing) as problem:
            raise ConfigError(f"{what}: {problem}") from problem
        own_kernel = bool(self.options.runtime) and not report["seccomp"]
        if holes := inside.holes({**report, "reaches": False}, own_kernel=own_kernel):
            raise ConfigError(
                f"{what}: it does not isolate: {'; '.join(holes)}; take another cluster or back end"
            )
        if report["service"] != "closed":
            raise ConfigError(
                f"{what}: the network of sandboxes is not closed (a pod finds the API server {report['service']}); "
                "use a network plugin that heeds network policies"
            )
        self._capabilities = Capabilities(
            isolation="kernel" if own_kernel else "container",
            limits=inside.enforced(report) | {"files"},  # which the guest sets for each command, for good
        )

    async def _inspected(self) -> Mapping[str, Any]:
        """Return what the program ``inside.PROBE`` says in a pod."""
        handle = await self.create(
            inside.SPEC,
            new_lease(run="probe", lifetime_s=120.0),
            [self._python, "-I", "-S", "-c", inside.PROBE],
        )
        said = b""
        try:
            stream = await self.open_stream(handle)
            try:
                async with asyncio.timeout(60.0):
                    while data := await stream.receive():
                        said += data
                return inside.report(said)
            finally:
                await stream.close()
        except (TimeoutError, ValueError) as problem:
            raise SandboxError(f"the probe said {said[-200:]!r}") from problem
        finally:
            await self.destroy(handle)

    @property
    def _python(self) -> str:
        return self.options.python or inside.PYTHON

    def _image(self, image: str) -> str:
        return image or self.options.base

    async def prepare(self, image: str) -> None:
        """Have the cluster pull an image, with a pod that starts and ends: there is no other way to ask whether it can."""
        async with self._pulling:
            spec = SandboxSpec(image=image, lifetime_s=self.options.ready_s)
            await self.destroy(
                await self.create(
                    spec, new_lease(run="pull", lifetime_s=self.options.ready_s), [self._python, "-c", ""]
                )
            )

    async def create(self, spec: SandboxSpec, lease: Lease, command: Sequence[str]) -> Handle:
        """Create a pod and wait until it runs; cancelled or failed, it leaves nothing."""
        line = [self._python, *command[1:]] if self.options.python else list(command)
        options = self.options
        body = pod(
            spec,
            lease,
            self._image(spec.image),
            line,
            runtime=options.runtime,
            secrets=options.secrets,
            nodes=dict(options.nodes),
        )
        handle = Handle(lease.id)
        making = asyncio.ensure_future(
            _asked(self._core.create_namespaced_pod(options.namespace, dict(body)))
        )
        try:
            await asyncio.shield(making)
            await self._running(lease.id)
        except BaseException:
            await to_the_end(self._undo(making, handle))
            raise
        return handle

    async def _undo(self, making: asyncio.Future[Any], handle: Handle) -> None:
        with suppress(SandboxError):
            await making
        await self.destroy(handle)

    async def _running(self, name: str) -> None:
        """Wait until a pod's container runs."""
        until, wait, state = time.monotonic() + self.options.ready_s, 0.05, "unknown"
        while time.monotonic() < until:
            found = await _asked(self._core.read_namespaced_pod(name, self.options.namespace))
            status = found.status
            states = {
                one.name: one.state
                for one in [*(status.init_container_statuses or ()), *(status.container_statuses or ())]
            }
            running = states.get(SANDBOX)
            if running is not None and running.running is not None:
                return
            _check(name, status, states)
            state = _described(status, states)
            await asyncio.sleep(wait)
            wait = min(1.5 * wait, 1.0)
        raise SandboxError(f"pod {name} did not run within {self.options.ready_s:g} s: {state}")

    async def open_stream(self, handle: Handle) -> PodStream:
        """Attach to the container, and let its program go on."""
        opening = self._stream.connect_get_namespaced_pod_attach_without_preload_content(
            handle.id,
            self.options.namespace,
            container=SANDBOX,
            stdin=True,
            stdout=True,
            stderr=True,
            tty=False,
        )
        stream = PodStream(await _asked(opening))
        try:
            await stream.open()
            await stream.send(inside.END)
            if await stream.receive() != inside.COPIED:
                raise SandboxError(f"pod {handle.id} could not be attached to: {stream.why()}")
        except BaseException:
            await stream.close()
            raise
        return stream

    async def destroy(self, handle: Handle) -> None:
        """Delete the pod at once, and wait until it is gone."""
        wait = 0.02
        async with _deadline(60.0, f"deleting pod {handle.id}"):
            while True:
                try:
                    await _asked(
                        self._core.delete_namespaced_pod(
                            handle.id, self.options.namespace, grace_period_seconds=0
                        )
                    )
                    await asyncio.sleep(wait)
                    wait = min(2 * wait, 1.0)
                except _Gone:
                    return

    async def reap(self, now: float) -> int:
        """Delete pods of ours whose owner is dead or whose deadline passed."""
        found = await _asked(
            self._core.list_namespaced_pod(self.options.namespace, label_selector="agentrl.lease")
        )
        names = [one.metadata.name for one in found.items if reapable(one.metadata.annotations or {}, now)]
        await asyncio.gather(*(self.destroy(Handle(name)) for name in names))
        return len(names)


class PodStream:
    """A container's standard input and output over a websocket; a ``Stream`` of the back-end contract."""

    def __init__(self, opening: Any) -> None:
        self._opening = opening
        self._socket: Any = None
        self._ahead: deque[bytes] = deque()
        self._errors, self._status = b"", ""

    async def open(self) -> None:
        """Shake hands; raises ``SandboxError`` where that fails."""
        async with _deadline(60.0, "attaching to a pod"):
            self._socket = await _asked(self._opening)

    def why(self) -> str:
        """Return what is known about why it ended."""
        return self._errors.decode(errors="replace").strip() or self._status or "it ended without a word"

    async def send(self, data: bytes) -> None:
        """Send all of ``data``, in messages the API server takes."""
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
        """Close both directions. Closing twice is fine."""
        if self._socket is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    await self._socket.close()


class _Gone(SandboxError):
    """There is no such thing, or not any more."""


class _Conflict(SandboxError):
    """There is such a thing already."""


async def _asked(answer: Any) -> Any:
    """Wait for the API's answer; whatever goes wrong on the way is a ``SandboxError``."""
    import aiohttp

    client, _, _ = _library()
    try:
        return await answer
    except client.ApiException as problem:
        try:
            reason = json.loads(problem.body)["message"]
        except (TypeError, ValueError, KeyError):
            reason = problem.reason
        kind = {GONE: _Gone, CONFLICT: _Conflict}.get(problem.status or 0, SandboxError)
        raise kind(f"the Kubernetes API answered {problem.status}: {reason}") from problem
    except aiohttp.WSServerHandshakeError as problem:
        kind = _Gone if problem.status == GONE else SandboxError
        raise kind(f"the Kubernetes API refused to attach: {problem.status} {problem.message}") from problem
    except (aiohttp.ClientError, OSError) as problem:
        raise SandboxError(f"the Kubernetes API does not answer: {problem}") from problem


def _check(name: str, status: Any, states: Mapping[str, Any]) -> None:
    """Raise what is known about a pod that will never run."""
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
            said = f"{ended.reason or 'exit'} {ended.exit_code}: {ended.message or 'no reason given'}"
            raise SandboxError(
                f"pod {name} ended before it could be attached to: container {container}: {said}"
            )
    if status.phase in {"Failed", "Succeeded"}:
        raise SandboxError(
            f"pod {name} ended before it could be attached to: {status.reason or status.phase}: {status.message or ''}"
        )


def _described(status: Any, states: Mapping[str, Any]) -> str:
    """Say how far a pod came."""
    waits = [f"{name}: {state.waiting.reason}" for name, state in states.items() if state.waiting is not None]
    unmet = [
        f"{one.type}: {one.message}"
        for one in status.conditions or ()
        if one.status == "False" and one.message
    ]
    return "; ".join([str(status.phase), *waits, *unmet])


@asynccontextmanager
async def _deadline(seconds: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as late:
        raise SandboxError(f"{what} took longer than {seconds:g} s") from late
