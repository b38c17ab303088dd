"""Connections to servers that listen on the sandbox's own loopback."""

from __future__ import annotations

import _socket
import errno
import os
import select

from agentrl_sandboxes.guest.channels import Channel
from agentrl_sandboxes.guest.loop import Sink, Source
from agentrl_sandboxes.guest.wire import WINDOW


class HalfClosing(Sink):
    """The sending direction of a socket."""

    def close(self) -> None:
        """Tell the other end that no more will come."""
        if self.fd >= 0:
            socket = _socket.socket(fileno=self.fd)
            try:
                socket.shutdown(_socket.SHUT_WR)
            except OSError:  # it is closed already
                pass
            socket.detach()
        super().close()


class Connect(Channel):
    """A TCP connection, byte for byte."""

    sink: Sink | None = None

    def open(self, port: int) -> None:
        """Connect; a server may listen on either of the two loopback addresses."""
        self.room, self.early, self.ending = WINDOW, bytearray(), False
        self.ways = [(_socket.AF_INET6, ("::1", port)), (_socket.AF_INET, ("127.0.0.1", port))]
        self.attempt(errno.ECONNREFUSED)

    def attempt(self, number: int) -> None:
        """Try the next address; when there is none, say why the last one failed."""
        if not self.ways:
            self.fail(OSError(number, os.strerror(number)))
            return
        family, address = self.ways.pop()
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
        """Hear how the attempt ended."""
        self.loop.watch(self.socket.fileno(), select.EPOLLOUT, None)
        self.settle(self.socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR))

    def settle(self, number: int) -> None:
        """Go on with the connection, or with the next attempt."""
        if number:
            self.socket.close()
            self.attempt(number)
            return
        fd = self.socket.detach()
        self.sink = HalfClosing(self.loop, os.dup(fd), self.credit)
        self.source = Source(self.loop, fd, self.pass_on, self.over)
        self.sink.write(bytes(self.early))
        if self.ending:
            self.sink.end()

    def data(self, body: bytes) -> None:
        """Pass it on, as soon as there is a connection."""
        if self.sink:
            self.sink.write(body)
        else:
            self.early += body

    def end(self) -> None:
        """Pass on that there is no more; the answer may still come."""
        self.ending = True
        if self.sink:
            self.sink.end()

    def pass_on(self, data: bytes) -> None:
        """Send what came, as far as the host takes it in."""
        self.send(data)
        self.room -= len(data)
        if self.room <= 0:
            self.source.pause()

    def credited(self, num: int) -> None:
        """Go on."""
        self.room += num
        if self.room > 0 and self.sink:
            self.source.resume()

    def over(self) -> None:
        """End the channel: the server has closed."""
        if self.sink:
            self.sink.close()
        self.finish(done=True)

    def cancel(self) -> None:
        """Hang up."""
        if self.sink:
            self.sink.close()
            self.source.close()
        else:
            self.ways.clear()
            self.loop.close(self.socket.detach())
