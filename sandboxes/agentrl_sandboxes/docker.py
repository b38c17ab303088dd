"""Sandboxes that are hardened containers of a Docker daemon, here or elsewhere, or of podman's service.

A sandbox is one container. Its main process is the guest, which is attached to before it starts. When the
attached connection ends, for whatever reason, the guest's input ends, so the guest exits, and with it the
container, which then removes itself.

A container has no network, no capabilities and no way to gain any, an unprivileged user, a read-only root
file system, and a tmpfs of limited size for each writable folder. What the image has in such a folder is
copied into the tmpfs at the start. The daemon is not trusted to do all this: ``serve`` starts one sandbox,
checks everything from inside, and refuses a daemon that does not isolate.

Written files are kept in memory, and count against ``memory_mib`` as well as ``disk_mib``: no common storage
driver has quotas.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any  # Any: the API's JSON

from agentrl.errors import ConfigError, ImageMissing, SandboxError
from agentrl.sandbox import Capabilities, Limit, Sandboxes, SandboxProvider
from agentrl.types import SandboxSpec
from agentrl_sandboxes import images, programs
from agentrl_sandboxes.backend import Handle, Lease
from agentrl_sandboxes.container import MIB, ContainerEngine, DaemonImage, container, folders
from agentrl_sandboxes.docker_address import Address, locate, tunnelled
from agentrl_sandboxes.docker_api import Api, ApiError, Attached
from agentrl_sandboxes.leases import new_lease, reapable
from agentrl_sandboxes.pool import PoolOptions
from agentrl_sandboxes.service import serving
from agentrl_sandboxes.session import Session
from agentrl_sandboxes.tasks import to_the_end, within

log = logging.getLogger(__name__)

GONE, CONFLICT, BROKEN = 404, 409, 500
PULL_S, COPY_S, REMOVE_S = 3600.0, 300.0, 20.0
MEND = "load it there ('docker load'), or build one of this name: 'agentrl images build'"
CONTENT_KEPT = 256 * MIB
"""Number of bytes of images' folders that may stay in memory, to be copied into more containers."""


@dataclass(frozen=True, kw_only=True)
class Docker(SandboxProvider):
    """Sandboxes that are containers of a Docker daemon or of podman."""

    url: str = ""
    """``unix:///PATH``, ``tcp://HOST:PORT`` with ``tls``, or ``ssh://USER@HOST[/PATH]``; empty for the daemon
    that the ``docker`` command would use."""
    tls: str = ""
    """Folder of ``ca.pem``, ``cert.pem`` and ``key.pem``, for a ``url`` that begins with ``tcp``."""
    base: str = ""
    """The image of specs that name none; empty for agentrl's base image, which is built and imported if it is
    missing."""
    pull: bool = True
    """Whether images that the daemon does not have may be pulled from their registry."""
    runtime: str = ""
    """A runtime of the daemon, such as gVisor's ``runsc`` with ``--network=none``; empty for the daemon's
    default."""
    python: str = ""
    """The Python interpreter in the images; empty for ``/usr/bin/python3``."""
    open_network: str = ""
    """The daemon's network that sandboxes with ``network="open"`` in their spec join. If empty, such specs
    are refused. From this network, a sandbox can also reach this machine."""
    unenforced: frozenset[Limit] = frozenset()
    """Limits that need not be enforced; rootless daemons do not enforce all limits."""
    pool: PoolOptions = field(default_factory=PoolOptions)

    @asynccontextmanager
    async def serve(self, *, run: str = "") -> AsyncIterator[Sandboxes]:
        """Connect, start one sandbox to probe what the daemon really enforces, and serve."""
        async with AsyncExitStack() as stack:
            try:
                address = await stack.enter_async_context(tunnelled(locate(self.url, self.tls)))
            except SandboxError as problem:
                raise ConfigError(f"docker cannot be used: {problem}") from problem
            backend = await DockerBackend.connect(self, address)
            sandboxes = await stack.enter_async_context(
                serving(backend, run=run, options=self.pool, unenforced=self.unenforced, start=Session.start)
            )
            yield sandboxes


