"""The profile as data; the abuse suite checks that daemons apply it."""

import json
import socket

import pytest
from agentrl_sandboxes.seccomp_profile import profile

RULES = json.loads(profile())["syscalls"]


def refused(name: str, argument: int = 0) -> int:
    """Return the error of a call, or 0, as the kernel applies the rules; at most one rule may match."""
    fitting = [
        rule["errnoRet"]
        for rule in RULES
        if name in rule["names"] and all(argument & one["value"] == one["valueTwo"] for one in rule["args"])
    ]
    assert len(fitting) <= 1
    return fitting[0] if fitting else 0


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK])
def test_sockets_that_belong_to_a_network_namespace_are_allowed(family: int) -> None:
    assert not refused("socket", family)


@pytest.mark.parametrize("family", [40, 17, 38, 31, 45])
def test_sockets_of_other_families_are_refused_whatever_stands_in_the_half_that_nobody_reads(
    family: int,
) -> None:
    assert refused("socket", family)
    assert refused("socket", family | 1 << 40)


def test_namespaces_are_refused_and_ordinary_processes_are_not() -> None:
    assert refused("clone", 0x10000000 | 17)
    assert not refused("clone", 0x01200011)
    assert not refused("clone", 0x3D0F00)  # a thread
    assert refused("clone3")
    assert refused("unshare")


@pytest.mark.parametrize("name", ["read", "openat", "execve", "fork", "ptrace", "futex", "bind", "connect"])
def test_what_programs_need_is_allowed(name: str) -> None:
    assert not refused(name)
