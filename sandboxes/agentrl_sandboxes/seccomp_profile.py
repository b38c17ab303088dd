"""The system calls that a container does without, as the profile that the Engine API takes in place of its default.

The default profile lets a container make sockets of every family, and not every family belongs to a network namespace: one of ``AF_VSOCK``
reaches the hypervisor of the machine. So families are allowed by name here, and refused are: what the default refuses to a container
without capabilities, and what programs under test do not need (io_uring, the newer mount calls). Refused calls fail with an ordinary error.
"""

from __future__ import annotations

import errno
import json
from functools import cache
from typing import Any  # Any: the profile's JSON

FAMILIES = frozenset({1, 2, 10, 16})
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK."""
NUM_FAMILIES = 64
"""More than any kernel has (46 in Linux 6.18)."""
NAMESPACES = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
"""Flags of ``clone`` that make a namespace: mount, cgroup, uts, ipc, user, pid, net."""
LOW = 0xFFFFFFFF
"""The half of an argument that the kernel looks at where it takes an int."""
REFUSED = (
    *(
        "acct",
        "add_key",
        "bpf",
        "chroot",
        "clock_adjtime",
        "clock_settime",
        "create_module",
        "delete_module",
        "fanotify_init",
    ),
    *(
        "finit_module",
        "fsconfig",
        "fsmount",
        "fsopen",
        "fspick",
        "get_kernel_syms",
        "get_mempolicy",
        "init_module",
        "io_uring_enter",
    ),
    *(
        "io_uring_register",
        "io_uring_setup",
        "ioperm",
        "iopl",
        "kexec_file_load",
        "kexec_load",
        "keyctl",
        "lookup_dcookie",
    ),
    *(
        "mbind",
        "mount",
        "mount_setattr",
        "move_mount",
        "move_pages",
        "name_to_handle_at",
        "nfsservctl",
        "open_by_handle_at",
    ),
    *("open_tree", "perf_event_open", "pivot_root", "query_module"),
    *(
        "quotactl",
        "quotactl_fd",
        "reboot",
        "request_key",
        "set_mempolicy",
        "sethostname",
        "setdomainname",
        "setns",
        "settimeofday",
    ),
    *(
        "stime",
        "swapoff",
        "swapon",
        "_sysctl",
        "sysfs",
        "syslog",
        "umount",
        "umount2",
        "unshare",
        "uselib",
        "userfaultfd",
        "ustat",
    ),
    *("vhangup", "vm86", "vm86old"),
)


@cache
def profile() -> str:
    """Return the profile as the JSON that ``SecurityOpt: ["seccomp=..."]`` takes."""
    rules = [
        _refuse(*REFUSED),
        _refuse("clone3", error=errno.ENOSYS),
    ]  # the C library then uses clone, whose flags can be looked at
    rules += [_refuse("clone", mask=flag, value=flag) for flag in NAMESPACES]
    families = [family for family in range(NUM_FAMILIES) if family not in FAMILIES]
    rules += [_refuse("socket", mask=LOW, value=family, error=errno.EAFNOSUPPORT) for family in families]
    return json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})


def _refuse(*names: str, mask: int = 0, value: int = 0, error: int = errno.EPERM) -> dict[str, Any]:
    """Refuse calls: all, or those whose first argument is ``value`` under ``mask``."""
    looked_at = [{"index": 0, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}] if mask else []
    return {"names": list(names), "action": "SCMP_ACT_ERRNO", "errnoRet": error, "args": looked_at}