class DockerBackend:
    """The Docker back end: implements the six members of ``Backend`` with calls to a daemon."""

    def __init__(self, api: Api, options: Docker) -> None:
        self.api, self.options = api, options
        self.engine = ContainerEngine(options.runtime, options.open_network)
        self._images: dict[str, DaemonImage] = {}
        self._content: dict[tuple[str, tuple[str, ...]], Mapping[str, bytes]] = {}
        self._reading = asyncio.Lock()
        self._capabilities = Capabilities(isolation="container", limits=frozenset())

    @classmethod
    async def connect(cls, options: Docker, address: Address | None = None) -> DockerBackend:
        """Connect to the daemon and probe it.

        Raises:
            ConfigError: the daemon does not answer, or does not isolate.
        """
        api = Api(address or locate(options.url, options.tls))
        try:
            about = await api.negotiate()
        except SandboxError as problem:
            raise ConfigError(
                f"docker cannot be used: {problem}; "
                "start the daemon (or 'podman system service'), or name another as url='ssh://...'"
            ) from problem
        backend = cls(api, options)
        if "podman" in json.dumps(about).lower():
            backend.engine = replace(backend.engine, podman=True)
        await backend._probe(str(about.get("KernelVersion", "")))
        return backend

    @property
    def capabilities(self) -> Capabilities:
        """What the daemon really enforces, as it was probed from inside a sandbox at the start."""
        return self._capabilities

    async def _probe(self, kernel: str) -> None:
        """Start a sandbox with small limits, and check from inside what is enforced."""
        try:
            await self.prepare("")
            report = await self._inspected(programs.SPEC)
        except (SandboxError, ImageMissing) as problem:
            raise ConfigError(
                f"docker at {self.api.address} cannot be used: "
                f"the sandbox that was started to probe it failed: {problem}"
            ) from problem
        own_kernel = bool(kernel) and report["kernel"] != kernel
        if holes := programs.holes(report, own_kernel=own_kernel):
            raise ConfigError(
                f"docker at {self.api.address} does not isolate: {'; '.join(holes)}; "
                "use another daemon or back end"
            )
        self._capabilities = Capabilities(
            isolation="kernel" if own_kernel else "container",
            limits=programs.enforced(report),
            networks=frozenset({"none", "open"} if self.options.open_network else {"none"}),
        )

    async def _inspected(self, spec: SandboxSpec) -> Mapping[str, Any]:
        """Return what the program ``programs.PROBE`` reports in a sandbox of this spec."""
        handle = await self.create(
            spec,
            new_lease(run="probe", lifetime_s=60.0),
            [self.options.python or programs.PYTHON, "-I", "-S", "-c", programs.PROBE],
        )
        stream = await self.open_stream(handle)
        try:
            async with asyncio.timeout(60.0):
                output = b""
                while data := await stream.receive():
                    output += data
            return programs.report(output)
        except (TimeoutError, ValueError) as problem:
            raise SandboxError(
                f"the probe wrote {output[-200:]!r}, and to standard error {stream.errors[-500:]!r}"
            ) from problem
        finally:
            await self.destroy(handle)

    async def prepare(self, image: str) -> None:
        """Make sure that the daemon has an image.

        A missing image is imported if agentrl built it, and pulled otherwise.
        """
        name = image or self.options.base
        try:
            ours = await asyncio.to_thread(images.find, name)
        except ImageMissing:
            if not name:
                raise
            self._images[image] = await self._foreign(name)
        else:
            self._images[image] = await self._imported(ours)

    async def _foreign(self, name: str) -> DaemonImage:
        """Return an image that agentrl did not build; pull it if the daemon does not have it."""
        if found := await self._find(name):
            return found
        if not self.options.pull:
            raise ImageMissing(
                f"image {name!r} is neither at the daemon nor in 'agentrl images list', "
                f"and pull is off; {MEND}"
            )
        tagged = name if "@" in name or ":" in name.rpartition("/")[2] else f"{name}:latest"
        try:
            answer = await self.api.call("POST", "/images/create", {"fromImage": tagged}, deadline_s=PULL_S)
        except ApiError as problem:
            raise ImageMissing(f"image {name!r} cannot be pulled: {problem.message}; {MEND}") from problem
        if error := _error(answer):
            raise ImageMissing(f"image {name!r} cannot be pulled: {error}; {MEND}")
        if found := await self._find(name):
            return found
        raise ImageMissing(f"image {name!r} was pulled, but the daemon does not have it")

    async def _imported(self, image: images.Image) -> DaemonImage:
        """Return an image that agentrl built; import it if the daemon does not have it."""
        tag = f"agentrl/{image.name}:{image.digest[:12]}"
        if found := await self._find(tag):
            return found
        with tempfile.TemporaryFile() as archive:
            await asyncio.to_thread(images.write_tar, image, archive)
            archive.seek(0)
            repository, _, version = tag.partition(":")
            name = {"repo": repository, "tag": version}
            answer = await self.api.call(
                "POST", "/images/create", {"fromSrc": "-", **name}, archive, deadline_s=PULL_S
            )
        if error := _error(answer):
            raise SandboxError(f"image {tag} could not be imported at {self.api.address}: {error}")
        if made := re.findall(rb"(?:sha256:)?[0-9a-f]{64}", answer):  # podman ignores the tag of an import
            await self.api.call("POST", f"/images/{made[-1].decode()}/tag", name)
        if found := await self._find(tag):
            return found
        raise SandboxError(f"image {tag} was imported at {self.api.address}, but the daemon does not have it")

    async def _find(self, name: str) -> DaemonImage | None:
        """Return an image, or ``None`` if the daemon does not have it."""
        try:
            about = await self.api.json("GET", f"/images/{name}/json")
        except ApiError as problem:
            if problem.status != GONE:
                raise
            return None
        return DaemonImage(about["Id"], tuple(sorted((about.get("Config") or {}).get("Volumes") or {})))

    async def create(self, spec: SandboxSpec, lease: Lease, command: Sequence[str]) -> Handle:
        """Create a container, attach to it, and start it. If that is cancelled or fails, nothing is left."""
        if spec.image not in self._images:
            await self.prepare(spec.image)
        image = self._images[spec.image]
        content = await self._content_of(image, spec)
        line = [self.options.python, *command[1:]] if self.options.python else list(command)
        if content:
            line = [line[0], "-I", "-S", "-c", programs.COPY_IN, *line]
        sizes = {path: len(record) for path, record in content.items()}
        body = container(spec, lease, image, line, copied=sizes, engine=self.engine)
        stream = None
        try:
            await to_the_end(self.api.call("POST", "/containers/create", {"name": lease.id}, body))
            stream = await self.api.attach(lease.id)
            await self.api.call("POST", f"/containers/{lease.id}/start")
            if content:
                await _copy_in(stream, b"".join(content.values()) + programs.END)
        except BaseException as problem:
            if stream is not None:
                await stream.close()
            await to_the_end(self._remove(lease.id))
            if isinstance(problem, ApiError):
                raise _mended(problem, spec, line[0]) from problem
            raise
        return Handle(lease.id, native=stream)

    async def open_stream(self, handle: Handle) -> Attached:
        """Return the stream that ``create`` attached."""
        assert isinstance(handle.native, Attached)
        return handle.native

    async def destroy(self, handle: Handle) -> None:
        """Kill everything inside and remove the container; return when it is gone."""
        if isinstance(handle.native, Attached):
            await handle.native.close()
        await self._remove(handle.id)

    async def _remove(self, name: str) -> None:
        """Remove a container; return when it is gone.

        If the container is already being removed, wait for that. If it is stopping, podman's first attempt to
        remove it fails, so the attempt is repeated.
        """
        until = time.monotonic() + REMOVE_S
        while True:
            try:
                await self.api.call(
                    "DELETE", f"/containers/{name}", {"force": "1", "v": "1"}, deadline_s=30.0
                )
            except ApiError as problem:
                if problem.status == GONE:
                    return
                if problem.status not in {CONFLICT, BROKEN} or time.monotonic() > until:
                    raise
            await asyncio.sleep(0.02)

    async def reap(self, now: float) -> int:
        """Remove our containers whose owner is dead or whose deadline has passed; return their number."""
        query = {"all": "1", "filters": json.dumps({"label": ["agentrl.lease"]})}
        found = await self.api.json("GET", "/containers/json", query) or []
        names = [one["Id"] for one in found if reapable(one.get("Labels") or {}, now)]
        await asyncio.gather(*map(self._remove, names))
        return len(names)

    async def _content_of(self, image: DaemonImage, spec: SandboxSpec) -> Mapping[str, bytes]:
        """Return what the image has in the spec's writable folders, as records for ``programs.COPY_IN``."""
        key = (image.id, folders(spec))
        async with self._reading:
            if key not in self._content:
                self._keep(key, await self._read(image, key[1]))
            return self._content[key]

    async def _read(self, image: DaemonImage, paths: Sequence[str]) -> Mapping[str, bytes]:
        """Return a record of what an image has in each of ``paths``, read from a new, stopped container."""
        lease = new_lease(run="content", lifetime_s=600.0)
        body = {
            "Image": image.id,
            "Cmd": ["-"],
            "Labels": dict(lease.labels()),
            "HostConfig": {"NetworkMode": "none"},
        }
        try:
            await to_the_end(self.api.call("POST", "/containers/create", {"name": lease.id}, body))
            records = {path: await self._record(lease.id, path) for path in paths}
        finally:
            await to_the_end(self._remove(lease.id))
        return {path: record for path, record in records.items() if record}

    def _keep(self, key: tuple[str, tuple[str, ...]], records: Mapping[str, bytes]) -> None:
        """Cache new records; drop the oldest records beyond ``CONTENT_KEPT``, but never the new ones."""
        self._content[key] = records
        sizes = {key: sum(map(len, one.values())) for key, one in self._content.items()}
        for oldest in list(sizes)[:-1]:
            if sum(sizes.values()) > CONTENT_KEPT:
                del self._content[oldest], sizes[oldest]

    async def _record(self, name: str, path: str) -> bytes:
        try:
            archive = await self.api.call(
                "GET", f"/containers/{name}/archive", {"path": path}, deadline_s=600.0
            )
        except ApiError as problem:
            if problem.status != GONE:
                raise
            return b""
        return await asyncio.to_thread(programs.record, path, archive)


