"""Connections to servers that listen on the sandbox's loopback interface."""

from __future__ import annotations

import _socket
import errno
import os
import select

from agentrl_sandboxes.guest.loop import PipeReader, PipeWriter
from agentrl_sandboxes.guest.server import Operation
from agentrl_sandboxes.guest.wire import WINDOW


class SocketWriter(PipeWriter):
    """The sending direction of a socket."""

    def close(self) -> None:
        """Shut down the sending direction, so that the other end reads an end of file."""
        if self.fd >= 0:
            socket = _socket.socket(fileno=self.fd)
            try:
                socket.shutdown(_socket.SHUT_WR)
            except OSError:  # it is already closed
                pass
            socket.detach()
        super().close()


class Connect(Operation):
    """A TCP connection: the request's data is sent to the server, and the server's data to the host."""

    writer: PipeWriter | None = None

    def open(self, port: int) -> None:
        """Connect. A server may listen on either of the two loopback addresses."""
        self.room, self.early, self.ending = WINDOW, bytearray(), False
        self.addresses = [(_socket.AF_INET6, ("::1", port)), (_socket.AF_INET, ("127.0.0.1", port))]
        self.attempt(errno.ECONNREFUSED)

    def attempt(self, number: int) -> None:
        """Try the next address; when none is left, fail with ``number``, the error of the last attempt."""
        if not self.addresses:
            self.fail(OSError(number, os.strerror(number)))
            return
        family, address = self.addresses.pop()
        try:
            self.socket = _socket.socket(
                family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
            )
        except OSError as problem:
            self.attempt(problem.errno or errno.EIO)
            return
        number = self.socket.connect_ex(address)
        if number == errno.EINPROGRESS:
            self.loop.watch(self.socket.fileno(), select.EPOLLOUT, self.connected)
        else:
            self.settle(number)

    def connected(self) -> None:
        """Read how the attempt to connect ended, and act on that."""
        self.loop.watch(self.socket.fileno(), select.EPOLLOUT, None)
        self.settle(self.socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR))

    def settle(self, number: int) -> None:
        """Use the connection if ``number`` is 0; else it is an error, and the next address is tried."""
        if number:
            self.socket.close()
            self.attempt(number)
            return
        fd = self.socket.detach()
        self.writer = SocketWriter(self.loop, os.dup(fd), self.credit)
        self.reader = PipeReader(self.loop, fd, self.pass_on, self.over)
        self.writer.write(bytes(self.early))
        if self.ending:
            self.writer.end()

    def data(self, body: bytes) -> None:
        """Send data to the server, or keep it until there is a connection."""
        if self.writer:
            self.writer.write(body)
        else:
            self.early += body

    def end(self) -> None:
        """Close the sending direction; the server may still answer."""
        self.ending = True
        if self.writer:
            self.writer.end()

    def pass_on(self, data: bytes) -> None:
        """Send the server's data to the host; stop reading while the host is ``WINDOW`` bytes behind."""
        self.send(data)
        self.room -= len(data)
        if self.room <= 0:
            self.reader.pause()

    def credited(self, num: int) -> None:
        """Resume reading: the host has consumed ``num`` more bytes of data."""
        self.room += num
        if self.room > 0 and self.writer:
            self.reader.resume()

    def over(self) -> None:
        """Finish: the server has closed the connection."""
        if self.writer:
            self.writer.close()
        self.finish(done=True)

    def cancel(self) -> None:
        """Close the connection."""
        if self.writer:
            self.writer.close()
            self.reader.close()
        else:
            self.addresses.clear()
            self.loop.close(self.socket.detach())
