"""A Docker daemon for tests: an existing one, or our own, which ends with the tests, however they end."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "sandboxes" / "scripts" / "dockerd.sh"


class NoDaemon(Exception):
    """There is no daemon, and none can be started; the message says why."""


@contextmanager
def docker_daemon(*flags: str) -> Iterator[str]:
    """Yield the URL of a daemon. With flags it is always one of our own."""
    if not flags and (url := _reachable()):
        yield url
        return
    if os.getuid() != 0:
        raise NoDaemon("no Docker daemon is reachable, and starting one needs root")
    folder = Path(tempfile.mkdtemp(prefix="dk-", dir="/tmp"))  # short: it contains a unix socket
    with (folder / "messages").open("w+") as messages:
        process = subprocess.Popen(
            [str(SCRIPT), "hold", str(folder), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            url = process.stdout.readline().decode().strip()
            if not url:
                messages.seek(0)
                raise NoDaemon(f"no Docker daemon could be started: {messages.read().strip()[-500:]}")
            yield url
        finally:
            process.stdin.close()
            process.wait(timeout=120)
            process.stdout.close()
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def podman_service() -> Iterator[str]:
    """Yield the URL of a podman API service of our own, with its own storage."""
    if os.getuid() != 0 or shutil.which("podman") is None:
        raise NoDaemon("podman is not installed, or this is not root")
    folder = Path(tempfile.mkdtemp(prefix="pm-", dir="/tmp"))
    # podman's own defaults may be more than this machine allows
    limits = 'default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]'
    engine = 'cgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"'
    (folder / "conf").write_text(f"[containers]\n{limits}\n[engine]\n{engine}\n")
    command = [
        "podman",
        "--root",
        str(folder / "root"),
        "--runroot",
        str(folder / "run"),
        "system",
        "service",
        "--time=0",
        f"unix://{folder}/s",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "CONTAINERS_CONF": str(folder / "conf")}
        )
    try:
        for _ in range(100):
            if (folder / "s").exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        if not (folder / "s").exists():
            raise NoDaemon(f"podman's service did not start: {(folder / 'log').read_text()[-500:]}")
        yield f"unix://{folder}/s"
    finally:
        process.terminate()
        process.wait(timeout=60)
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for path in sorted((path for path in mounted if path.startswith(f"{folder}/")), reverse=True):
            subprocess.run(["umount", "-l", path], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _reachable() -> str:
    """Return the URL of a daemon that answers; empty if there is none."""
    url = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if shutil.which("docker") is None:
        return ""
    asked = subprocess.run(["docker", "-H", url, "version"], capture_output=True, timeout=20, check=False)
    return url if asked.returncode == 0 else ""
