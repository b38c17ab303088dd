"""Canaries: objects on the host that the attacks of the abuse suite try to reach; they show when one does."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from agentrl.types import Json

PLACES = ("/", "/tmp", "/root", "/home", "/etc", "/usr/bin", "/var/tmp", "/dev/shm", "/run", "/opt", "/var")
"""Folders of the host in which attacks try to create a file; if the host finds it, that is an escape."""
VALUES = (
    "kernel/core_pattern",
    "kernel/hostname",
    "kernel/modprobe",
    "kernel/sysrq",
    "kernel/panic",
    "vm/overcommit_memory",
    "fs/suid_dumpable",
)
"""Sysctls of the host that must not change."""
MOUNTS = frozenset({"/", "/dev", "/proc", "/sys", "/sys/fs/cgroup", "/tmp", "/run", "/boot", "/home"})
"""Mounts of the host that must not change; container engines add and remove others."""
ENVIRONMENT = "AGENTRL_ABUSE_CANARY"
GONE_S = 5.0
"""Maximum time in which the processes of a closed sandbox must end."""


class Canaries:
    """A file, a process, listening sockets and an environment variable; ``harm`` yields what changed."""

    def __init__(
        self, folder: Path, victim: asyncio.subprocess.Process, facts: Mapping[str, Json], accepted: list[str]
    ) -> None:
        self.folder, self._victim, self._accepted = folder, victim, accepted
        self.facts = {**facts, "file": str(folder / "secret"), "unix": str(folder / "s"), "pid": victim.pid}
        self.token = str(facts["token"])
        self._death_reported = False
        self._before = self._state()

    def _state(self) -> dict[str, object]:
        """Return the state of the host that must not change, by name."""
        file = self.folder / "secret"
        values = {f"the kernel's {name}": _text(Path("/proc/sys") / name) for name in VALUES}
        return {
            "the file": file.read_bytes() if file.exists() else None,
            "the file's mode": file.stat().st_mode if file.exists() else None,
            "the file's folder": sorted(os.listdir(self.folder)),  # noqa: PTH208 - only names
            "the host's mounts": sorted(_mounts()),
            "the victim's priority": os.getpriority(os.PRIO_PROCESS, self._victim.pid)
            if self._victim.returncode is None
            else None,
            **values,
        }

    def harm(self) -> Iterator[str]:
        """Yield what has changed on the host since the last call."""
        now = self._state()
        yield from (
            f"{name} changed from {self._before[name]!r} to {now[name]!r}"
            for name in now
            if now[name] != self._before[name]
        )
        self._before = now
        if self._victim.returncode is not None and not self._death_reported:
            self._death_reported = True
            yield f"the victim ended with {self._victim.returncode}"
        yield from (f"something connected to {name}" for name in self._accepted)
        self._accepted.clear()
        for place in PLACES:
            if (found := Path(place) / self.token).exists():
                yield f"{found} was written"
                with suppress(OSError):
                    found.unlink()

    async def left(self) -> Iterator[str]:
        """Return the processes of attacks that still exist ``GONE_S`` after their sandbox was closed."""
        until = time.monotonic() + GONE_S
        while (
            found := [name for name, line in _processes() if self.token.encode() in line]
        ) and time.monotonic() < until:
            await asyncio.sleep(0.05)
        return (f"process {name} of the attack outlived the sandbox" for name in found)


@asynccontextmanager
async def canaries() -> AsyncIterator[Canaries]:
    """Create all canaries, and remove them in the end."""
    token, marker, secret = (
        f"agentrl-{what}-{secrets.token_hex(8)}" for what in ("attack", "victim", "secret")
    )
    folder, accepted, servers = Path(tempfile.mkdtemp(prefix="agentrl-abuse-")), [], []

    def server(name: str) -> object:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted.append(name)
            writer.close()

        return answer

    os.environ[ENVIRONMENT] = secret
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import time; time.sleep(3600)", marker
    )
    try:
        folder.chmod(0o755)
        (folder / "secret").write_text(secret)
        servers.append(await asyncio.start_server(server("the loopback port"), "127.0.0.1", 0))  # type: ignore[arg-type]
        port = servers[0].sockets[0].getsockname()[1]
        with suppress(OSError):  # a host without IPv6, or with this port in use there
            servers.append(await asyncio.start_server(server("the loopback port"), "::1", port))  # type: ignore[arg-type]
        servers.append(await asyncio.start_unix_server(server("the unix socket"), str(folder / "s")))  # type: ignore[arg-type]
        servers.append(await asyncio.start_unix_server(server("the abstract socket"), "\0" + marker))  # type: ignore[arg-type]
        facts: dict[str, Json] = {
            "token": token,
            "marker": marker,
            "secret": secret,
            "env": secret,
            "port": port,
            "abstract": marker,
        }
        facts["addresses"] = _addresses()
        yield Canaries(folder, victim, facts, accepted)
    finally:
        del os.environ[ENVIRONMENT]
        if victim.returncode is None:
            victim.kill()
        await victim.wait()
        for listening in servers:
            listening.close()
        shutil.rmtree(folder, ignore_errors=True)


def _addresses() -> list[Json]:
    """Return the address of this host in its network, if it has one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [str(asking.getsockname()[0])]


def _processes() -> Iterator[tuple[str, bytes]]:
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            yield path.name, (path / "cmdline").read_bytes()


def _mounts() -> Iterator[str]:
    """Yield the place and the options of each of the host's own mounts."""
    for line in _text(Path("/proc/self/mountinfo")).splitlines():
        _, _, _, _, place, options, *_ = line.split()
        if place in MOUNTS:
            yield f"{place} {options}"


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
