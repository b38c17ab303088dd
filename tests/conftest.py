"""What several test modules share because it is expensive to start."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from daemon import NoDaemon, docker_daemon

collect_ignore_glob = ["stored_runs/*"]  # run folders, as earlier versions wrote them

# a background job of a shell ignores interrupts, and so would everything that tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def docker_url() -> Iterator[str]:
    """Yield the URL of a Docker daemon; skip the test with the reason if there is none."""
    try:
        with docker_daemon() as url:
            yield url
    except NoDaemon as problem:
        pytest.skip(str(problem))
