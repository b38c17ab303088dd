"""The Docker back end against a real daemon: isolation, what is left, and messages of errors."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from agentrl_sandboxes import images
from agentrl_sandboxes.backend import SANDBOX_UID, Lease
from agentrl_sandboxes.container import MIB, ContainerEngine, DaemonImage, container, folders
from agentrl_sandboxes.docker import Docker, DockerBackend, _error, _mended
from agentrl_sandboxes.docker_address import locate, tunnelled
from agentrl_sandboxes.docker_api import Api, ApiError
from agentrl_sandboxes.leases import new_lease, owner
from agentrl_sandboxes.seccomp_profile import profile
from daemon import NoDaemon, podman_service
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import ConfigError, ImageMissing, SandboxError
from agentrl.testing.sandbox import check_sandbox
from agentrl.types import SandboxSpec

SPEC = SandboxSpec()
LEASE = Lease(id="agentrl-test", owner="host/boot/1/1", run="r", deadline=2e9)
ECHO = "import os\nwhile data := os.read(0, 65536):\n    while data:\n        data = data[os.write(1, data):]"
PYTHON = "/usr/bin/python3"


def program(code: str) -> list[str]:
    return [PYTHON, "-I", "-S", "-c", code]


@pytest.fixture
def docker(docker_url):
    """Return a function that runs the ``docker`` command with the daemon."""

    def run(*words: str, **options) -> str:
        return subprocess.run(
            ["docker", "-H", docker_url, *words],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
            **options,
        ).stdout.strip()

    return run


@pytest.fixture
def base(docker_url):
    try:
        images.find()
    except ImageMissing as problem:
        pytest.skip(str(problem))
    return docker_url


def ours(docker, holder: str = "") -> list[str]:
    """Return the containers of a process, by default of this one; other processes may use the daemon, too."""
    return docker(
        "ps", "-a", "--filter", f"label=agentrl.owner={holder or owner()}", "--format", "{{.Names}}"
    ).split()


@asynccontextmanager
async def started(backend: DockerBackend, code: str, spec: SandboxSpec = SPEC):
    handle = await backend.create(spec, new_lease(lifetime_s=60), program(code))
    try:
        yield await backend.open_stream(handle)
    finally:
        await backend.destroy(handle)


async def said(stream) -> str:
    parts = b""
    while data := await stream.receive():
        parts += data
    return parts.decode()


# What the daemon is asked for


def asked(spec: SandboxSpec = SPEC, **options):
    return container(
        spec, LEASE, DaemonImage("image"), ["guest"], **{"copied": {}, "engine": ContainerEngine(), **options}
    )


def test_a_container_is_closed_in_every_way_there_is():
    body = asked()
    host = body["HostConfig"]
    assert (body["NetworkDisabled"], host["NetworkMode"]) == (True, "none")
    assert (host["CapDrop"], host["SecurityOpt"], host["Privileged"]) == (
        ["ALL"],
        ["no-new-privileges", f"seccomp={profile()}"],
        False,
    )
    assert body["User"] == f"{SANDBOX_UID}:{SANDBOX_UID}"
    assert host["ReadonlyRootfs"] is True
    assert host["Memory"] == host["MemorySwap"] == 1024 * MIB
    assert (host["NanoCpus"], host["PidsLimit"]) == (10**9, 256)
    assert {"Name": "nofile", "Soft": 1024, "Hard": 1024} in host["Ulimits"]
    assert not {
        "Binds",
        "Mounts",
        "Devices",
        "CapAdd",
        "PidMode",
        "UsernsMode",
        "UTSMode",
        "ExtraHosts",
    } & set(host)
    assert all({"nosuid", "nodev"} <= set(options.split(",")) for options in host["Tmpfs"].values())


def test_a_container_ends_with_its_connection_and_leaves_nothing():
    body = asked()
    assert (body["OpenStdin"], body["StdinOnce"], body["Tty"]) == (True, True, False)
    assert body["HostConfig"]["AutoRemove"] is True
    assert body["HostConfig"]["LogConfig"] == {"Type": "none"}
    assert body["Labels"] == LEASE.labels()


@given(
    disk_mib=st.integers(2, 1 << 16),
    writable=st.lists(
        st.sampled_from(["/opt", "/usr/lib", "/tmp", "/testbed", "/testbed/a", "/data"]), max_size=4
    ),
    volumes=st.lists(st.sampled_from(["/data", "/var/lib/db", "/tmp"]), max_size=3, unique=True),
    share=st.floats(0, 0.4),
)
def test_all_that_can_be_written_is_never_more_than_the_disk(disk_mib, writable, volumes, share):
    spec = SandboxSpec(disk_mib=disk_mib, writable=tuple(writable))
    copied = {path: int(share * disk_mib * MIB / len(folders(spec))) for path in folders(spec)}
    host = container(
        spec, LEASE, DaemonImage("image", tuple(volumes)), ["guest"], copied=copied, engine=ContainerEngine()
    )["HostConfig"]
    sizes = {path: int(options.rpartition("size=")[2]) for path, options in host["Tmpfs"].items()}
    assert sum(sizes.values()) + host["ShmSize"] <= disk_mib * MIB
    assert {*folders(spec), "/tmp", *volumes} == set(sizes)
    assert all(sizes[path] > size for path, size in copied.items())
    assert all(size % 4096 == 0 and size > 0 for size in (*sizes.values(), host["ShmSize"]))


def test_what_does_not_fit_says_what_it_is():
    with pytest.raises(ConfigError, match=r"disk_mib is 10, and 10 MiB of the image in /opt must fit in it"):
        asked(SandboxSpec(disk_mib=10, writable=("/opt",)), copied={"/opt": 10 * MIB})
    with pytest.raises(ConfigError, match="root folder cannot be written"):
        asked(SandboxSpec(workdir="/"))


def test_a_network_is_joined_only_where_spec_and_provider_both_say_so():
    assert asked(engine=ContainerEngine(network="lab"))["HostConfig"]["NetworkMode"] == "none"
    body = asked(SandboxSpec(network="open"), engine=ContainerEngine(network="lab"))
    assert (body["HostConfig"]["NetworkMode"], body["NetworkDisabled"]) == ("lab", False)


# Addresses


def test_an_address_that_would_be_open_to_everybody_is_refused(tmp_path):
    for url in ("tcp://10.0.0.1:2375", "tcp://example.org:2376"):
        with pytest.raises(ConfigError, match="without TLS"):
            locate(url)
    with pytest.raises(ConfigError, match=r"has no ca\.pem"):
        locate("tcp://10.0.0.1:2376", str(tmp_path))
    for url in ("http://10.0.0.1", "tcp://10.0.0.1", "docker.sock", "/var/run/docker.sock"):
        with pytest.raises(ConfigError, match="a daemon's url is"):
            locate(url)


def test_without_an_address_the_docker_commands_own_is_taken(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert locate().url == "unix:///var/run/docker.sock"
    meta = tmp_path / ".docker/contexts/meta" / hashlib.sha256(b"lab").hexdigest()
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text(
        json.dumps({"Name": "lab", "Endpoints": {"docker": {"Host": "ssh://me@lab"}}})
    )
    (tmp_path / ".docker/config.json").write_text(json.dumps({"currentContext": "lab"}))
    assert locate().url == "ssh://me@lab"
    monkeypatch.setenv("DOCKER_HOST", "unix:///elsewhere.sock")
    assert locate().url == "unix:///elsewhere.sock"


# Errors


async def served(url: str, **options) -> None:
    async with Docker(url=url, **options).serve():
        pass


def test_no_daemon_is_one_clear_error(tmp_path):
    with pytest.raises(
        ConfigError, match=r"docker cannot be used: .*no\.sock does not answer: .*start the daemon"
    ):
        asyncio.run(served(f"unix://{tmp_path}/no.sock"))
    with pytest.raises(ConfigError, match=r"docker cannot be used: .*127\.0\.0\.1:9"):
        asyncio.run(served("tcp://127.0.0.1:9"))


@asynccontextmanager
async def impostor(path: Path, answer: bytes | None):
    """Serve one fixed answer, or none, at the address of a daemon."""
    handlers = []

    async def serve(reader, writer) -> None:
        handlers.append(asyncio.current_task())
        await reader.read(100)
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async with await asyncio.start_unix_server(serve, path):
        yield f"unix://{path}"
        await asyncio.wait(handlers)


def json_answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"hello\r\n",
        b"HTTP/1.1 20",
        json_answer(b"{}"),
        json_answer(b"none"),
        json_answer(b'{"ApiVersion": [1]}'),
    ],
)
def test_what_is_no_docker_daemon_is_told_so(tmp_path, answer):
    async def go() -> None:
        async with impostor(tmp_path / "s", answer) as url:
            with pytest.raises(ConfigError, match="docker cannot be used"):
                await served(url)

    asyncio.run(go())


def test_a_daemon_that_hangs_is_given_up(tmp_path):
    async def go() -> None:
        async with impostor(tmp_path / "s", None) as url:
            with pytest.raises(SandboxError, match=r"did not answer within 0\.2 s"):
                await Api(locate(url)).call("GET", "/version", deadline_s=0.2)

    asyncio.run(go())


def test_a_daemon_that_is_too_old_is_told_so(tmp_path):
    async def go() -> None:
        async with impostor(tmp_path / "s", json_answer(b'{"ApiVersion": "1.30"}')) as url:
            with pytest.raises(ConfigError, match=r"has version 1\.30"):
                await served(url)

    asyncio.run(go())


def test_images_that_are_not_there_are_missing_and_not_an_error_of_the_daemon(base):
    async def go() -> None:
        backend = await DockerBackend.connect(Docker(url=base, pull=False))
        with pytest.raises(
            ImageMissing,
            match=r"'nobody/nothing:1' is neither at the daemon .* and pull is off; load it there",
        ):
            await backend.prepare("nobody/nothing:1")
        backend = await DockerBackend.connect(Docker(url=base))
        with pytest.raises(ImageMissing, match=r"'localhost:1/nothing' cannot be pulled"):
            await backend.prepare("localhost:1/nothing")

    asyncio.run(go())


def test_limits_and_images_that_the_daemon_cannot_start_say_what_to_do(base, docker):
    async def go() -> None:
        backend = await DockerBackend.connect(Docker(url=base))
        with pytest.raises(ImageMissing, match=r"has no /opt/none/python, which every sandbox needs"):
            await backend.create(SandboxSpec(), new_lease(lifetime_s=60), ["/opt/none/python", "-c", ""])
        with pytest.raises(ConfigError, match="num_files is 1000000000"):
            await backend.create(SandboxSpec(num_files=10**9), new_lease(lifetime_s=60), program(ECHO))

    asyncio.run(go())
    assert ours(docker) == []


def test_a_full_disk_is_the_daemons_and_says_so():
    problem = _mended(
        ApiError("POST /containers/create", 500, "write /x: no space left on device"), SPEC, PYTHON
    )
    assert isinstance(problem, SandboxError)
    assert "the daemon's disk is full: see 'docker system df'" in str(problem)
    assert (
        _error(b'{"status": "x"}\r\n{"errorDetail": {}, "error": "no space left on \\"d\\""}\r\n')
        == 'no space left on "d"'
    )
    assert _error(b'{"status": "sha256:12"}') == _error(b"") == ""


# The contract, and the ends of sandboxes


@pytest.mark.slow
def test_the_contract_is_kept(base, docker):
    check_sandbox(Docker(url=base))
    assert ours(docker) == []


def test_the_probe_sees_every_limit_and_no_hole(base):
    async def go():
        return (await DockerBackend.connect(Docker(url=base))).capabilities

    capabilities = asyncio.run(go())
    assert capabilities.isolation == "container"
    assert capabilities.limits == {"cpu", "memory", "processes", "disk", "files", "lifetime"}
    assert capabilities.networks == {"none"}


def test_bytes_go_both_ways_unchanged_and_the_end_is_seen(base, docker):
    async def go() -> None:
        backend = await DockerBackend.connect(Docker(url=base))
        async with started(backend, ECHO) as stream:
            data = os.urandom(3 << 20)
            sending = asyncio.create_task(stream.send(data))
            got = b""
            while len(got) < len(data):
                got += await stream.receive()
            await sending
            assert got == data
        async with started(
            backend, "import os; os.write(2, b'no good'); os.write(1, b'x'); os._exit(3)"
        ) as stream:
            assert await said(stream) == "x"
            assert stream.errors == b"no good"
        assert await stream.receive() == b""
        with pytest.raises(ConnectionError):
            await stream.send(b"x")

    asyncio.run(go())
    assert ours(docker) == []


@pytest.mark.parametrize("delay_s", [0.0, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.13])
def test_a_start_that_is_cancelled_leaves_nothing(base, docker, delay_s):
    async def go() -> None:
        backend = await DockerBackend.connect(Docker(url=base))
        lease = new_lease(lifetime_s=60)
        start = asyncio.create_task(backend.create(SandboxSpec(), lease, program(ECHO)))
        await asyncio.sleep(delay_s)
        start.cancel()
        start.cancel()
        await asyncio.wait({start})
        if not start.cancelled():
            await backend.destroy(start.result())

    asyncio.run(go())
    assert ours(docker) == []


def test_destroying_is_idempotent_and_takes_a_program_that_ignores_every_signal(base, docker):
    async def go() -> None:
        backend = await DockerBackend.connect(Docker(url=base))
        ignore = "for n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)"
        code = f"import signal, os\n{ignore}\nos.fork()\nwhile True: pass"
        handle = await backend.create(SandboxSpec(), new_lease(lifetime_s=60), program(code))
        await asyncio.gather(*(backend.destroy(handle) for _ in range(3)))
        await backend.destroy(handle)

    asyncio.run(go())
    assert ours(docker) == []


OWNER = """
import asyncio, sys
from agentrl_sandboxes.docker import Docker, DockerBackend, _error, _mended
from agentrl_sandboxes.leases import new_lease, owner
from agentrl.sandbox import SandboxSpec
from agentrl.testing.sandbox import check_sandbox
async def main():
    backend = await DockerBackend.connect(Docker(url=sys.argv[1]))
    leases = [new_lease(lifetime_s=600) for _ in range(int(sys.argv[2]))]
    await asyncio.gather(*(backend.create(SandboxSpec(), lease, sys.argv[3:]) for lease in leases))
    print(owner(), flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def killed_owner(url: str, code: str, count: int) -> str:
    """Let a process hold sandboxes, kill it, and return its name as an owner."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, url, str(count), *program(code)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    holder = process.stdout.readline().decode().strip()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert holder
    return holder


def test_a_killed_owners_sandboxes_end_by_themselves(base, docker):
    holder = killed_owner(base, ECHO, 3)
    until = time.monotonic() + 20
    while ours(docker, holder) and time.monotonic() < until:
        time.sleep(0.05)
    assert ours(docker, holder) == []


def test_the_reaper_removes_what_dead_owners_left_and_nothing_else(base, docker):
    async def go() -> None:
        backend = await DockerBackend.connect(Docker(url=base))
        root = backend._images[""].id
        docker("run", "-d", "--name", "somebody-elses", "--network", "none", root, "sleep", "60")
        foreign = replace(new_lease(lifetime_s=600), owner="another-host/boot/1/1")
        stays = [
            await backend.create(SandboxSpec(), one, program(ECHO))
            for one in (foreign, new_lease(lifetime_s=600))
        ]
        try:
            holder = killed_owner(base, "import time; time.sleep(600)", 2)  # it does not read its input
            assert len(ours(docker, holder)) == 2
            late = replace(new_lease(lifetime_s=600), owner="another-host/boot/1/1", deadline=time.time() - 1)
            stays.append(await backend.create(SandboxSpec(), late, program(ECHO)))
            assert await backend.reap(time.time()) >= 3
            assert ours(docker, holder) == []
            left = set(docker("ps", "-a", "--format", "{{.Names}}").split())
            assert left >= {"somebody-elses", *(handle.id for handle in stays[:2])}
            assert late.id not in left
        finally:
            for handle in stays:
                await backend.destroy(handle)
            docker("rm", "-f", "somebody-elses")

    asyncio.run(go())


# Files


@pytest.fixture
def task_image(base, docker, tmp_path):
    """Build an image with a repository, a volume, and another folder."""
    asyncio.run(served(base))
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/a.txt").write_text("from the image")
    (tmp_path / "repo/run.sh").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "repo/run.sh").chmod(0o755)
    (tmp_path / "repo/link").symlink_to("/etc/passwd")
    os.link(tmp_path / "repo/a.txt", tmp_path / "repo/hard")
    base_image = f"agentrl/base:{images.find().digest[:12]}"
    (tmp_path / "Dockerfile").write_text(
        f"FROM {base_image}\nCOPY repo /testbed\nCOPY repo /opt/deep/copy\nVOLUME /data\n"
    )
    docker(
        "build",
        "--network",
        "none",
        "-q",
        "-t",
        "agentrl-test/task:1",
        str(tmp_path),
        env={**os.environ, "DOCKER_BUILDKIT": "0"},
    )
    yield "agentrl-test/task:1"
    docker("rmi", "-f", "agentrl-test/task:1")


def test_what_the_image_has_in_writable_folders_is_there_and_can_be_changed(base, docker, task_image):
    code = """
import os, subprocess, json
with open("a.txt", "a") as file: file.write(", changed")
open("/opt/deep/copy/new", "w").close()
open("/data/new", "w").close()
done = subprocess.run(["./run.sh"], capture_output=True, text=True).stdout
try: open("/etc/new", "w"); etc = "writable"
except OSError: etc = "closed"
copied = sorted(os.listdir("/opt/deep/copy"))
found = [open("hard").read(), os.readlink("link"), done, copied, os.getcwd(), etc]
os.write(1, json.dumps(found).encode())
"""

    volumes = docker("volume", "ls", "-q")

    async def go() -> list[str]:
        backend = await DockerBackend.connect(Docker(url=base))
        spec = SandboxSpec(image=task_image, workdir="/testbed", writable=("/opt/deep",), disk_mib=64)
        said_twice = []
        for _ in range(2):
            async with started(backend, code, spec) as stream:
                said_twice.append(await said(stream))
        assert docker("volume", "ls", "-q") == volumes
        return said_twice

    first, second = asyncio.run(go())
    assert json.loads(first) == [
        "from the image, changed",
        "/etc/passwd",
        "ran\n",
        ["a.txt", "hard", "link", "new", "run.sh"],
        "/testbed",
        "closed",
    ]
    assert second == first


def test_files_that_do_not_fit_are_refused_before_anything_starts(base, docker, tmp_path):
    async def go() -> None:
        backend = await DockerBackend.connect(Docker(url=base))
        with pytest.raises(ConfigError, match=r"MiB of the image in /usr/lib must fit in it"):
            await backend.create(
                SandboxSpec(writable=("/usr/lib",), disk_mib=16), new_lease(lifetime_s=60), program(ECHO)
            )

    asyncio.run(go())
    assert ours(docker) == []


# Other transports


@pytest.fixture
def tls(tmp_path):
    """Make certificates of an authority, of a server called localhost, and of a client."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=tmp_path)

    openssl(
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        "ca-key.pem",
        "-out",
        "ca.pem",
        "-subj",
        "/CN=ca",
    )
    for name, file in (("localhost", "server-"), ("client", "")):
        openssl(
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            f"{file}key.pem",
            "-out",
            "r",
            "-subj",
            f"/CN={name}",
        )
        (tmp_path / "ext").write_text(f"subjectAltName=DNS:{name}")
        openssl(
            "x509",
            "-req",
            "-in",
            "r",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca-key.pem",
            "-CAcreateserial",
            "-out",
            f"{file}cert.pem",
            "-extfile",
            "ext",
        )
    return tmp_path


@asynccontextmanager
async def behind_tls(url: str, folder: Path):
    """Serve a daemon over TLS to clients whose certificate is signed by the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server-cert.pem", folder / "server-key.pem")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED

    async def pump(reader, writer) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader, writer) -> None:
        there, back = await asyncio.open_unix_connection(url.removeprefix("unix://"))
        await asyncio.gather(pump(reader, back), pump(there, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield f"tcp://localhost:{server.sockets[0].getsockname()[1]}"


async def echoes(options: Docker) -> None:
    async with tunnelled(locate(options.url, options.tls)) as address:
        backend = await DockerBackend.connect(options, address)
        async with started(backend, ECHO) as stream:
            await stream.send(b"there and back")
            assert await stream.receive() == b"there and back"


def test_a_daemon_behind_tls_is_reached_by_whom_it_knows(base, docker, tls, tmp_path):
    async def go() -> None:
        async with behind_tls(base, tls) as url:
            await echoes(Docker(url=url, tls=str(tls)))
            other = tmp_path / "other"
            other.mkdir()
            for name in ("cert.pem", "key.pem"):
                shutil.copy(tls / name, other)
            shutil.copy(
                ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt",
                other / "ca.pem",
            )
            with pytest.raises(ConfigError, match="CERTIFICATE_VERIFY_FAILED"):
                await served(url, tls=str(other))

    asyncio.run(go())
    assert ours(docker) == []


def _answers(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def sshd(tmp_path, monkeypatch):
    """Run an ssh server to which the user of the tests can log in; yield its port on the loopback."""
    if os.getuid() != 0 or not Path("/usr/sbin/sshd").exists():
        pytest.skip("no ssh server is installed, or this is not root")
    for key in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / key)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": tmp_path / "host",
        "AuthorizedKeysFile": tmp_path / "client.pub",
    }
    settings |= {"StrictModes": "no", "PidFile": "none"}
    (tmp_path / "config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen(
        ["/usr/sbin/sshd", "-D", "-f", str(tmp_path / "config")], stderr=subprocess.DEVNULL
    )
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    options = f"-i {tmp_path}/client -oUserKnownHostsFile={tmp_path}/known -oStrictHostKeyChecking=no"
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} {options} "$@"')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    until = time.monotonic() + 10
    while not _answers(port) and time.monotonic() < until:
        time.sleep(0.02)
    yield port
    server.terminate()
    server.wait()


def test_a_daemon_is_reached_by_ssh(base, docker, sshd):
    if not base.startswith("unix://"):
        pytest.skip("the daemon is not on this machine")
    asyncio.run(echoes(Docker(url=f"ssh://root@127.0.0.1:{sshd}{base.removeprefix('unix://')}")))
    assert ours(docker) == []
    with pytest.raises(
        ConfigError, match=r"docker cannot be used: ssh://root@127\.0\.0\.1:1 cannot be reached: .*refused"
    ):
        asyncio.run(served("ssh://root@127.0.0.1:1"))


@pytest.mark.slow
def test_podmans_service_keeps_the_contract_too(base):
    try:
        with podman_service() as url:
            check_sandbox(Docker(url=url))
            assert asyncio.run(left_at(url)) == []
    except NoDaemon as problem:
        pytest.skip(str(problem))


async def left_at(url: str) -> list[object]:
    api = Api(locate(url))
    await api.negotiate()
    return list(await api.json("GET", "/containers/json", {"all": "1"}))