def _mended(problem: ApiError, spec: SandboxSpec, python: str) -> SandboxError | ConfigError:
    """Return the error to raise for a container that could not be started; it says how to fix that."""
    if "rlimit" in problem.message:
        return ConfigError(
            f"num_files is {spec.num_files}, which is more than the daemon may allow; "
            f"ask for less ({problem.message})"
        )
    if python in problem.message and ("no such file" in problem.message or "not found" in problem.message):
        return ImageMissing(
            f"image {spec.image!r} has no {python}, which every sandbox needs; "
            "install python3 in it, or give its path as python=..."
        )
    if "no space left" in problem.message:
        return SandboxError(f"{problem}; the daemon's disk is full: see 'docker system df'")
    return problem


async def _copy_in(stream: Attached, content: bytes) -> None:
    """Send the content to the program that unpacks it in the container, and wait until it is done."""
    async with within(COPY_S, f"copying {len(content) / MIB:.0f} MiB of the image's files in"):
        with suppress(ConnectionError):  # the program has ended, and its error is read below
            await stream.send(content)
        if await stream.receive() != programs.COPIED:
            errors = stream.errors.decode(errors="replace").strip()[-500:]
            raise SandboxError(f"the image's files could not be copied in: {errors}")


def _error(answer: bytes) -> str:
    """Return the error at the end of a stream of progress messages; empty if there is none.

    >>> _error(b'{"error": "no space left on device"}')
    'no space left on device'
    """
    last = answer.strip().splitlines()[-1:] or [b"{}"]
    found = re.search(rb'"error"\s*:\s*("(?:[^"\\]|\\.)*")', last[0])
    return str(json.loads(found[1])) if found else ""
