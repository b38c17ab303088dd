"""Whether a back end can give what a spec asks: found out before anything is started."""

from __future__ import annotations

import math
from collections.abc import Collection

from agentrl.errors import ConfigError
from agentrl.sandbox import Capabilities, Limit
from agentrl.types import SandboxSpec

LIMITS: dict[str, Limit] = {
    "cpus": "cpu",
    "memory_mib": "memory",
    "num_processes": "processes",
    "disk_mib": "disk",
    "num_files": "files",
    "lifetime_s": "lifetime",
}
"""The field of a spec that sets each limit."""


def check_spec(spec: SandboxSpec, capabilities: Capabilities, *, unenforced: Collection[Limit] = ()) -> None:
    """Pass a spec that the back end can give.

    Raises:
        ConfigError: a value makes no sense, or the back end cannot enforce or offer it, and ``unenforced`` does not accept that.
    """
    for name in LIMITS:
        value = getattr(spec, name)
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"a sandbox's {name} must be a positive number, found {value!r}")
    for path in (spec.workdir, *spec.writable):
        if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise ConfigError(f"a sandbox's folders must be absolute paths without '..', found {path!r}")
    if loose := sorted(set(LIMITS.values()) - capabilities.limits - set(unenforced)):
        fields = ", ".join(name for name, limit in LIMITS.items() if limit in loose)
        enforced = ", ".join(sorted(capabilities.limits)) or "nothing"
        raise ConfigError(
            f"this back end cannot enforce a sandbox's {fields} on this machine, only {enforced}; accept that with "
            f"unenforced=frozenset({{{', '.join(map(repr, loose))}}}) of the provider, or take another provider"
        )
    if spec.network not in capabilities.networks:
        offered = ", ".join(map(repr, sorted(capabilities.networks)))
        raise ConfigError(
            f"this back end offers the networks {offered}, and the sandbox asks for {spec.network!r}"
        )
    if spec.image and not capabilities.images:
        raise ConfigError(
            f"this back end has only its own root file system, and the sandbox asks for image {spec.image!r}; "
            "leave image empty, or take another provider"
        )
