"""The attacks of the abuse suite.

This package is copied into a sandbox, and run there with the name of an attack.
An attack is a function in ``escapes``, and must then be denied, or in ``bombs``, and must then be contained.

It reads the host's canaries as JSON from standard input, and writes a JSON line for each attempt: what was
tried, whether it got through, and what happened. The package uses the standard library only, Python 3.8 or
later. An attack that gets through does no harm: values are written back unchanged, no packet is sent
anywhere, and every bomb ends by itself at four times its limit (except two, which the suite runs last).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

Canary = Any
"""The host's canaries, which attacks try to reach, and the sandbox's limits, by name; values have different
types."""


def say(what: str, escaped: object, detail: object) -> None:
    """Report an attempt: what was tried, whether it got through, and what happened."""
    os.write(
        1, (json.dumps({"what": what, "escaped": bool(escaped), "detail": str(detail)[:200]}) + "\n").encode()
    )


def attempt(what: str, action: Callable[..., object], *arguments: object) -> None:
    """Try something and report it.

    The attempt got through unless it raises an error of a system call or returns ``False``.
    """
    try:
        result = action(*arguments)
    except (OSError, ValueError) as problem:
        say(what, False, f"{type(problem).__name__}: {problem}")
    else:
        say(what, result is not False, "got through" if result is None else result)


def call(name: str, *arguments: object) -> str:
    """Call a function of the C library; raise its error if it fails."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        raise OSError(errno.ENOSYS, name)
    if function(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return f"{name} worked"


def in_child(action: Callable[..., object], *arguments: object) -> object:
    """Do something in a child process, so that it cannot change this one.

    Return its result, or raise its error.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            result = str(action(*arguments))
        except (OSError, ValueError) as problem:
            result = f"!{type(problem).__name__}: {problem}"
        os.write(writer, result.encode()[:400])
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    result = os.read(reader, 400).decode()
    os.close(reader)
    if result.startswith("!"):
        raise OSError(result[1:])
    return result if result != str(False) else False


def content(path: str) -> bytes:
    """Return the beginning of a file, without blocking."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(file, 1 << 16)
    finally:
        os.close(file)


def opened(path: str, mode: int = os.O_RDWR) -> None:
    """Open a file, without blocking, and close it again."""
    os.close(os.open(path, mode | os.O_NONBLOCK))


def processes() -> Iterator[tuple[int, bytes]]:
    """Yield the pids and command lines of all visible processes."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                yield int(name), content(f"/proc/{name}/cmdline")
            except OSError:
                continue


def connect(family: int, kind: int, address: Any) -> str:
    """Connect a socket; return what it was connected to."""
    with socket.socket(family, kind) as sock:
        sock.settimeout(2)
        sock.connect(address)
        return f"connected to {address!r}"
