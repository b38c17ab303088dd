"""Hosts play episodes, in this process or in worker processes with many episodes each.

``open_host`` chooses: ``in_process`` serves environments that never block, ``workers`` those that do.
``process`` is the parent's side of one worker process, ``worker`` is the program inside it, and ``wire``
carries the messages between the two. ``images`` finds out before a run which tasks this machine can play.
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
    """Open the host that ``spec`` needs: worker processes if its environments block, otherwise this process.

    ``deadline_s`` is the maximum time for each call of an environment, and for the start of a worker.
    ``num_workers`` is ignored if the environments do not block.

    Raises:
        ConfigError: the spec cannot be sent to a worker, or a number is out of range.
        EnvError: a worker, or the environment's shared resource, could not be started.
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
