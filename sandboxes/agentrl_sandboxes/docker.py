"""Hardened containers of a Docker daemon, here or elsewhere, or of podman's API service.

A sandbox is one container. Its main process is the guest, attached before it starts: when the attached connection ends, for whatever
reason, so does the guest's input, so does the guest, and with it the container, which removes itself. It has no network, no capability, no
way to gain one, an unprivileged user, a root file system that cannot be written, and sized tmpfs where it may write. What is in the image
where a tmpfs goes is copied in at the start. The daemon's word is not taken for any of it: ``serve`` starts one sandbox, reads everything
back inside it, and refuses a daemon that does not isolate.

What is written is kept in memory, and counts against ``memory_mib`` as well as ``disk_mib``: no storage driver in common use has quotas.
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
from agentrl_sandboxes import images, inside
from agentrl_sandboxes.backend import Handle, Lease
from agentrl_sandboxes.container import MIB, Engine, Root, container, folders
from agentrl_sandboxes.docker_api import Address, Api, ApiError, Attached, locate, tunnelled
from agentrl_sandboxes.leases import new_lease, reapable
from agentrl_sandboxes.pool import PoolOptions
from agentrl_sandboxes.service import serving
from agentrl_sandboxes.session import Session
from agentrl_sandboxes.tasks import to_the_end

log = logging.getLogger(__name__)

GONE, CONFLICT, BROKEN = 404, 409, 500
PULL_S, COPY_S, REMOVE_S = 3600.0, 300.0, 20.0
MEND = "load it there ('docker load'), or build one of this name: 'agentrl images build'"
CONTENT_KEPT = 256 * MIB
"""Bytes of images' folders that are kept at hand to be copied in."""


