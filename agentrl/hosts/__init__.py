"""Hosts: where episodes are played, in this process or in worker processes with many episodes each.

``open_host`` chooses. ``in_process`` serves environments that never block, ``workers`` those that do, each worker process running
``worker``; ``images`` finds out which tasks can be played on this machine at all.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agentrl.env import EnvSpec
from agentrl.errors import ConfigError
from agentrl.hosts.in_process import InProcess
from agentrl.hosts.workers import Workers
from agentrl.rollout import Host
from agentrl.sandbox import SandboxProvider


@asynccontextmanager
async def open_host(
    spec: EnvSpec, *, num_workers: int, deadline_s: float, sandboxes: SandboxProvider | None = None
) -> AsyncIterator[Host]:
    """Open the host that ``spec`` needs: worker processes where it blocks, this process where it does not.

    ``deadline_s`` bounds every call of an environment, and the start of a worker. ``num_workers`` is not used in this process.

    Raises:
        ConfigError: the spec cannot be sent to a worker, or a number makes no sense.
        EnvError: a worker, or what its episodes share, could not be started.
    """
    if num_workers < 1:
        raise ConfigError(f"num_workers must be at least 1, found {num_workers}")
    if not 0 < deadline_s < math.inf:
        raise ConfigError(f"deadline_s must be a positive number of seconds, found {deadline_s}")
    host = (
        Workers(spec, num_workers, deadline_s, sandboxes)
        if spec.blocking
        else InProcess(spec, deadline_s, sandboxes)
    )
    async with host:
        yield host
