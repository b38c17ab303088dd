"""Sandboxes that are pods of a Kubernetes cluster, by the official client's asyncio half and websockets.

A sandbox is one pod with one container, which is attached to by a websocket. The container's program waits
until it is attached to, because output before that is lost; then it executes the guest, which so becomes the
container's first process. The attached stream is the container's only standard input: when it ends, the guest
exits, and the pod is completed. The reaper deletes the completed pod. In any case the cluster ends every pod
after its lifetime.

What a cluster does not guarantee is probed in a pod at the start: the limit on processes, which is a setting
of the kubelet, and whether the network plugin enforces network policies. This back end has been tested with
the real client and a server that implements the API, not with a real cluster. As with every container, the
output, here the guest's frames, is also written to the node's log files: see ``containerLogMaxSize`` of the
kubelet.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any  # Any: the client's models and responses

from agentrl.errors import ConfigError, ImageMissing, SandboxError
from agentrl.sandbox import Capabilities, Limit, Sandboxes, SandboxProvider
from agentrl.types import SandboxSpec
from agentrl_sandboxes import programs
from agentrl_sandboxes.backend import Handle, Lease
from agentrl_sandboxes.kubernetes_api import (
    AlreadyExists,
    NotFound,
    PodStream,
    answered,
    api_clients,
    check_pod,
    describe_pod,
)
from agentrl_sandboxes.leases import new_lease, reapable
from agentrl_sandboxes.pod import SANDBOX, pod, policy
from agentrl_sandboxes.pool import PoolOptions
from agentrl_sandboxes.service import serving
from agentrl_sandboxes.session import Session
from agentrl_sandboxes.tasks import to_the_end, within


@dataclass(frozen=True, kw_only=True)
class Kubernetes(SandboxProvider):
    """Sandboxes that are pods of a Kubernetes cluster."""

    base: str = ""
    """The image of the probe, and of specs that name none: any that has python3 and that the cluster can
    pull."""
    namespace: str = "default"
    config: str = ""
    """The client's configuration file. Empty uses the service account inside a pod, and elsewhere what
    ``kubectl`` would use."""
    context: str = ""
    """The context to use of the client's configuration file; empty for its current context."""
    runtime: str = ""
    """The pods' runtime class, such as gVisor's; empty for the cluster's default."""
    python: str = ""
    """The Python interpreter in the images; empty for ``/usr/bin/python3``."""
    secrets: tuple[str, ...] = ()
    """Names of the secrets for pulling images."""
    nodes: tuple[tuple[str, str], ...] = ()
    """Labels, as pairs of name and value, that a node must have so that pods may run on it."""
    ready_s: float = 300.0
    """Maximum time in which a pod is scheduled, its image pulled and its container started. The pool's
    ``start_deadline_s`` must be larger."""
    num_pulling: int = 8
    """Maximum number of images that the cluster is asked to pull at the same time, before a run."""
    unenforced: frozenset[Limit] = frozenset()
    """Limits that need not be enforced, such as ``processes`` if the kubelet sets no ``podPidsLimit``."""
    pool: PoolOptions = field(default_factory=lambda: PoolOptions(num_starting=16, start_deadline_s=360.0))

    @asynccontextmanager
    async def serve(self, *, run: str = "") -> AsyncIterator[Sandboxes]:
        """Connect to the cluster, start one pod to probe what it really enforces, and serve."""
        async with api_clients(self.config, self.context) as (core, stream, network):
            backend = KubernetesBackend(self, core, stream)
            await backend.open(network)
            async with serving(
                backend, run=run, options=self.pool, unenforced=self.unenforced, start=Session.start
            ) as sandboxes:
                yield sandboxes


