import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from agentrl_sandboxes import cgroups, probe, reaper, records
from agentrl_sandboxes.backend import SANDBOX_UID
from agentrl_sandboxes.leases import new_lease, owner
from agentrl_sandboxes.local import Local
from agentrl_sandboxes.local_backend import LocalBackend

from agentrl.errors import ConfigError, ImageMissing, SandboxError
from agentrl.testing.sandbox import BASE, check_sandbox
from agentrl.types import SandboxSpec

ROOT = Path(__file__).parent.parent
SPEC = SandboxSpec(image="host", disk_mib=32, memory_mib=256, num_processes=32, num_files=128)
SLEEP = ("/bin/sleep", "600")


@cache
def why_not():
    """Return why local sandboxes do not work on this machine; empty if they do."""
    try:
        asyncio.run(_serve())
    except ConfigError as problem:
        return str(problem)
    return ""


def run(work):
    """Run a coroutine function with an open back end that is not probed again; skip if it does not work."""

    async def inside():
        async with asyncio.timeout(60):
            backend = LocalBackend(probe.bubblewrap())
            try:
                return await work(backend)
            finally:
                await backend.close()

    if why_not():
        pytest.skip(why_not())
    return asyncio.run(inside())


async def _serve():
    async with Local().serve() as sandboxes:
        return sandboxes.capabilities


@asynccontextmanager
async def started(backend, *command, spec=SPEC, **lease):
    handle = await backend.create(spec, new_lease(lifetime_s=60, **lease), command)
    try:
        yield handle
    finally:
        await backend.destroy(handle)


async def says(backend, script, spec=SPEC):
    """Return the output of a shell script that runs as the first process of a sandbox."""
    async with started(backend, "/bin/bash", "-c", script, spec=spec) as handle:
        return await everything(await backend.open_stream(handle))


async def everything(stream):
    said = b""
    while data := await stream.receive():
        said += data
    return said.decode()


def traces(name):
    """Return all that exists of a sandbox: processes, control groups, its record."""
    groups = [str(folder) for folder in cgroups.find().folders(name) if folder.exists()]
    return reaper.processes(name) + groups + [str(path) for path in records.place().glob(f"{name}*")]


def gone(name, seconds=10.0):
    end = time.monotonic() + seconds
    while traces(name) and time.monotonic() < end:
        time.sleep(0.02)
    return traces(name)


def inner_of(handle):
    record = next(record for record in records.read(records.place()) if record.id == handle.id)
    return record, int(Path(f"/proc/{record.pid}/task/{record.pid}/children").read_text())


def test_what_this_machine_enforces_was_tried():
    async def work(backend):
        return await probe.probe(backend), await backend.controllers()

    capabilities, controllers = run(work)
    assert capabilities.isolation == "namespaces"
    assert capabilities.networks == {"none"}
    assert {"disk", "files", "processes", "lifetime"} <= capabilities.limits
    assert ("memory" in capabilities.limits) == ("memory" in controllers)
    assert ("cpu" in capabilities.limits) == ("cpu" in controllers)


def test_a_sandbox_is_nobody_on_the_host():
    async def work(backend):
        async with started(backend, "/bin/bash", "-c", "echo ready; exec sleep 600") as handle:
            assert await (await backend.open_stream(handle)).receive() == b"ready\n"
            record, inner = inner_of(handle)
            status = Path(f"/proc/{inner}/status").read_text()
            return {Path(f"/proc/{pid}").stat().st_uid for pid in (record.pid, inner)}, status

    owners, status = run(work)
    assert owners == {SANDBOX_UID if os.geteuid() == 0 else os.geteuid()}
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert {int(fields[name], 16) for name in fields if name.startswith("Cap")} == {0}
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"


def test_nothing_of_the_host_is_there_but_its_programs(tmp_path):
    (tmp_path / "secret").write_text("x")
    script = f"""
        [ -e {tmp_path} ] && echo host files
        [ -e {records.place()} ] && echo records
        grep -q {ROOT} /proc/mounts && echo host paths
        [ "$(ls /proc | grep -c '^[0-9]')" -gt 4 ] && echo host processes
        [ "$(ls /home /root /run /sys | grep -v :)" ] && echo host folders
        known='PATH|HOME|USER|LANG|TERM|PWD|OLDPWD|SHLVL|_'
        [ "$(env | cut -d= -f1 | grep -vxE "$known" )" ] && echo host environment
        grep -vE 'Inter|face|lo:' /proc/net/dev
        cat /proc/net/unix | tail -n +2
        [ -e /sys/fs/cgroup ] && echo control groups
        touch /usr/x 2>/dev/null && echo host programs
        echo nothing else
    """

    async def work(backend):
        return await says(backend, script)

    assert run(work) == "nothing else\n"


