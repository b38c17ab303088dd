"""Sandboxes on this machine's own kernel: user namespaces, an overlay in memory, and bubblewrap.

They need neither a daemon nor root. Inside there is the root file system of an image, which can be written to
and is discarded in the end, a loopback interface, and nothing of the host. ``confine`` describes how a
process becomes a sandbox, ``launcher_server`` what starts and ends sandboxes, and ``seccomp`` which system
calls are refused.

Limits on memory and processors need control groups: root can create them, other users can where systemd
delegates some. Without them the provider reports that, and refuses specs unless ``unenforced`` accepts it.
Files are kept in memory and count against the memory limit, too.

The image ``"host"`` is the host's ``/usr``, read-only, with little else. It does not have to be built, and
what is installed on the host is available in it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from agentrl.sandbox import Limit, Sandboxes, SandboxProvider
from agentrl_sandboxes.local_backend import LocalBackend
from agentrl_sandboxes.pool import PoolOptions
from agentrl_sandboxes.probe import bubblewrap, probe
from agentrl_sandboxes.service import serving
from agentrl_sandboxes.session import Session


@dataclass(frozen=True, kw_only=True)
class Local(SandboxProvider):
    """Sandboxes on this machine, made of namespaces. Needs Linux, bubblewrap 0.8 and user namespaces."""

    unenforced: frozenset[Limit] = frozenset()
    """Limits that need not be enforced; without root or systemd these are ``memory`` and ``cpu``."""
    pool: PoolOptions = field(default_factory=PoolOptions)

    @asynccontextmanager
    async def serve(self, *, run: str = "") -> AsyncIterator[Sandboxes]:
        """Probe what this machine isolates and enforces, remove sandboxes of dead owners, and serve."""
        async with (
            opened_backend() as backend,
            serving(
                backend, run=run, options=self.pool, unenforced=self.unenforced, start=Session.start
            ) as sandboxes,
        ):
            yield sandboxes


@asynccontextmanager
async def opened_backend() -> AsyncIterator[LocalBackend]:
    """Open the back end; leaving the context ends every sandbox that it created.

    Raises:
        ConfigError: sandboxes would not be isolated on this machine; the message says why and how to fix it.
    """
    backend = LocalBackend(bubblewrap())
    try:
        backend.capabilities = await probe(backend)
        yield backend
    finally:
        await backend.close()