@dataclass(frozen=True, kw_only=True)
class Docker(SandboxProvider):
    """Sandboxes of a Docker daemon, or of podman."""

    url: str = ""
    """``unix:///PATH``, ``tcp://HOST:PORT`` with ``tls``, ``ssh://USER@HOST[/PATH]``; empty for what the ``docker`` command would use."""
    tls: str = ""
    """Folder of ``ca.pem``, ``cert.pem`` and ``key.pem``."""
    base: str = ""
    """The image of specs that name none; empty for agentrl's own base image, which is made and imported where it is missing."""
    pull: bool = True
    """Whether images that the daemon lacks may be pulled from where their names point to."""
    runtime: str = ""
    """One of the daemon's runtimes, such as gVisor's ``runsc`` with ``--network=none``; empty for its default."""
    python: str = ""
    """The interpreter in the images; empty for ``/usr/bin/python3``."""
    open_network: str = ""
    """The daemon's network that specs with ``network="open"`` join; empty allows none. Mind that it reaches this machine, too."""
    unenforced: frozenset[Limit] = frozenset()
    """Limits whose lack is accepted where the daemon does not enforce them (rootless ones)."""
    pool: PoolOptions = field(default_factory=PoolOptions)

    @asynccontextmanager
    async def serve(self, *, run: str = "") -> AsyncIterator[Sandboxes]:
        """Connect, start one sandbox to see what the daemon really enforces, and serve; raises as the contract says."""
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
    """The six members over a daemon."""

    def __init__(self, api: Api, options: Docker) -> None:
        self.api, self.options = api, options
        self.engine = Engine(options.runtime, options.open_network)
        self._images: dict[str, Root] = {}
        self._content: dict[tuple[str, tuple[str, ...]], Mapping[str, bytes]] = {}
        self._reading = asyncio.Lock()
        self._capabilities = Capabilities(isolation="container", limits=frozenset())

    @classmethod
    async def connect(cls, options: Docker, address: Address | None = None) -> DockerBackend:
        """Reach the daemon and probe it.

        Raises:
            ConfigError: there is none, or it does not isolate.
        """
        api = Api(address or locate(options.url, options.tls))
        try:
            about = await api.negotiate()
        except SandboxError as problem:
            raise ConfigError(
                f"docker cannot be used: {problem}; start the daemon (or 'podman system service'), or name another as url='ssh://...'"
            ) from problem
        backend = cls(api, options)
        if "podman" in json.dumps(about).lower():
            backend.engine = replace(backend.engine, podman=True)
        await backend._probe(str(about.get("KernelVersion", "")))
        return backend

    @property
    def capabilities(self) -> Capabilities:
        """What was read back inside a sandbox at the start."""
        return self._capabilities

    async def _probe(self, kernel: str) -> None:
        """Start a sandbox with small limits, and see from inside what they are."""
        try:
            await self.prepare("")
            report = await self._inspected(inside.SPEC)
        except (SandboxError, ImageMissing) as problem:
            raise ConfigError(
                f"docker at {self.api.address} cannot be used: the sandbox that was started to probe it failed: {problem}"
            ) from problem
        own_kernel = bool(kernel) and report["kernel"] != kernel
        if holes := inside.holes(report, own_kernel=own_kernel):
            raise ConfigError(
                f"docker at {self.api.address} does not isolate: {'; '.join(holes)}; take another daemon or back end"
            )
        self._capabilities = Capabilities(
            isolation="kernel" if own_kernel else "container",
            limits=inside.enforced(report),
            networks=frozenset({"none", "open"} if self.options.open_network else {"none"}),
        )

    async def _inspected(self, spec: SandboxSpec) -> Mapping[str, Any]:
        """Return what the program ``inside.PROBE`` says in a sandbox of this spec."""
        handle = await self.create(
            spec,
            new_lease(run="probe", lifetime_s=60.0),
            [self.options.python or inside.PYTHON, "-I", "-S", "-c", inside.PROBE],
        )
        stream = await self.open_stream(handle)
        try:
            async with asyncio.timeout(60.0):
                said = b""
                while data := await stream.receive():
                    said += data
            return inside.report(said)
        except (TimeoutError, ValueError) as problem:
            raise SandboxError(
                f"the probe said {said[-200:]!r}, and on standard error {stream.errors[-500:]!r}"
            ) from problem
        finally:
            await self.destroy(handle)

    async def prepare(self, image: str) -> None:
        """Make an image usable: one of ours is imported, any other is pulled if the daemon lacks it."""
        name = image or self.options.base
        try:
            ours = await asyncio.to_thread(images.find, name)
        except ImageMissing:
            if not name:
                raise
            self._images[image] = await self._foreign(name)
        else:
            self._images[image] = await self._imported(ours)

    async def _foreign(self, name: str) -> Root:
        """Return an image that is not one of ours."""
        if found := await self._find(name):
            return found
        if not self.options.pull:
            raise ImageMissing(
                f"image {name!r} is neither at the daemon nor in 'agentrl images list', and pull is off; {MEND}"
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
        raise ImageMissing(f"image {name!r} is not there after it was pulled")

    async def _imported(self, image: images.Image) -> Root:
        """Return one of our images, which is imported if the daemon lacks it."""
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
        if made := re.findall(rb"(?:sha256:)?[0-9a-f]{64}", answer):  # podman heeds no tag when it imports
            await self.api.call("POST", f"/images/{made[-1].decode()}/tag", name)
        if found := await self._find(tag):
            return found
        raise SandboxError(f"image {tag} is not there after it was imported at {self.api.address}")

    async def _find(self, name: str) -> Root | None:
        """Return an image that the daemon has."""
        try:
            about = await self.api.json("GET", f"/images/{name}/json")
        except ApiError as problem:
            if problem.status != GONE:
                raise
            return None
        return Root(about["Id"], tuple(sorted((about.get("Config") or {}).get("Volumes") or {})))

    async def create(self, spec: SandboxSpec, lease: Lease, command: Sequence[str]) -> Handle:
        """Create a container, attach to it, and start it; cancelled or failed, it leaves nothing."""
        if spec.image not in self._images:
            await self.prepare(spec.image)
        image = self._images[spec.image]
        content = await self._content_of(image, spec)
        line = [self.options.python, *command[1:]] if self.options.python else list(command)
        if content:
            line = [line[0], "-I", "-S", "-c", inside.COPY_IN, *line]
        sizes = {path: len(record) for path, record in content.items()}
        body = container(spec, lease, image, line, copied=sizes, engine=self.engine)
        stream = None
        try:
            await to_the_end(self.api.call("POST", "/containers/create", {"name": lease.id}, body))
            stream = await self.api.attach(lease.id)
            await self.api.call("POST", f"/containers/{lease.id}/start")
            if content:
                await _copy_in(stream, b"".join(content.values()) + inside.END)
        except BaseException as problem:
            if stream is not None:
                await stream.close()
            await to_the_end(self._remove(lease.id))
            if isinstance(problem, ApiError):
                raise _mended(problem, spec, line[0]) from problem
            raise
        return Handle(lease.id, native=stream)

    async def open_stream(self, handle: Handle) -> Attached:
        """Return the connection that ``create`` attached."""
        assert isinstance(handle.native, Attached)
        return handle.native

    async def destroy(self, handle: Handle) -> None:
        """Kill everything inside and remove the container; returns when it is gone."""
        if isinstance(handle.native, Attached):
            await handle.native.close()
        await self._remove(handle.id)

    async def _remove(self, name: str) -> None:
        """Remove a container. One that is removing itself, or stopping (which breaks podman's first attempt), is waited for."""
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
        """Remove containers of ours whose owner is dead or whose deadline passed."""
        query = {"all": "1", "filters": json.dumps({"label": ["agentrl.lease"]})}
        found = await self.api.json("GET", "/containers/json", query) or []
        names = [one["Id"] for one in found if reapable(one.get("Labels") or {}, now)]
        await asyncio.gather(*map(self._remove, names))
        return len(names)

    async def _content_of(self, image: Root, spec: SandboxSpec) -> Mapping[str, bytes]:
        """Return what is in the image where the spec's writable folders go, as records for ``inside.COPY_IN``."""
        key = (image.id, folders(spec))
        async with self._reading:
            if key not in self._content:
                self._keep(key, await self._read(image, key[1]))
            return self._content[key]

    async def _read(self, image: Root, paths: Sequence[str]) -> Mapping[str, bytes]:
        """Return what is in an image's folders, from a container that never starts."""
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
        """Keep what was read at hand; what was read first goes first."""
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
        return await asyncio.to_thread(inside.record, path, archive)


def _mended(problem: ApiError, spec: SandboxSpec, python: str) -> SandboxError | ConfigError:
    """Say what the user can do about a container that could not be started."""
    if "rlimit" in problem.message:
        return ConfigError(
            f"num_files is {spec.num_files}, which is more than the daemon may give; ask for less ({problem.message})"
        )
    if python in problem.message and ("no such file" in problem.message or "not found" in problem.message):
        return ImageMissing(
            f"image {spec.image!r} has no {python}, which every sandbox needs; install python3 in it, or say where it is with python=..."
        )
    if "no space left" in problem.message:
        return SandboxError(f"{problem}; the daemon's disk is full: see 'docker system df'")
    return problem


async def _copy_in(stream: Attached, content: bytes) -> None:
    """Hand the content to the program that unpacks it, and wait until it has."""
    try:
        async with asyncio.timeout(COPY_S):
            with suppress(ConnectionError):  # it ended, and said why
                await stream.send(content)
            if await stream.receive() != inside.COPIED:
                raise SandboxError(
                    f"the image's files could not be copied in: {stream.errors.decode(errors='replace').strip()[-500:]}"
                )
    except TimeoutError as late:
        raise SandboxError(
            f"copying {len(content) / MIB:.0f} MiB of the image's files in took longer than {COPY_S:g} s"
        ) from late


def _error(answer: bytes) -> str:
    """Return the error at the end of a stream of progress messages, if there is one.

    >>> _error(b'{"error": "no space left on device"}')
    'no space left on device'
    """
    last = answer.strip().splitlines()[-1:] or [b"{}"]
    found = re.search(rb'"error"\s*:\s*("(?:[^"\\]|\\.)*")', last[0])
    return str(json.loads(found[1])) if found else ""
