"""Open sandboxes with a real guest: what the contract suite does not check because it does damage."""

import asyncio
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import plain
import pytest
from agentrl_sandboxes.session import Session
from plain import Plain, PlainStream, session

from agentrl.errors import SandboxError
from agentrl.types import SandboxSpec


def children_of(pid: int) -> set[int]:
    return {
        int(child)
        for file in Path(f"/proc/{pid}/task").glob("*/children")
        for child in file.read_text().split()
    }


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def until(what, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        await asyncio.sleep(0.02)
    return what()


async def started(sandbox: Session) -> int:
    """Start something in the background and return its process id."""
    ran = await sandbox.exec(["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"])
    return int(ran.stdout)


def guest_of(backend: Plain) -> int:
    (process,) = backend.running.values()
    return process.pid


@pytest.fixture
def backend():
    made = Plain()
    yield made
    made.close()


def test_a_guest_that_is_killed_is_an_infrastructure_error_and_never_a_result(backend):
    async def check():
        async with session(backend=backend) as sandbox:
            running = asyncio.create_task(sandbox.exec(["sleep", "60"]))
            await asyncio.sleep(0.2)
            os.kill(guest_of(backend), signal.SIGKILL)
            with pytest.raises(SandboxError, match="gone"):
                await running
            assert not backend.running, "it was destroyed before the error was raised"
            for call in (sandbox.exec(["true"]), sandbox.read("x"), sandbox.kill_all()):
                with pytest.raises(SandboxError, match="closed"):
                    await call

    asyncio.run(check())


def test_a_guest_that_hangs_is_destroyed_after_the_deadline_and_the_grace(backend, monkeypatch):
    monkeypatch.setattr("agentrl_sandboxes.link.GRACE_S", 0.2)

    async def check():
        async with session(backend=backend) as sandbox:
            guest = guest_of(backend)
            os.kill(guest, signal.SIGSTOP)
            backend.patience_s = 0.2
            started = time.monotonic()
            with pytest.raises(SandboxError, match="did not answer"):
                await sandbox.exec(["true"], timeout_s=0.2)
            assert time.monotonic() - started < 5
            assert gone(guest)

    asyncio.run(check())


def test_a_command_that_kills_its_supervisor_is_killed_with_all_it_left(backend):
    async def check():
        async with session(backend=backend) as sandbox:
            survivor = asyncio.create_task(sandbox.exec(["sh", "-c", "sleep 1; echo well"]))
            await asyncio.sleep(0.1)
            ran = await sandbox.exec(
                ["sh", "-c", "setsid sleep 600 & echo $!; kill -9 $PPID; sleep 600"], timeout_s=30
            )
            assert (ran.exit_code, ran.timed_out) == (-9, False)
            assert await until(lambda: gone(int(ran.stdout)))
            assert (await survivor).stdout == b"well\n"

    asyncio.run(check())


def test_what_runs_inside_dies_with_its_owner(backend):
    async def check():
        code = (
            "import asyncio, sys; sys.path.insert(0, sys.argv[1]); import plain\n"
            "async def main():\n"
            "    async with plain.session() as sandbox:\n"
            "        ran = await sandbox.exec(['sh', '-c', 'setsid sleep 600 >/dev/null 2>&1 & echo $!'])\n"
            "        print(int(ran.stdout), sandbox.backend.root, flush=True)\n"
            "        await asyncio.sleep(60)\n"
            "asyncio.run(main())\n"
        )
        tests = str(Path(__file__).parent)
        owner = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, tests, stdout=asyncio.subprocess.PIPE
        )
        assert owner.stdout
        pid, root = (await owner.stdout.readline()).decode().split()
        assert not gone(int(pid))
        backend.root.rmdir()
        backend.root = Path(root)
        owner.kill()
        await owner.wait()
        assert await until(lambda: gone(int(pid)))

    asyncio.run(check())


def test_a_guest_without_a_heartbeat_ends_and_takes_everything_with_it(backend, monkeypatch):
    monkeypatch.setattr("agentrl_sandboxes.session.HEARTBEAT_S", 1.0)

    async def check():
        async with session(backend=backend) as sandbox:
            pid, guest = await started(sandbox), guest_of(backend)
            await asyncio.sleep(1.5)
            assert not gone(guest)  # it receives heartbeats
            assert sandbox._link
            sandbox._link.tasks[2].cancel()
            assert await until(lambda: gone(guest) and gone(pid))

    asyncio.run(check())


def test_starting_that_fails_or_is_cancelled_leaves_nothing(backend):
    class Mute(PlainStream):
        async def receive(self) -> bytes:
            await asyncio.sleep(60)
            return b""

    class MuteBackend(Plain):
        async def open_stream(self, handle):
            return Mute(self.running[handle.id])

    async def check():
        with pytest.raises(SandboxError, match="folder cannot be made"):
            await Session.start(backend, SandboxSpec(workdir="/proc/no"), plain.lease())
        assert not backend.running
        mute = MuteBackend()
        starting = asyncio.create_task(
            Session.start(mute, replace(plain.SPEC, workdir=str(mute.root)), plain.lease())
        )
        assert await until(lambda: bool(mute.running))
        guest = guest_of(mute)
        starting.cancel()
        await asyncio.wait({starting})
        assert starting.cancelled()
        assert gone(guest)
        assert not mute.running
        mute.close()

    asyncio.run(check())


def test_closing_twice_is_fine_and_cancelling_it_does_not_leave_it_half_done(backend):
    async def check():
        async with session(backend=backend) as sandbox:
            pid = await started(sandbox)
            closing = asyncio.create_task(sandbox.close())
            await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait({closing})
            assert closing.cancelled()
            assert not backend.running
            assert gone(pid)
            await sandbox.close()

    asyncio.run(check())


def test_a_call_that_a_reset_interrupts_does_not_harm_the_new_sandbox(backend):
    async def check():
        async with session(backend=backend) as sandbox:
            running = asyncio.create_task(sandbox.exec(["sleep", "60"]))
            await asyncio.sleep(0.1)
            await sandbox.reset()
            with pytest.raises(SandboxError, match="closed"):
                await running
            assert (await sandbox.exec(["echo", "well"])).stdout == b"well\n"

    asyncio.run(check())


def test_what_a_command_left_in_the_background_can_go_on_writing(backend):
    async def check():
        async with session(backend=backend) as sandbox:
            script = "(sleep 0.3; head -c 300000 /dev/zero && echo done > written) & exit 0"
            assert (await sandbox.exec(["sh", "-c", script])).stdout == b""
            assert await until(lambda: (Path(sandbox.spec.workdir) / "written").exists())

    asyncio.run(check())


def test_an_empty_argv_is_the_callers_mistake(backend):
    async def check():
        async with session(backend=backend) as sandbox:
            with pytest.raises(ValueError, match="must name a program"):
                await sandbox.exec([])

    asyncio.run(check())


def test_nothing_of_the_guest_is_open_in_a_command(backend):
    async def check():
        async with session(backend=backend) as sandbox:
            ran = await sandbox.exec(["ls", "/proc/self/fd"])
            assert ran.stdout.split() == [b"0", b"1", b"2", b"3"]  # 3 is the listing

    asyncio.run(check())
