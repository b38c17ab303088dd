"""Reading and writing files."""

from __future__ import annotations

import errno
import os
import stat

from agentrl_sandboxes.guest.processes import fs_encode
from agentrl_sandboxes.guest.server import Operation
from agentrl_sandboxes.guest.wire import CHUNK, WINDOW

FLAGS = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""With these flags, opening a pipe or a device does not block, and opening a terminal does not make it the
controlling terminal of this process."""


def open_regular(path: bytes, flags: int, mode: int = 0) -> int:
    """Open a regular file; refuse anything else before opening it."""
    try:
        kind = os.stat(path).st_mode
        if stat.S_ISDIR(kind):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, "not a regular file")
    except FileNotFoundError:  # either the flags create it, or the next line raises this again
        pass
    return os.open(path, flags | FLAGS, mode)


class Read(Operation):
    """Send the content of a file, as fast as the host takes it."""

    def open(self, path: str, max_bytes: int) -> None:
        """Open the file and begin to send."""
        self.fd = open_regular(fs_encode(path), os.O_RDONLY)
        self.left = max_bytes
        if os.fstat(self.fd).st_size > max_bytes:
            self.too_long()
        else:
            self.more()

    def too_long(self) -> None:
        """Fail: the file is longer than ``max_bytes``."""
        self.close()
        self.fail(OSError(errno.EFBIG, os.strerror(errno.EFBIG)))

    def more(self) -> None:
        """Send up to ``WINDOW`` bytes of data, then give other operations their turn."""
        try:
            for _ in range(WINDOW // CHUNK):
                data = os.read(self.fd, CHUNK) if self.fd >= 0 else b""
                self.left -= len(data)
                if not data or self.left < 0:
                    break
                self.send(data)
        except OSError as problem:
            self.close()
            self.fail(problem)
            return
        if self.left < 0:
            self.too_long()
        elif data:
            self.guest.when_room(self.more)
        else:
            self.close()
            self.finish()

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def cancel(self) -> None:
        """Close the file, so that the next call of ``more`` stops."""
        self.close()


class Write(Operation):
    """Write a file. A new file gets ``mode``; an existing file keeps its own."""

    problem: OSError | None = None

    def open(self, path: str, mode: int) -> None:
        """Create the file and its parent folders."""
        name = fs_encode(path)
        try:
            os.makedirs(os.path.dirname(name) or b".", exist_ok=True)
        except FileExistsError:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        new = not os.path.lexists(name)
        self.fd = open_regular(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        if new:
            os.fchmod(self.fd, mode)

    def data(self, body: bytes) -> None:
        """Write data; after a failure, discard it."""
        self.credit(len(body))
        try:
            while body and not self.problem:
                body = body[os.write(self.fd, body) :]
        except OSError as problem:
            # some back ends bound the disk by a limit on the size of a file
            number = errno.ENOSPC if problem.errno == errno.EFBIG else problem.errno or errno.EIO
            self.problem = OSError(number, os.strerror(number))

    def end(self) -> None:
        """Close the file and send the result."""
        os.close(self.fd)
        if self.problem:
            self.fail(self.problem)
        else:
            self.finish()

    def cancel(self) -> None:
        """Leave the file as it is now."""
        os.close(self.fd)
