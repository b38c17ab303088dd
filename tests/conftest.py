"""What several test modules share and is dear to start."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from daemon import NoDaemon, docker_daemon

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as in a job of a shell's background: what tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def docker_url() -> Iterator[str]:
    """A Docker daemon, or a skip that says why there is none."""
    try:
        with docker_daemon() as url:
            yield url
    except NoDaemon as problem:
        pytest.skip(str(problem))
