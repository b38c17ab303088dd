"""A server that implements the part of the Kubernetes API that pods need, and runs pods as local processes.

It behaves as a cluster wherever a test can see the difference: the restricted pod security standard, names
that are already used, init containers, output that is lost before a client attaches, a single attachment to
standard input, and the end of standard input when that attachment ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agentrl_sandboxes import programs
from agentrl_sandboxes.pod import STORE
from aiohttp import WSMsgType, web

CLOSED = {
    "kernel": "1.0",
    "pid": 1,
    "uid": 61000,
    "capabilities": False,
    "no_new_privileges": 1,
    "seccomp": 2,
    "writable": [],
    "reaches": True,
    "service": "closed",
    "cpu": True,
    "memory": True,
    "processes": True,
    "disk": True,
    "files": 1 << 20,
}
"""The report of the probe in a pod of a cluster that isolates."""


class Cluster:
    """The server's state.

    ``report`` is what the probe reports; ``broken`` maps images to why they do not start.
    """

    def __init__(self, report: dict[str, object]) -> None:
        self.report, self.broken = report, {}
        self.pods: dict[str, Pod] = {}
        self.policies: dict[str, object] = {}
        self.created: list[dict] = []
        self.url = ""

    def config(self, path: Path) -> str:
        """Write the client's configuration for this cluster."""
        user, place = {"name": "u", "user": {"token": "t"}}, {"name": "c", "cluster": {"server": self.url}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        kinds = {"apiVersion": "v1", "kind": "Config", "current-context": "x"}
        path.write_text(json.dumps({**kinds, "users": [user], "clusters": [place], "contexts": [context]}))
        return str(path)

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.created.append(body)
        name = body["metadata"]["name"]
        if name in self.pods:
            return failure(409, f'pods "{name}" already exists')
        if broken := restricted(body["spec"]):
            return failure(403, f"violates PodSecurity restricted: {broken}")
        self.pods[name] = Pod(self, body)
        return web.json_response(self.pods[name].shown(), status=201)

    async def read(self, request: web.Request) -> web.Response:
        pod = self.pods.get(request.match_info["name"])
        return (
            web.json_response(pod.shown())
            if pod
            else failure(404, f'pods "{request.match_info["name"]}" not found')
        )

    async def list(self, request: web.Request) -> web.Response:
        label = request.query.get("labelSelector", "")
        items = [
            pod.shown()
            for pod in self.pods.values()
            if not label or label in pod.body["metadata"].get("labels", {})
        ]
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})

    async def delete(self, request: web.Request) -> web.Response:
        pod = self.pods.get(request.match_info["name"])
        if pod is None:
            return failure(404, f'pods "{request.match_info["name"]}" not found')
        assert request.query["gracePeriodSeconds"] == "0"
        asyncio.get_running_loop().call_later(0.03, lambda: asyncio.ensure_future(pod.end()))
        return web.json_response(pod.shown())

    async def policy(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["metadata"]["name"] in self.policies:
            return failure(409, "networkpolicies already exists")
        self.policies[body["metadata"]["name"]] = body["spec"]
        return web.json_response(body, status=201)

    async def attach(self, request: web.Request) -> web.StreamResponse:
        pod = self.pods.get(request.match_info["name"])
        if pod is None or pod.process is None:
            return failure(404, "no such container")
        assert request.headers["Authorization"] == "Bearer t"
        socket = web.WebSocketResponse(protocols=["v4.channel.k8s.io"], max_msg_size=(1 << 20) + 1)
        await socket.prepare(request)
        await pod.attached(socket)
        return socket


class Pod:
    """A pod and its processes."""

    def __init__(self, cluster: Cluster, body: dict) -> None:
        self.cluster, self.body = cluster, body
        self.folder = tempfile.mkdtemp(prefix="pod-")
        self.filling: asyncio.subprocess.Process | None = None
        self.process: asyncio.subprocess.Process | None = None
        self.ending = False
        self.statuses: dict[str, dict] = {}
        self.readers: list[web.WebSocketResponse] = []
        self.running = asyncio.ensure_future(self.run())

    def shown(self) -> dict:
        names = {"init": [one["name"] for one in self.body["spec"]["initContainers"]], "main": ["sandbox"]}

        def states(which: str) -> list[dict]:
            plain = {"ready": True, "restartCount": 0, "image": "i", "imageID": "i"}
            return [
                {"name": name, "state": self.statuses[name], **plain}
                for name in names[which]
                if name in self.statuses
            ]

        status = {
            "phase": "Running" if self.process else "Pending",
            "initContainerStatuses": states("init"),
            "containerStatuses": states("main"),
        }
        return {**self.body, "status": status}

    async def run(self) -> None:
        spec = self.body["spec"]
        [init], [main] = spec["initContainers"], spec["containers"]
        await asyncio.sleep(0.02)
        if reason := self.cluster.broken.get(main["image"]):
            self.statuses["fill"] = {"waiting": {"reason": reason, "message": "says the kubelet"}}
            return
        # an image has nothing in these folders
        empty = {"/tmp": "/nothing", "/dev/shm": "/nothing", "/workspace": "/nothing"}
        paths = {STORE: self.folder, **empty}
        words = [paths.get(word, word) for word in init["command"][1:]]
        if self.ending:
            return
        self.filling = await asyncio.create_subprocess_exec(sys.executable, *words)
        if self.ending:
            self.filling.kill()
        code = await self.filling.wait()
        self.statuses["fill"] = {
            "terminated": {"exitCode": code, "reason": "Completed" if code == 0 else "Error"}
        }
        if code or self.ending:
            return
        words = main["command"][1:]
        if programs.PROBE in words:
            words = [
                f"print({json.dumps(json.dumps(self.cluster.report))})" if word == programs.PROBE else word
                for word in words
            ]
            words[words.index("/usr/bin/python3")] = sys.executable
        words = [sys.executable if word == "/usr/bin/python3" else word for word in words]
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, *words, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        if self.ending:
            self.process.kill()
        self.statuses["sandbox"] = {"running": {}}
        await asyncio.gather(self.output(self.process.stdout, 1), self.output(self.process.stderr, 2))
        code = await self.process.wait()
        self.statuses["sandbox"] = {"terminated": {"exitCode": code, "reason": "Completed"}}
        for socket in self.readers:
            with contextlib.suppress(ConnectionError):
                await socket.send_bytes(b"\3" + json.dumps({"status": "Success"}).encode())
                await socket.close()

    async def output(self, stream, channel: int) -> None:
        while data := await stream.read(1 << 15):
            for socket in self.readers:
                with contextlib.suppress(ConnectionError):
                    await socket.send_bytes(bytes((channel,)) + data)

    async def attached(self, socket: web.WebSocketResponse) -> None:
        assert self.process is not None
        self.readers.append(socket)
        async for message in socket:
            if message.type is WSMsgType.BINARY and message.data[0] == 0:
                with contextlib.suppress(ConnectionError):
                    self.process.stdin.write(message.data[1:])
                    await self.process.stdin.drain()
        self.process.stdin.close()  # stdinOnce

    async def end(self) -> None:
        self.ending = True
        for process in (self.filling, self.process):
            if process is not None and process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        if self.process is not None:
            self.process.stdin.close()
        await asyncio.wait({self.running})
        shutil.rmtree(self.folder, ignore_errors=True)
        self.cluster.pods.pop(self.body["metadata"]["name"], None)


def restricted(spec: dict) -> str:
    """Return how a pod violates the restricted pod security standard; empty if it does not."""
    if spec.get("hostNetwork") or spec.get("hostPID") or spec.get("hostIPC"):
        return "host namespaces"
    if any(set(volume) - {"name", "emptyDir"} for volume in spec["volumes"]):
        return "volumes"
    for container in [*spec["containers"], *spec["initContainers"]]:
        security = container["securityContext"]
        if (
            security["allowPrivilegeEscalation"]
            or security["privileged"]
            or not security["runAsNonRoot"]
            or security["runAsUser"] == 0
        ):
            return f"{container['name']}: privileges"
        if security["capabilities"] != {"drop": ["ALL"]} or security["seccompProfile"] != {
            "type": "RuntimeDefault"
        }:
            return f"{container['name']}: capabilities or seccomp"
    return ""


def failure(code: int, message: str) -> web.Response:
    return web.json_response(
        {"kind": "Status", "status": "Failure", "message": message, "code": code}, status=code
    )


@asynccontextmanager
async def cluster(**report: object) -> AsyncIterator[Cluster]:
    """Serve a cluster on a free port of the loopback."""
    state = Cluster({**CLOSED, **report})
    app = web.Application()
    pods = "/api/v1/namespaces/lab/pods"
    app.router.add_post(pods, state.create)
    app.router.add_get(pods, state.list)
    app.router.add_get(pods + "/{name}", state.read)
    app.router.add_delete(pods + "/{name}", state.delete)
    app.router.add_get(pods + "/{name}/attach", state.attach)
    app.router.add_post("/apis/networking.k8s.io/v1/namespaces/lab/networkpolicies", state.policy)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    state.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield state
    finally:
        for pod in list(state.pods.values()):
            await pod.end()
        await runner.cleanup()
