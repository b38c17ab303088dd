"""What the abuse suite runs inside a sandbox: this package is written there, and run with the name of an attack.

An attack is a function of ``escapes``, which must be denied, or of ``bombs``, which must be contained.

The canaries of the host come as JSON on standard input; each attempt is told as a JSON line: what was tried, whether it got through, and
what happened. Only the standard library, Python 3.8 and later. Nothing here does harm where it gets through: values are written back as
they were, no packet is sent anywhere, and every bomb ends by itself at four times its limit (but for two, which the suite runs last).
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
"""What the host put out for the attacks to reach, and the sandbox's limits: JSON, different things by name."""


def say(what: str, escaped: object, detail: object) -> None:
    """Report an attempt."""
    os.write(
        1, (json.dumps({"what": what, "escaped": bool(escaped), "detail": str(detail)[:200]}) + "\n").encode()
    )


def attempt(what: str, action: Callable[..., object], *arguments: object) -> None:
    """Try something: it got through unless it raises the error of a system call, or looked for something and returns ``False``."""
    try:
        result = action(*arguments)
    except (OSError, ValueError) as problem:
        say(what, False, f"{type(problem).__name__}: {problem}")
    else:
        say(what, result is not False, "got through" if result is None else result)


def call(name: str, *arguments: object) -> str:
    """Call a function of the C library; return that it worked, or raise its error."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        raise OSError(errno.ENOSYS, name)
    if function(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return f"{name} worked"


def in_child(action: Callable[..., object], *arguments: object) -> object:
    """Do something in a child, whose namespaces and limits are its own; return what it found, or raise its error."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            told = str(action(*arguments))
        except (OSError, ValueError) as problem:
            told = f"!{type(problem).__name__}: {problem}"
        os.write(writer, told.encode()[:400])
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    told = os.read(reader, 400).decode()
    os.close(reader)
    if told.startswith("!"):
        raise OSError(told[1:])
    return told if told != str(False) else False


def content(path: str) -> bytes:
    """Return the beginning of a file, without ever waiting for it."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(file, 1 << 16)
    finally:
        os.close(file)


def opened(path: str, mode: int = os.O_RDWR) -> None:
    """Open a file, without waiting, and leave it as it is."""
    os.close(os.open(path, mode | os.O_NONBLOCK))


def processes() -> Iterator[tuple[int, bytes]]:
    """Yield all processes that can be seen, with their command lines."""
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
