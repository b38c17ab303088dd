import errno
import os
import struct
import subprocess
import sys

import pytest
from agentrl_sandboxes.seccomp import _MACHINES, program

ALLOW = 0x7FFF0000
REFUSED = 0x00050000


def evaluate(code, *, arch, number, argument=0):
    """Run a filter as the kernel does: the accumulator, loads of the call's data, jumps, a return."""
    data = struct.pack("<IIQQ", number, arch, 0, argument).ljust(64, b"\0")
    instructions = [struct.unpack_from("<HBBI", code, at) for at in range(0, len(code), 8)]
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, value = instructions[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x06:
            return value
        else:
            test = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[
                operation
            ]
            at += if_true if test else if_false


@pytest.fixture(params=sorted(_MACHINES))
def machine(request):
    arch, numbers = _MACHINES[request.param]
    return program(request.param), arch, numbers


def test_what_a_program_under_test_does_not_need_is_refused(machine):
    code, arch, numbers = machine
    for name in (
        "mount",
        "unshare",
        "setns",
        "bpf",
        "userfaultfd",
        "keyctl",
        "perf_event_open",
        "kexec_load",
        "init_module",
    ):
        assert evaluate(code, arch=arch, number=numbers[name]) == REFUSED | errno.EPERM, name
    for number in (425, 428, 442):
        assert evaluate(code, arch=arch, number=number) == REFUSED | errno.EPERM


def test_everything_else_is_allowed(machine):
    code, arch, numbers = machine
    refused = {*numbers.values(), *range(425, 434), 442}
    for number in set(range(460)) - refused:
        assert evaluate(code, arch=arch, number=number, argument=2**64 - 1) == ALLOW


def test_processes_and_threads_may_be_made_but_no_namespaces(machine):
    code, arch, numbers = machine
    thread = 0x3D0F00  # what a C library asks for
    assert evaluate(code, arch=arch, number=numbers["clone"], argument=thread) == ALLOW
    for bit in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert (
            evaluate(code, arch=arch, number=numbers["clone"], argument=thread | bit) == REFUSED | errno.EPERM
        )
    assert evaluate(code, arch=arch, number=numbers["clone3"]) == REFUSED | errno.ENOSYS


def test_sockets_are_of_families_that_a_network_namespace_holds_back(machine):
    code, arch, numbers = machine
    allowed = [
        family
        for family in range(64)
        if evaluate(code, arch=arch, number=numbers["socket"], argument=family) == ALLOW
    ]
    assert allowed == [1, 2, 10, 16]
    assert evaluate(code, arch=arch, number=numbers["socket"], argument=40) == REFUSED | errno.EAFNOSUPPORT


def test_calls_of_another_architecture_do_not_get_round_it():
    arch, _ = _MACHINES["x86_64"]
    code = program("x86_64")
    assert evaluate(code, arch=0x40000003, number=0) == REFUSED | errno.ENOSYS
    assert evaluate(code, arch=arch, number=0x40000000 | 41) == REFUSED | errno.ENOSYS


def test_a_machine_without_a_table_is_named():
    with pytest.raises(LookupError, match="riscv64"):
        program("riscv64")


@pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine not in _MACHINES, reason="no filter for this machine"
)
def test_the_kernel_takes_it():
    script = """
import ctypes, os, socket, subprocess, sys, threading
from agentrl_sandboxes.seccomp import program
C, code = ctypes.CDLL(None, use_errno=True), program()
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
assert C.prctl(38, 1, 0, 0, 0) == 0
assert C.prctl(22, 2, ctypes.byref(Program(len(code) // 8, code)), 0, 0) == 0, os.strerror(ctypes.get_errno())
assert C.unshare(0x10000000) == -1 and ctypes.get_errno() == 1
try:
    socket.socket(40, socket.SOCK_STREAM)
except OSError as problem:
    assert problem.errno == 97
socket.create_server(("127.0.0.1", 0)).close()
thread = threading.Thread(target=print, args=("thread",))
thread.start()
thread.join()
subprocess.run(["/bin/echo", "process"], check=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["process", "thread"]
