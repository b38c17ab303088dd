"""The pod of a sandbox, as the Kubernetes API takes it; everything that isolates it is set here.

The pod satisfies the "restricted" pod security standard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any  # Any: the API's JSON

from agentrl.types import SandboxSpec
from agentrl_sandboxes import programs
from agentrl_sandboxes.backend import SANDBOX_UID, Lease
from agentrl_sandboxes.container import folders

SANDBOX, FILL = "sandbox", "fill"
"""The names of a pod's two containers: the sandbox, and the one that first fills its writable folders."""
STORE = "/.agentrl"
"""Where the writable volume is mounted while it is filled."""
POLICY = "agentrl-closed"
"""Name of the network policy that all sandboxes of a namespace share."""
CLOSED = "agentrl.closed"
"""Name of the label of pods that have no network."""
GRACE_S = 120
"""Seconds from the end of a sandbox's lifetime until the cluster itself ends the pod."""

FILLING = r"""
import os, shutil, sys
store = sys.argv[1]
for number, folder in enumerate(sys.argv[2:]):
    target = os.path.join(store, str(number))
    if os.path.isdir(folder):
        shutil.copytree(folder, target, symlinks=True)
    os.makedirs(target, exist_ok=True)
    for place, _, files in os.walk(target):
        os.chmod(place, 0o755)
        for name in files:
            path = os.path.join(place, name)
            if not os.path.islink(path):
                os.chmod(path, os.stat(path).st_mode & 0o777 | 0o600)
"""
"""Program that copies what the image has in the writable folders to the volume that is mounted over them."""


def pod(
    spec: SandboxSpec,
    lease: Lease,
    image: str,
    command: Sequence[str],
    *,
    runtime: str = "",
    secrets: Sequence[str] = (),
    nodes: Mapping[str, str] | None = None,
) -> Mapping[str, Any]:
    """Return the API's description of a sandbox's pod.

    The pod's first program, ``programs.COPY_IN``, waits until the host attaches to it.

    All writable folders are parts of one volume in memory, which ``disk_mib`` bounds. Its content also counts
    against ``memory_mib``.
    """
    paths = (*folders(spec), *(path for path in ("/tmp", "/dev/shm") if path not in folders(spec)))
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": lease.id,
            "labels": {"agentrl.lease": lease.id, **({CLOSED: "yes"} if spec.network == "none" else {})},
            "annotations": dict(lease.labels()),  # an owner's name is not valid as a label
        },
        "spec": {
            "activeDeadlineSeconds": round(spec.lifetime_s) + GRACE_S,
            "automountServiceAccountToken": False,
            "containers": [_sandbox(spec, image, command, paths)],
            "enableServiceLinks": False,
            "hostIPC": False,
            "hostNetwork": False,
            "hostPID": False,
            "hostname": "sandbox",
            "imagePullSecrets": [{"name": secret} for secret in secrets],
            "initContainers": [_fill(spec, image, command[0], paths)],
            "nodeSelector": dict(nodes or {}),
            "restartPolicy": "Never",
            "securityContext": {
                "fsGroup": SANDBOX_UID,
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "terminationGracePeriodSeconds": 0,
            "volumes": [
                {"name": "writable", "emptyDir": {"medium": "Memory", "sizeLimit": f"{spec.disk_mib}Mi"}}
            ],
            **({"runtimeClassName": runtime} if runtime else {}),
        },
    }


def _sandbox(
    spec: SandboxSpec, image: str, command: Sequence[str], paths: Sequence[str]
) -> Mapping[str, Any]:
    """Return the description of the container that is the sandbox."""
    return {
        **_common(spec, image),
        "name": SANDBOX,
        "command": [command[0], "-I", "-S", "-c", programs.COPY_IN, *command],
        "workingDir": spec.workdir,
        "stdin": True,
        "stdinOnce": True,
        "tty": False,
        "volumeMounts": [
            {"name": "writable", "mountPath": path, "subPath": str(number)}
            for number, path in enumerate(paths)
        ],
    }


def _fill(spec: SandboxSpec, image: str, python: str, paths: Sequence[str]) -> Mapping[str, Any]:
    """Return the description of the container that runs first and copies the image's files to the volume."""
    return {
        **_common(spec, image),
        "name": FILL,
        "command": [python, "-I", "-S", "-c", FILLING, STORE, *paths],
        "volumeMounts": [{"name": "writable", "mountPath": STORE}],
    }


def _common(spec: SandboxSpec, image: str) -> Mapping[str, Any]:
    """Return the part of the description that both containers of a pod have in common."""
    sizes = {"cpu": f"{round(spec.cpus * 1000)}m", "memory": f"{spec.memory_mib}Mi"}
    return {
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "resources": {"limits": sizes, "requests": sizes},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": SANDBOX_UID,
            "runAsGroup": SANDBOX_UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def policy() -> Mapping[str, Any]:
    """Return the network policy that blocks all traffic of the pods that have no network."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": POLICY},
        "spec": {
            "podSelector": {"matchLabels": {CLOSED: "yes"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [],
            "egress": [],
        },
    }
