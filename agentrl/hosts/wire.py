"""Messages between a worker process and its parent: length-prefixed pickles over a socket pair.

A call is ``(call number, kind, episode number, payload)``. Its answer is
``(call number, error name, result or error message)``; the error name is empty if the call succeeded.
"""

from __future__ import annotations

import asyncio
import copyreg
import io
import math
import pickle
import socket
from collections import ChainMap
from collections.abc import Callable
from typing import Any  # messages are pickles: both ends know their types, the wire does not

from agentrl.types import Message, Observation, Step

CHUNK = 1 << 18
LENGTH = 4
START = 0
"""Number of the call that starts a worker. Its answer means that the spec is loaded and its shared resource
is open.
"""


_RECORDS: Any = {
    Message: lambda message: (Message, (message.role, message.content, message.images)),
    Observation: lambda seen: (Observation, (seen.messages, seen.actions, seen.plan)),
    Step: lambda step: (Step, (step.observation, step.reward, step.terminated, step.truncated, step.info)),
}
"""Pickle reducers for the records of a turn: twice as fast as those that dataclasses generate for frozen
classes with slots.
"""


class _Pickler(pickle.Pickler):
    dispatch_table: Any = ChainMap(_RECORDS, copyreg.dispatch_table)  # noqa: RUF012


def _pickled(message: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(message)
    return buffer.getvalue()


class Wire:
    """Sends and receives length-prefixed pickles over a socket, driven by the running event loop.

    A message is sent at once unless another one was sent within the last ``hold_s``. In that case it is held,
    and sent together with the messages that follow it when the event loop has run all callbacks that were
    ready. A worker that answers many fast calls thus wakes its parent once for several answers. ``receive``
    is called with each message that arrives, ``closed`` when the peer closes the socket.
    """

    def __init__(
        self,
        sock: socket.socket,
        receive: Callable[[tuple[Any, ...]], None],
        closed: Callable[[], None],
        *,
        hold_s: float = 0.0,
    ) -> None:
        self._sock, self._receive, self._closed, self._hold_s = sock, receive, closed, hold_s
        self._loop = asyncio.get_running_loop()
        self._incoming, self._outgoing = bytearray(), bytearray()
        self._sent_at = -math.inf
        self._flush_scheduled = False
        self._full = False  # whether the socket did not accept all of the outgoing bytes
        sock.setblocking(False)
        self._loop.add_reader(sock, self._read)

    def send(self, message: tuple[object, ...]) -> None:
        """Send a message. Errors of pickling are raised before anything is sent."""
        body = _pickled(message)
        if self._sock.fileno() < 0:
            return
        self._outgoing += len(body).to_bytes(LENGTH, "big") + body
        if self._full:
            return
        if self._loop.time() - self._sent_at >= self._hold_s:
            self.flush()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send the held messages as far as the socket accepts them; the rest follows once it is writable."""
        self._flush_scheduled = False
        if not self._outgoing or self._sock.fileno() < 0:
            return
        try:
            del self._outgoing[: self._sock.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:  # the peer is gone; ``_read`` notices it after the peer's last messages
            self._outgoing.clear()
        self._sent_at = self._loop.time()
        if bool(self._outgoing) != self._full:
            self._full = not self._full
            if self._full:
                self._loop.add_writer(self._sock, self.flush)
            else:
                self._loop.remove_writer(self._sock)

    def close(self) -> None:
        """Close the socket without calling ``closed``."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()

    def _read(self) -> None:
        try:
            chunk = self._sock.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self.close()
            self._closed()
            return
        data = self._incoming
        data += chunk
        messages, start = [], 0
        while len(data) - start >= LENGTH:
            end = start + LENGTH + int.from_bytes(data[start : start + LENGTH], "big")
            if len(data) < end:
                break
            messages.append(bytes(data[start + LENGTH : end]))
            start = end
        del data[:start]
        for message in messages:
            self._receive(pickle.loads(message))


def watchdog_s(deadline_s: float) -> float:
    """Return the seconds that a worker's event loop may hang before the worker's own alarm kills it.

    The alarm comes well after the parent would have killed the worker because of ``deadline_s``.
    """
    return math.ceil(2 * deadline_s + 10)
