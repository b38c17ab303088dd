"""The Kubernetes back end: the real client, and a server that runs pods as processes."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

pytest.importorskip("kubernetes.aio", reason="the package kubernetes is not installed")

from agentrl_sandboxes.backend import Handle
from agentrl_sandboxes.kubernetes import Kubernetes, KubernetesBackend
from agentrl_sandboxes.kubernetes_api import FRAME, api_clients
from agentrl_sandboxes.leases import new_lease
from agentrl_sandboxes.pod import POLICY, STORE, pod
from agentrl_sandboxes.pool import PoolOptions
from cluster import cluster

from agentrl.errors import ConfigError, ImageMissing, MissingExtra, SandboxError
from agentrl.types import SandboxSpec

ECHO = "import os\nwhile data := os.read(0, 65536):\n    while data:\n        data = data[os.write(1, data):]"
SPEC = SandboxSpec()
POOL = PoolOptions(attempts=1, backoff_s=0.0)


def program(code: str) -> list[str]:
    return ["/usr/bin/python3", "-I", "-S", "-c", code]


@pytest.fixture
def options(tmp_path):
    return Kubernetes(
        base="lab/base:1", namespace="lab", config=str(tmp_path / "config"), ready_s=10.0, pool=POOL
    )


@asynccontextmanager
async def opened(options: Kubernetes, **report):
    async with cluster(**report) as there:
        there.config(path_of(options))
        async with api_clients(options.config, options.context) as (core, stream, network):
            backend = KubernetesBackend(options, core, stream)
            await backend.open(network)
            yield there, backend


def path_of(options: Kubernetes):
    from pathlib import Path

    return Path(options.config)


def test_a_pod_is_closed_in_every_way_there_is():
    body = pod(
        SandboxSpec(writable=("/opt",), disk_mib=64), new_lease(lifetime_s=9), "i", ["python3", "guest"]
    )
    spec = body["spec"]
    assert not any(
        spec[name]
        for name in (
            "automountServiceAccountToken",
            "hostNetwork",
            "hostPID",
            "hostIPC",
            "enableServiceLinks",
        )
    )
    assert spec["restartPolicy"] == "Never"
    assert spec["volumes"] == [{"name": "writable", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}]
    [main] = spec["containers"]
    assert main["securityContext"]["readOnlyRootFilesystem"] is True
    assert main["resources"]["limits"] == {"cpu": "1000m", "memory": "1024Mi"}
    assert (main["stdin"], main["stdinOnce"], main["tty"]) == (True, True, False)
    assert {mount["mountPath"] for mount in main["volumeMounts"]} == {
        "/opt",
        "/workspace",
        "/tmp",
        "/dev/shm",
    }
    assert len({mount["subPath"] for mount in main["volumeMounts"]}) == 4
    assert spec["activeDeadlineSeconds"] == 3720


def test_the_probe_decides_what_is_enforced(options):
    async def go() -> None:
        async with opened(options) as (there, backend):
            assert backend.capabilities.limits == {"cpu", "memory", "processes", "disk", "files", "lifetime"}
            assert backend.capabilities.isolation == "container"
            assert there.pods == {}
            assert there.policies[POLICY]["policyTypes"] == ["Ingress", "Egress"]
        async with opened(options, processes=False) as (_, backend):
            assert "processes" not in backend.capabilities.limits
        async with opened(replace(options, runtime="gvisor"), seccomp=0, no_new_privileges=0) as (
            there,
            backend,
        ):
            assert backend.capabilities.isolation == "kernel"
            assert there.created[0]["spec"]["runtimeClassName"] == "gvisor"

    asyncio.run(go())


@pytest.mark.parametrize(
    ("report", "hole"),
    [
        ({"uid": 0}, "runs as root"),
        ({"capabilities": True}, "has capabilities"),
        ({"no_new_privileges": 0}, "may gain privileges"),
        ({"seccomp": 0}, "no system calls are filtered"),
        ({"writable": ["/etc"]}, "can write to /etc"),
        ({"pid": 7}, "sees other processes"),
        ({"service": "open"}, "network of sandboxes is not closed"),
        ({"service": "nowhere"}, "network of sandboxes is not closed"),
    ],
)
def test_a_cluster_that_does_not_isolate_is_refused(options, report, hole):
    async def go() -> None:
        with pytest.raises(ConfigError, match=hole):
            async with opened(options, **report):
                pass

    asyncio.run(go())


def test_without_a_cluster_or_an_image_or_the_client_there_is_one_clear_error(options, monkeypatch):
    async def served(options: Kubernetes) -> None:
        async with options.serve():
            pass

    with pytest.raises(ConfigError, match="no Kubernetes cluster is configured"):
        asyncio.run(served(options))
    path_of(options).write_text("{nonsense")
    with pytest.raises(ConfigError, match="no Kubernetes cluster is configured"):
        asyncio.run(served(options))

    async def no_base() -> None:
        async with opened(replace(options, base="")):
            pass

    with pytest.raises(ConfigError, match="no image is named"):
        asyncio.run(no_base())

    async def nobody_there() -> None:
        async with cluster() as there:
            there.url = "http://127.0.0.1:9"
            there.config(path_of(options))
        await served(options)

    with pytest.raises(ConfigError, match="does not answer"):
        asyncio.run(nobody_there())
    monkeypatch.setitem(__import__("sys").modules, "kubernetes.aio", None)
    with pytest.raises(MissingExtra, match=r"pip install '\.\[kubernetes\]'"):
        asyncio.run(served(options))


def test_bytes_go_both_ways_in_messages_the_server_takes(options):
    async def go() -> None:
        async with opened(options) as (there, backend):
            handle = await backend.create(SPEC, new_lease(lifetime_s=60), program(ECHO))
            stream = await backend.open_stream(handle)
            data = bytes(range(256)) * (3 * FRAME // 256)
            sending = asyncio.create_task(stream.send(data))
            got = b""
            while len(got) < len(data):
                got += await stream.receive()
            await sending
            assert got == data
            await stream.close()
            await stream.close()
            await backend.destroy(handle)
            await backend.destroy(handle)
            assert there.pods == {}

    asyncio.run(go())


def test_what_a_program_says_first_is_not_lost_and_its_end_is_seen(options):
    async def go() -> None:
        async with opened(options) as (_, backend):
            handle = await backend.create(
                SPEC,
                new_lease(lifetime_s=60),
                program("import os; os.write(2, b'bad'); os.write(1, b'first')"),
            )
            await asyncio.sleep(0.3)
            stream = await backend.open_stream(handle)
            assert await stream.receive() == b"first"
            assert await stream.receive() == b""
            assert stream.why() == "bad"
            with pytest.raises(ConnectionError, match="the pod is gone: bad"):
                await stream.send(b"x")
            await stream.close()
            await backend.destroy(handle)

    asyncio.run(go())


def test_the_images_files_are_in_the_volume(options, tmp_path):
    (tmp_path / "repo/sub").mkdir(parents=True)
    (tmp_path / "repo/a").write_text("x")
    (tmp_path / "repo/sub/tool").write_text("y")
    (tmp_path / "repo/sub/tool").chmod(0o555)
    (tmp_path / "repo/link").symlink_to("a")

    async def go() -> None:
        async with opened(options) as (there, backend):
            spec = SandboxSpec(workdir=str(tmp_path / "repo"))
            handle = await backend.create(spec, new_lease(lifetime_s=60), program(ECHO))
            from pathlib import Path

            [running] = there.pods.values()
            folder = Path(running.folder, "0")
            assert (folder / "a").read_text() == "x"
            assert (folder / "link").readlink() == Path("a")
            assert (folder / "sub/tool").stat().st_mode & 0o777 == 0o755
            assert running.body["spec"]["initContainers"][0]["command"][5] == STORE
            await backend.destroy(handle)

    asyncio.run(go())


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName"])
def test_an_image_that_cannot_be_pulled_is_missing(options, reason):
    async def go() -> None:
        async with opened(options) as (there, backend):
            there.broken["lab/none:1"] = reason
            with pytest.raises(ImageMissing, match=rf"{reason}: says the kubelet"):
                await backend.prepare("lab/none:1")
            await backend.prepare("lab/other:1")
            assert there.pods == {}

    asyncio.run(go())


def test_a_pod_that_never_runs_says_how_far_it_came(options):
    async def go() -> None:
        async with opened(options) as (there, backend):
            there.broken["lab/broken:1"] = "CreateContainerConfigError"
            with pytest.raises(
                SandboxError, match="cannot start: CreateContainerConfigError: says the kubelet"
            ):
                await backend.create(
                    SandboxSpec(image="lab/broken:1"), new_lease(lifetime_s=60), program(ECHO)
                )
            there.broken["lab/slow:1"] = "PodInitializing"
            backend.options = replace(backend.options, ready_s=0.3)
            with pytest.raises(
                SandboxError, match=r"did not run within 0\.3 s: Pending; fill: PodInitializing"
            ):
                await backend.create(SandboxSpec(image="lab/slow:1"), new_lease(lifetime_s=60), program(ECHO))
            assert there.pods == {}

    asyncio.run(go())


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.03, 0.06, 0.12])
def test_a_start_that_is_cancelled_leaves_nothing(options, delay_s):
    async def go() -> None:
        async with opened(options) as (there, backend):
            start = asyncio.create_task(backend.create(SPEC, new_lease(lifetime_s=60), program(ECHO)))
            await asyncio.sleep(delay_s)
            start.cancel()
            await asyncio.wait({start})
            if not start.cancelled():
                await backend.destroy(start.result())
            assert there.pods == {}

    asyncio.run(go())


def test_the_reaper_removes_what_dead_owners_left_and_nothing_else(options):
    async def go() -> None:
        async with opened(options) as (there, backend):
            foreign = replace(new_lease(lifetime_s=600), owner="another-host/boot/1/1")
            mine = new_lease(lifetime_s=600)
            late = replace(new_lease(lifetime_s=600), deadline=time.time() - 1)
            dead = replace(new_lease(lifetime_s=600), owner=f"{mine.owner.rpartition('/')[0]}/1")
            for lease in (foreign, mine, late, dead):
                await backend.create(SPEC, lease, program(ECHO))
            there.pods[mine.id].body["metadata"]["labels"]["other"] = "kept"
            assert await backend.reap(time.time()) == 2
            assert set(there.pods) == {foreign.id, mine.id}
            for lease in (foreign, mine):
                await backend.destroy(Handle(lease.id))

    asyncio.run(go())


def test_the_whole_of_it_runs_commands_in_pods(options, tmp_path):
    async def go() -> None:
        async with cluster() as there:
            there.config(path_of(options))
            async with options.serve(run="demo") as sandboxes:
                assert await sandboxes.missing(["", "lab/other:1"]) == {}
                async with sandboxes.open(SandboxSpec(workdir=str(tmp_path / "work"))) as sandbox:
                    done = await sandbox.exec(["sh", "-c", "cat; exit 7"], stdin=b"hello")
                    assert (done.exit_code, done.stdout) == (7, b"hello")
                    await sandbox.write(str(tmp_path / "work/big"), b"x" * (3 << 20))
                    assert await sandbox.read(str(tmp_path / "work/big")) == b"x" * (3 << 20)
                    [running] = there.pods.values()
                    assert running.body["metadata"]["annotations"]["agentrl.run"] == "demo"
                    await sandbox.reset()
                    assert (await sandbox.exec(["true"])).exit_code == 0
            assert there.pods == {}

    asyncio.run(go())
