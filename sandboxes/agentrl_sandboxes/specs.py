"""Checks whether a back end can provide what a spec asks for, before anything is started."""

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
"""The limit that each field of a spec sets."""


def check_spec(spec: SandboxSpec, capabilities: Capabilities, *, unenforced: Collection[Limit] = ()) -> None:
    """Check a spec against what the back end can do.

    Raises:
        ConfigError: a value is invalid, or the back end cannot provide or enforce it. Limits in
            ``unenforced`` need not be enforced.
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
        accepted = f"frozenset({{{', '.join(map(repr, loose))}}})"
        raise ConfigError(
            f"this back end cannot enforce a sandbox's {fields} on this machine, only {enforced}; "
            f"accept that with unenforced={accepted} of the provider, or use another provider"
        )
    if spec.network not in capabilities.networks:
        offered = ", ".join(map(repr, sorted(capabilities.networks)))
        raise ConfigError(
            f"this back end offers the networks {offered}, and the sandbox asks for {spec.network!r}"
        )
    if spec.image and not capabilities.images:
        raise ConfigError(
            "this back end has only its own root file system, "
            f"and the sandbox asks for image {spec.image!r}; leave image empty, or use another provider"
        )
