"""The filter of system calls of containers: a profile that replaces the default one of the Engine API.

The default profile allows sockets of every family, and network namespaces do not confine all of them:
``AF_VSOCK`` reaches the hypervisor of the machine. This profile allows a list of families. It refuses what
the default refuses to a container without capabilities, and calls that programs under test do not need
(io_uring, the newer mount calls). A refused call returns an ordinary error.
"""

from __future__ import annotations

import errno
import json
from functools import cache
from typing import Any  # Any: the profile's JSON

from agentrl_sandboxes.seccomp import FAMILIES

NUM_FAMILIES = 64
"""An upper bound on the number of socket families that a kernel has (46 in Linux 6.18)."""
NAMESPACES = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
"""Flags of ``clone`` that create a namespace: mount, cgroup, uts, ipc, user, pid, net."""
LOW = 0xFFFFFFFF
"""Mask of the low 32 bits of an argument, the part that the kernel reads if the argument is an int."""
REFUSED = """
acct add_key bpf chroot clock_adjtime clock_settime create_module delete_module fanotify_init finit_module
fsconfig fsmount fsopen fspick get_kernel_syms get_mempolicy init_module io_uring_enter io_uring_register
io_uring_setup ioperm iopl kexec_file_load kexec_load keyctl lookup_dcookie mbind mount mount_setattr
move_mount move_pages name_to_handle_at nfsservctl open_by_handle_at open_tree perf_event_open pivot_root
query_module quotactl quotactl_fd reboot request_key set_mempolicy sethostname setdomainname setns
settimeofday stime swapoff swapon _sysctl sysfs syslog umount umount2 unshare uselib userfaultfd ustat
vhangup vm86 vm86old
"""
"""Names of the system calls that are always refused."""


@cache
def profile() -> str:
    """Return the profile as the JSON that ``SecurityOpt: ["seccomp=..."]`` takes."""
    # without clone3 the C library uses clone, whose flags a filter can read
    rules = [_refuse(*REFUSED.split()), _refuse("clone3", error=errno.ENOSYS)]
    rules += [_refuse("clone", mask=flag, value=flag) for flag in NAMESPACES]
    families = [family for family in range(NUM_FAMILIES) if family not in FAMILIES]
    rules += [_refuse("socket", mask=LOW, value=family, error=errno.EAFNOSUPPORT) for family in families]
    return json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})


def _refuse(*names: str, mask: int = 0, value: int = 0, error: int = errno.EPERM) -> dict[str, Any]:
    """Return the rule that refuses the system calls ``names`` with ``error``.

    With a ``mask``, only calls are refused whose first argument has the bits ``value`` under this mask.
    """
    args = [{"index": 0, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}] if mask else []
    return {"names": list(names), "action": "SCMP_ACT_ERRNO", "errnoRet": error, "args": args}