def test_what_is_written_is_seen_by_nobody_else_and_not_kept():
    async def work(backend):
        places = "/ /etc /tmp /root /workspace /kept/deep /var/tmp /dev/shm"
        fill = f"for place in {places}; do echo mine > $place/agentrl-note || echo cannot; done"
        look = "find / -xdev -name 'agentrl-note' 2>/dev/null; ls /dev/shm"
        spec = SandboxSpec(image="host", workdir="/workspace", writable=("/kept/deep",))
        async with started(
            backend, "/bin/bash", "-c", f"{fill}; echo written; sleep 60", spec=spec
        ) as handle:
            stream = await backend.open_stream(handle)
            assert await stream.receive() == b"written\n"
            return await says(backend, look, spec)

    assert run(work) == ""


def test_the_disk_is_one_wherever_it_is_written():
    script = (
        "head -c 20M /dev/zero > /tmp/a; head -c 20M /dev/zero > /dev/shm/b; "
        "stat -c %s /tmp/a /dev/shm/b; touch /dev/x && echo loose"
    )

    async def work(backend):
        return await says(backend, script)

    first, second = map(int, run(work).split())
    assert first == 20 << 20
    assert 8 << 20 < second < 12 << 20


def test_each_sandbox_has_processes_of_its_own():
    script = "for i in $(seq 20); do sleep 60 & done 2>/dev/null; ls /proc | grep -c '^[0-9]'; sleep 60"

    async def work(backend):
        async with (
            started(backend, "/bin/bash", "-c", script) as one,
            started(backend, "/bin/bash", "-c", script) as two,
        ):
            return [await (await backend.open_stream(handle)).receive() for handle in (one, two)]

    assert [int(said) >= 21 for said in run(work)] == [True, True]


def test_the_limits_are_what_was_asked_for():
    spec = SandboxSpec(image="host", cpus=0.5, memory_mib=64, disk_mib=16, num_processes=24, num_files=77)

    async def work(backend):
        async with started(backend, *SLEEP, spec=spec) as handle:
            groups = inner_of(handle)[0].groups
            limits = {
                path.name: path.read_text().strip()
                for group in groups
                for path in group.glob("*")
                if path.name in names
            }
            return await says(
                backend, "ulimit -n; ulimit -Hn; ulimit -c; df --output=size -BM / | tail -1", spec
            ), limits

    names = {"memory.limit_in_bytes", "memory.max", "pids.max", "cpu.cfs_quota_us", "cpu.max"}
    said, limits = run(work)
    assert said.split() == ["77", "77", "0", "16M"]
    expected = {"memory.limit_in_bytes": str(64 << 20), "memory.max": str(64 << 20), "pids.max": "26"}
    expected |= {"cpu.cfs_quota_us": "50000", "cpu.max": "50000 100000"}
    assert limits.items() <= expected.items()


@pytest.mark.parametrize("how", ["destroy", "close the back end"])
def test_nothing_is_left_of_a_sandbox(how):
    busy = (
        "for i in 1 2 3; do setsid sleep 600 & done; trap '' TERM INT HUP; "
        "(trap '' TERM; sleep 600) & echo ready; sleep 600"
    )

    async def work(backend):
        handle = await backend.create(SPEC, new_lease(lifetime_s=60), ["/bin/bash", "-c", busy])
        stream = await backend.open_stream(handle)
        assert await stream.receive() == b"ready\n"
        assert len(traces(handle.id)) >= 2
        if how == "destroy":
            await backend.destroy(handle)
            assert traces(handle.id) == []
            await backend.destroy(handle)
            assert await stream.receive() == b""
        else:
            await stream.close()
        return handle.id

    assert traces(run(work)) == []


def test_a_sandbox_ends_with_its_first_process_and_its_stream_says_so():
    async def work(backend):
        handle = await backend.create(
            SPEC, new_lease(lifetime_s=60), ["/bin/bash", "-c", "setsid sleep 600 & echo bye"]
        )
        assert await everything(await backend.open_stream(handle)) == "bye\n"
        while traces(handle.id):
            await asyncio.sleep(0.01)
        await backend.destroy(handle)

    run(work)