class KubernetesBackend:
    """The Kubernetes back end: implements the six members of ``Backend`` with calls to the cluster's API."""

    def __init__(self, options: Kubernetes, core: Any, stream: Any) -> None:
        self.options, self._core, self._stream = options, core, stream
        self._pulling = asyncio.Semaphore(options.num_pulling)
        self._capabilities = Capabilities(isolation="container", limits=frozenset())

    @property
    def capabilities(self) -> Capabilities:
        """What the cluster really enforces, as it was probed from inside a pod at the start."""
        return self._capabilities

    async def open(self, network: Any) -> None:
        """Create the network policy that isolates sandboxes, and probe what the cluster enforces.

        Raises:
            ConfigError: the cluster cannot be used, or does not isolate.
        """
        what = f"kubernetes namespace {self.options.namespace!r} cannot be used"
        if not self.options.base:
            raise ConfigError(
                f"{what}: no image is named; set base to one that has python3 and that the cluster can pull"
            )
        try:
            with suppress(AlreadyExists):
                await answered(
                    network.create_namespaced_network_policy(self.options.namespace, dict(policy()))
                )
            report = await self._inspected()
        except (SandboxError, ImageMissing) as problem:
            raise ConfigError(f"{what}: {problem}") from problem
        own_kernel = bool(self.options.runtime) and not report["seccomp"]
        if holes := programs.holes({**report, "reaches": False}, own_kernel=own_kernel):
            raise ConfigError(
                f"{what}: it does not isolate: {'; '.join(holes)}; use another cluster or back end"
            )
        if report["service"] != "closed":
            raise ConfigError(
                f"{what}: the network of sandboxes is not closed "
                f"(a pod finds the API server {report['service']}); "
                "use a network plugin that enforces network policies"
            )
        self._capabilities = Capabilities(
            isolation="kernel" if own_kernel else "container",
            limits=programs.enforced(report) | {"files"},  # the guest sets this limit for each command
        )

    async def _inspected(self) -> Mapping[str, Any]:
        """Return what the program ``programs.PROBE`` reports in a pod."""
        handle = await self.create(
            programs.SPEC,
            new_lease(run="probe", lifetime_s=120.0),
            [self._python, "-I", "-S", "-c", programs.PROBE],
        )
        output = b""
        try:
            stream = await self.open_stream(handle)
            try:
                async with asyncio.timeout(60.0):
                    while data := await stream.receive():
                        output += data
                return programs.report(output)
            finally:
                await stream.close()
        except (TimeoutError, ValueError) as problem:
            raise SandboxError(f"the probe wrote {output[-200:]!r}") from problem
        finally:
            await self.destroy(handle)

    @property
    def _python(self) -> str:
        return self.options.python or programs.PYTHON

    def _image(self, image: str) -> str:
        return image or self.options.base

    async def prepare(self, image: str) -> None:
        """Have the cluster pull an image, by a pod that starts and ends: the API offers no other way."""
        async with self._pulling:
            spec = SandboxSpec(image=image, lifetime_s=self.options.ready_s)
            lease = new_lease(run="pull", lifetime_s=self.options.ready_s)
            await self.destroy(await self.create(spec, lease, [self._python, "-c", ""]))

    async def create(self, spec: SandboxSpec, lease: Lease, command: Sequence[str]) -> Handle:
        """Create a pod and wait until it runs. If that is cancelled or fails, nothing is left."""
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
            answered(self._core.create_namespaced_pod(options.namespace, dict(body)))
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
        """Wait until the container of a pod runs."""
        until, wait, state = time.monotonic() + self.options.ready_s, 0.05, "unknown"
        while time.monotonic() < until:
            found = await answered(self._core.read_namespaced_pod(name, self.options.namespace))
            status = found.status
            states = {
                one.name: one.state
                for one in [*(status.init_container_statuses or ()), *(status.container_statuses or ())]
            }
            running = states.get(SANDBOX)
            if running is not None and running.running is not None:
                return
            check_pod(name, status, states)
            state = describe_pod(status, states)
            await asyncio.sleep(wait)
            wait = min(1.5 * wait, 1.0)
        raise SandboxError(f"pod {name} did not run within {self.options.ready_s:g} s: {state}")

    async def open_stream(self, handle: Handle) -> PodStream:
        """Attach to the container, and make its program execute the guest."""
        opening = self._stream.connect_get_namespaced_pod_attach_without_preload_content(
            handle.id,
            self.options.namespace,
            container=SANDBOX,
            stdin=True,
            stdout=True,
            stderr=True,
            tty=False,
        )
        stream = PodStream(await answered(opening))
        try:
            await stream.open()
            await stream.send(programs.END)
            if await stream.receive() != programs.COPIED:
                raise SandboxError(f"pod {handle.id} could not be attached to: {stream.why()}")
        except BaseException:
            await stream.close()
            raise
        return stream

    async def destroy(self, handle: Handle) -> None:
        """Delete the pod without a grace period; return when it is gone."""
        wait = 0.02
        async with within(60.0, f"deleting pod {handle.id}"):
            while True:
                try:
                    await answered(
                        self._core.delete_namespaced_pod(
                            handle.id, self.options.namespace, grace_period_seconds=0
                        )
                    )
                    await asyncio.sleep(wait)
                    wait = min(2 * wait, 1.0)
                except NotFound:
                    return

    async def reap(self, now: float) -> int:
        """Delete our pods whose owner is dead or whose deadline has passed; return their number."""
        found = await answered(
            self._core.list_namespaced_pod(self.options.namespace, label_selector="agentrl.lease")
        )
        names = [one.metadata.name for one in found.items if reapable(one.metadata.annotations or {}, now)]
        await asyncio.gather(*(self.destroy(Handle(name)) for name in names))
        return len(names)
