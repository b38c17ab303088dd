"""The client of the launcher: starts it, asks it to start and stop sandboxes, and learns how they end."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agentrl.errors import SandboxError
from agentrl_sandboxes import records
from agentrl_sandboxes.confine import StartRequest
from agentrl_sandboxes.launcher_server import MAX_MESSAGE

_READY_S = 10.0
_CLOSE_S = 20.0
_RUN = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from agentrl_sandboxes.launcher_server import main; main()"
)


class LauncherClient:
    """A connection to a running launcher.

    Opened by ``LauncherClient.open``, on the event loop that uses it.
    """

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self._process, self._control = process, control
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[frozenset[str]] = self._loop.create_future()
        self._started: dict[str, asyncio.Future[None]] = {}
        self._ended: dict[str, asyncio.Future[str]] = {}
        self._exited = self._loop.create_future()
        self.controllers: frozenset[str] = frozenset()
        """Control group controllers that the launcher may use."""
        self._loop.add_reader(control, self._on_message)

    @classmethod
    async def open(cls, *, bwrap: str, uid: int) -> LauncherClient:
        """Start a launcher and connect to it.

        If systemd manages the control groups, the launcher runs in a group that systemd delegates to it.

        Raises:
            SandboxError: the launcher did not start.
        """
        problem = SandboxError("the launcher of local sandboxes did not start")
        for prefix in _prefixes():
            launcher = cls._spawn(prefix, bwrap=bwrap, uid=uid)
            try:
                async with asyncio.timeout(_READY_S):
                    launcher.controllers = await asyncio.shield(launcher._ready)
            except (SandboxError, TimeoutError) as found:
                problem = SandboxError(
                    f"the launcher of local sandboxes did not start: {found or 'no answer'}"
                )
                launcher._process.kill()  # one that hangs would not read that it should exit
                await launcher.close()
            except BaseException:
                launcher._process.kill()
                await launcher.close()
                raise
            else:
                return launcher
        raise problem

    @classmethod
    def _spawn(cls, prefix: Sequence[str], *, bwrap: str, uid: int) -> LauncherClient:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = str(Path(__file__).parent.parent)
        command = [
            sys.executable,
            "-I",
            "-S",
            "-c",
            _RUN,
            root,
            str(os.getpid()),
            str(uid),
            bwrap,
            str(records.place()),
        ]
        with theirs:
            process = subprocess.Popen(
                [*prefix, *command],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        ours.setblocking(False)
        return cls(process, ours)

    @property
    def lost(self) -> bool:
        """Whether the launcher has exited, and all its sandboxes with it."""
        return self._exited.done()

    async def start(
        self, request: StartRequest, labels: Mapping[str, str], stream: int
    ) -> asyncio.Future[str]:
        """Start a sandbox, and return a future of its end.

        The future gets the reason of the sandbox's end when nothing of the sandbox is left.

        Raises:
            SandboxError: the sandbox did not start.
        """
        # nothing is registered until it is sent: of a sandbox that was never asked for, no end is reported
        await self._send({"start": asdict(request), "labels": dict(labels)}, [stream])
        ended: asyncio.Future[str] = self._loop.create_future()
        started: asyncio.Future[None] = self._loop.create_future()
        self._ended[request.id], self._started[request.id] = ended, started
        try:
            waited: list[asyncio.Future[Any]] = [started, ended]  # Any: their results have different types
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            await asyncio.shield(self.stop(request.id))
            raise
        finally:
            self._started.pop(request.id, None)
        if not started.done():
            raise SandboxError(f"a local sandbox did not start: {ended.result()}")
        return ended

    async def stop(self, name: str) -> None:
        """Kill a sandbox; return when nothing of it is left."""
        ended = self._ended.get(name)
        if ended is None or ended.done():
            return
        with suppress(SandboxError):  # the launcher is gone, and the sandbox with it
            await self._send({"stop": name}, ())
        await asyncio.shield(ended)

    async def close(self) -> None:
        """Make the launcher stop all its sandboxes and exit."""
        self._control.shutdown(socket.SHUT_RDWR)
        try:
            async with asyncio.timeout(_CLOSE_S):
                while self._process.poll() is None:
                    await asyncio.sleep(0.005)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._lose()
            self._control.close()

    async def _send(self, message: Mapping[str, object], descriptors: Sequence[int]) -> None:
        data = json.dumps(message).encode()
        if len(data) > MAX_MESSAGE:
            raise SandboxError(
                f"the command of a local sandbox is too long: {len(data)} bytes, "
                f"at most {MAX_MESSAGE} can be passed"
            )
        while True:
            if self.lost:
                raise SandboxError("the launcher of local sandboxes is gone")
            try:
                socket.send_fds(self._control, [data], list(descriptors))
            except BlockingIOError:
                await asyncio.sleep(0.002)
            except OSError as problem:
                raise SandboxError(f"the launcher of local sandboxes is gone: {problem}") from problem
            else:
                return

    def _on_message(self) -> None:
        with suppress(BlockingIOError):
            while True:
                try:
                    data = self._control.recv(MAX_MESSAGE)
                except ConnectionError:
                    data = b""
                if not data:
                    self._lose()
                    return
                self._on(json.loads(data))

    def _on(self, message: Mapping[str, Any]) -> None:
        if "ready" in message:
            _finish(self._ready, frozenset(message["ready"]))
        elif "started" in message and message["started"] in self._started:
            _finish(self._started[message["started"]], None)
        elif "ended" in message and (ended := self._ended.pop(message["ended"], None)) is not None:
            _finish(ended, str(message["reason"]))

    def _lose(self) -> None:
        """Mark every sandbox as ended: the launcher is gone, and so the kernel has killed its sandboxes."""
        if self.lost:
            return
        self._exited.set_result(None)
        self._loop.remove_reader(self._control)
        if not self._ready.done():
            self._ready.set_exception(
                SandboxError(f"it ended at once, with exit code {self._process.poll()}")
            )
            self._ready.exception()  # mark it as retrieved: perhaps nothing waits for it
        for ended in self._ended.values():
            _finish(ended, "the launcher of local sandboxes was killed")
        self._ended.clear()


def _finish(future: asyncio.Future[Any], result: object) -> None:  # Any: a future of any type
    if not future.done():
        future.set_result(result)


def _prefixes() -> list[list[str]]:
    """Return the commands under which the launcher can be started, best first.

    Each is tried until one works. The empty command starts the launcher directly.
    """
    version_2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    if version_2 and Path("/run/systemd/system").exists() and shutil.which("systemd-run"):
        whose = [] if os.geteuid() == 0 else ["--user"]
        return [["systemd-run", *whose, "--scope", "--quiet", "--collect", "-p", "Delegate=yes", "--"], []]
    return [[]]