def test_a_program_that_is_not_there_is_an_error_that_says_so():
    async def work(backend):
        with pytest.raises(SandboxError, match=r"did not start: .*/no/such/program: No such file"):
            await backend.create(SPEC, new_lease(lifetime_s=60), ["/no/such/program"])
        async with started(backend, "/bin/bash", "-c", "echo oh dear >&2; exit 3") as handle:
            with pytest.raises(SandboxError, match=r"before it sent anything: oh dear \(exit code 3\)"):
                await (await backend.open_stream(handle)).receive()

    run(work)


def test_a_start_that_is_cancelled_leaves_nothing():
    async def work(backend):
        leases = [new_lease(lifetime_s=60) for _ in range(12)]
        for number, lease in enumerate(leases):
            task = asyncio.create_task(backend.create(SPEC, lease, SLEEP))
            await asyncio.sleep(number * 0.002)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await backend.destroy(await task)
        assert [traces(lease.id) for lease in leases] == [[]] * len(leases)

    run(work)


DRIVER = """
    import asyncio, sys
    from agentrl_sandboxes import local_backend, probe
    from agentrl_sandboxes.leases import new_lease
    from agentrl.sandbox import SandboxSpec

    async def main():
        backend = local_backend.LocalBackend(probe.bubblewrap())
        for _ in range(3):
            handle = await backend.create(SandboxSpec(image="host"), new_lease(lifetime_s=600), ["/bin/cat"])
            print(handle.id, flush=True)
        print(backend._launcher._process.pid, flush=True)
        await asyncio.sleep(600)

    asyncio.run(main())
"""


@pytest.fixture
def driver():
    """Yield a process that has three sandboxes, their names, and the pid of its launcher."""
    if why_not():
        pytest.skip(why_not())
    command = [sys.executable, "-c", textwrap.dedent(DRIVER)]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "sandboxes")))}
    with subprocess.Popen(command, env=paths, stdout=subprocess.PIPE, text=True) as process:
        *names, launcher = [process.stdout.readline().strip() for _ in range(4)]
        yield process, names, int(launcher)
        process.kill()
        with suppress(ProcessLookupError):
            os.kill(int(launcher), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_of_an_owner_that_was_killed(driver, number):
    process, names, _ = driver
    assert all(len(traces(name)) >= 2 for name in names)
    process.send_signal(number)
    process.wait()
    assert [gone(name) for name in names] == [[], [], []]


def test_owner_and_launcher_killed_together_leave_no_process_and_the_reaper_the_rest(driver):
    process, names, launcher = driver
    process.send_signal(signal.SIGSTOP)  # so that the launcher's end is not noticed first
    os.kill(launcher, signal.SIGKILL)
    process.kill()
    process.wait()
    end = time.monotonic() + 10
    while any(reaper.processes(name) for name in names) and time.monotonic() < end:
        time.sleep(0.01)
    assert [reaper.processes(name) for name in names] == [[], [], []]
    reaper.reap(time.time())
    # at once, unless the reaper of another run is removing them too
    assert [gone(name) for name in names] == [[], [], []]


def test_the_reaper_takes_a_sandbox_whose_deadline_passed_and_no_other():
    async def work(backend):
        async with started(backend, *SLEEP) as kept, started(backend, *SLEEP) as overdue:
            path = records.place() / f"{overdue.id}.json"
            record = json.loads(path.read_text())
            record["labels"]["agentrl.deadline"] = "1"
            path.write_text(json.dumps(record))
            (records.place() / "other.json").write_text('{"whose": "not ours"}')
            try:
                await backend.reap(time.time())
                assert (records.place() / "other.json").exists()
            finally:
                (records.place() / "other.json").unlink()
            assert traces(overdue.id) == []
            assert len(traces(kept.id)) >= 2

    run(work)


def test_a_record_of_a_process_number_that_is_somebody_elses_now_kills_nobody():
    folder, name = records.place(), new_lease(lifetime_s=1).id
    with subprocess.Popen(SLEEP) as bystander:
        labels = {"agentrl.lease": name, "agentrl.owner": owner(), "agentrl.run": "", "agentrl.deadline": "1"}
        record = {"labels": labels, "pid": bystander.pid, "groups": []}
        (folder / f"{name}.json").write_text(json.dumps(record))
        reaper.reap(time.time())
        assert not (folder / f"{name}.json").exists()
        assert bystander.poll() is None
        bystander.kill()


def test_a_launcher_that_was_killed_takes_its_sandboxes_along_and_is_replaced():
    async def work(backend):
        handle = await backend.create(SPEC, new_lease(lifetime_s=60), SLEEP)
        stream = await backend.open_stream(handle)
        os.kill(backend._launcher._process.pid, signal.SIGKILL)
        with pytest.raises(SandboxError, match="launcher of local sandboxes was killed"):
            await stream.receive()
        assert await says(backend, "echo again") == "again\n"
        await backend.destroy(handle)
        assert traces(handle.id) == []

    run(work)


def test_many_sandboxes_start_at_once_and_all_are_gone():
    async def work(backend):
        handles = await asyncio.gather(
            *(backend.create(SPEC, new_lease(lifetime_s=60), SLEEP) for _ in range(24))
        )
        assert all(len(reaper.processes(handle.id)) >= 2 for handle in handles)
        await asyncio.gather(*map(backend.destroy, handles))
        assert [handle.id for handle in handles if traces(handle.id)] == []

    run(work)


def test_a_large_stream_arrives_whole_both_ways():
    async def work(backend):
        async with started(backend, "/bin/cat") as handle:
            stream = await backend.open_stream(handle)
            sent = os.urandom(1 << 20) * 8
            sending = asyncio.create_task(stream.send(sent))
            received = b""
            while len(received) < len(sent):
                received += await stream.receive()
            await sending
            assert received == sent

    run(work)


def test_an_image_that_is_not_there_and_a_folder_of_the_hosts_are_refused():
    async def work(backend):
        with pytest.raises(ImageMissing, match="no image is named 'never-built'"):
            await backend.create(SandboxSpec(image="never-built"), new_lease(lifetime_s=60), SLEEP)
        with pytest.raises(ConfigError, match="'host' cannot write to /usr/lib"):
            await backend.create(
                SandboxSpec(image="host", writable=("/usr/lib",)), new_lease(lifetime_s=60), SLEEP
            )

    run(work)


def test_without_bubblewrap_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ConfigError, match="apt-get install bubblewrap"):
        asyncio.run(_serve())


