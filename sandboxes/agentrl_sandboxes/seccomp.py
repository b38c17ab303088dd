"""The filter of system calls of local sandboxes: a program that the kernel runs before each call.

Namespaces are only as secure as the kernel that implements them. Therefore calls that programs under test do
not need are refused: those to parts of the kernel in which holes are found most often (new namespaces and
mounts, io_uring, bpf, userfaultfd, perf, keys), and sockets of families that network namespaces do not
confine (``AF_VSOCK`` reaches the hypervisor from any namespace). A refused call returns an ordinary error; it
does not kill the process.

The program is classic BPF (``linux/filter.h``). An instruction has eight bytes, ``struct sock_filter {u16
code; u8 jt, jf; u32 k}``; its input is ``struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6]}``. This
module imports the standard library only.
"""

from __future__ import annotations

import errno
import os
import struct

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # ld [k]; jeq; jge; jset; ret
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets; the low half of an argument is first on both machines
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000

_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
FAMILIES = (1, 2, 10, 16)
"""Socket families that are allowed: AF_UNIX, AF_INET, AF_INET6, AF_NETLINK."""
_X32 = 0x40000000  # set in the numbers of x32 calls, which have the same architecture code as those of x86_64

_NEWER = {  # the same numbers on every machine
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "mount_setattr": 442,
}
_MACHINES: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {"socket": 41, "clone": 56, "clone3": 435}
        | {
            "mount": 165,
            "umount2": 166,
            "pivot_root": 155,
            "chroot": 161,
            "swapon": 167,
            "swapoff": 168,
            "acct": 163,
            "reboot": 169,
        }
        | {
            "add_key": 248,
            "request_key": 249,
            "keyctl": 250,
            "unshare": 272,
            "setns": 308,
            "bpf": 321,
            "userfaultfd": 323,
        }
        | {"perf_event_open": 298, "open_by_handle_at": 304, "init_module": 175, "finit_module": 313}
        | {
            "delete_module": 176,
            "kexec_load": 246,
            "kexec_file_load": 320,
            "quotactl": 179,
            "syslog": 103,
            "settimeofday": 164,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {"socket": 198, "clone": 220, "clone3": 435}
        | {
            "mount": 40,
            "umount2": 39,
            "pivot_root": 41,
            "chroot": 51,
            "swapon": 224,
            "swapoff": 225,
            "acct": 89,
            "reboot": 142,
        }
        | {
            "add_key": 217,
            "request_key": 218,
            "keyctl": 219,
            "unshare": 97,
            "setns": 268,
            "bpf": 280,
            "userfaultfd": 282,
        }
        | {"perf_event_open": 241, "open_by_handle_at": 265, "init_module": 105, "finit_module": 273}
        | {
            "delete_module": 106,
            "kexec_load": 104,
            "kexec_file_load": 294,
            "quotactl": 60,
            "syslog": 116,
            "settimeofday": 170,
        },
    ),
}
_SPECIAL = {"socket", "clone", "clone3"}


def program(machine: str = "") -> bytes:
    """Return the filter for a machine, by default this one (``os.uname().machine``).

    Raises:
        LookupError: the numbers of this machine's system calls are not known here.
    """
    machine = machine or os.uname().machine
    if machine not in _MACHINES:
        raise LookupError(f"no table of system calls for {machine}; there is one for {', '.join(_MACHINES)}")
    arch, numbers = _MACHINES[machine]
    refused = sorted(
        {number for name, number in numbers.items() if name not in _SPECIAL} | set(_NEWER.values())
    )

    code = [
        _load(_ARCH),
        _jump(_EQUAL, arch, skip_if_not=0, skip_if=1),
        _return(errno.ENOSYS),
        _load(_NUMBER),
    ]
    if machine == "x86_64":
        code += [_jump(_AT_LEAST, _X32, skip_if=0, skip_if_not=1), _return(errno.ENOSYS)]
    # clone3 takes its flags in memory, which a filter cannot read; without it C libraries fall back to clone
    code += [_jump(_EQUAL, numbers["clone3"], skip_if=0, skip_if_not=1), _return(errno.ENOSYS)]
    for number in refused:
        code += [_jump(_EQUAL, number, skip_if=0, skip_if_not=1), _return(errno.EPERM)]
    code += [_jump(_EQUAL, numbers["clone"], skip_if=0, skip_if_not=4), _load(_FIRST_ARGUMENT)]
    code += [_jump(_ANY_BIT, _NAMESPACES, skip_if=0, skip_if_not=1), _return(errno.EPERM), _return(None)]
    code += [
        _jump(_EQUAL, numbers["socket"], skip_if=1, skip_if_not=0),
        _return(None),
        _load(_FIRST_ARGUMENT),
    ]
    for family in FAMILIES:
        code += [_jump(_EQUAL, family, skip_if=0, skip_if_not=1), _return(None)]
    return b"".join([*code, _return(errno.EAFNOSUPPORT)])


def _load(offset: int) -> bytes:
    return struct.pack("<HBBI", _LOAD, 0, 0, offset)


def _jump(test: int, value: int, *, skip_if: int, skip_if_not: int) -> bytes:
    return struct.pack("<HBBI", test, skip_if, skip_if_not, value)


def _return(error: int | None) -> bytes:
    return struct.pack("<HBBI", _RETURN, 0, 0, _ALLOW if error is None else _ERRNO | error)