@pytest.mark.parametrize(
    ("complaint", "mend"),
    [
        ("bwrap: No permissions to create a new namespace", "must be allowed|disabled|container"),
        ("bwrap: Unknown option --disable-userns", "0.8"),
    ],
)
def test_where_namespaces_are_refused_it_says_why_and_how_to_mend_it(monkeypatch, tmp_path, complaint, mend):
    fake = Path("/tmp", f"agentrl-test-{os.getpid()}")  # not visible inside, where /tmp is the sandbox's own
    fake.mkdir()
    (fake / "bwrap").write_text("#!/bin/sh\n")
    (fake / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
    try:
        with pytest.raises(ConfigError, match=r"do not work on this machine: .*bwrap.*; .*namespaces"):
            asyncio.run(_serve())
    finally:
        shutil.rmtree(fake)
    assert probe._mend(complaint)
    assert any(word in probe._mend(complaint) for word in mend.split("|"))


AS_A_USER = """
    set -e
    mount --make-rprivate /
    mount -t tmpfs -o mode=755 none /mnt && mkdir -m 755 /mnt/upper /mnt/work
    # makes an interpreter in /root executable for other users, in this mount namespace only
    mount -t overlay -o lowerdir=/root,upperdir=/mnt/upper,workdir=/mnt/work none /root
    exec setpriv --reuid 61234 --regid 61234 --clear-groups "$@"
"""


def as_a_user(*arguments):
    """Run this file as an unprivileged user; return pytest's output."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=--import-mode=importlib",
        __file__,
        *arguments,
    ]
    home = {"HOME": "/nonexistent", "TMPDIR": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"}
    paths = {**os.environ, **home, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "sandboxes")))}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", textwrap.dedent(AS_A_USER), "sh", *command],
        env=paths, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


root_only = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become a user; run as one, these tests are that run"
)


@pytest.mark.slow
@root_only
def test_all_of_this_holds_for_a_user_without_root():
    said = as_a_user("-m", "not slow")
    assert "passed" in said
    assert "skipped" not in said


@pytest.mark.slow
def test_the_contract_of_sandboxes_is_kept():
    if why_not():
        pytest.skip(why_not())
    check_sandbox(
        Local() if os.geteuid() == 0 else Local(unenforced=frozenset({"memory", "cpu"})),
        spec=replace(BASE, image="host"),
    )


@root_only
@pytest.mark.slow
def test_the_contract_of_sandboxes_is_kept_for_a_user_without_root():
    assert "1 passed, 2 skipped" in as_a_user("-m", "slow")
