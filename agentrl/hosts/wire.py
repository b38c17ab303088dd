"""Messages between a worker process and its parent: pickles behind their length, over a socket pair.

A call is ``(call, kind, episode, payload)`` and its answer ``(call, error name, result or message)``.
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
"""The call number of the start; its answer says that the spec is loaded and its shared resource open."""


_RECORDS: Any = {
    Message: lambda message: (Message, (message.role, message.content, message.images)),
    Observation: lambda seen: (Observation, (seen.messages, seen.actions, seen.plan)),
    Step: lambda step: (Step, (step.observation, step.reward, step.terminated, step.truncated, step.info)),
}
"""How the records of a turn are pickled: in half the time of what dataclasses do for frozen slots."""


class _Pickler(pickle.Pickler):
    dispatch_table: Any = ChainMap(_RECORDS, copyreg.dispatch_table)  # noqa: RUF012


def _pickled(message: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(message)
    return buffer.getvalue()


class Wire:
    """Length-prefixed pickles over a socket, driven by the running event loop.

    A message is sent at once, unless another was within the last ``hold_s``: it then goes together with those that follow, after ``hold_s``
    or when the event loop has served all that was ready. A worker that answers many fast calls so wakes its parent once for a few of them.
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
        self._held = self._full = (
            False  # whether a call of flush is coming; whether the socket took less than all
        )
        sock.setblocking(False)
        self._loop.add_reader(sock, self._read)

    def send(self, message: tuple[object, ...]) -> None:
        """Send a message; raises whatever pickling raises, before anything was sent."""
        body = _pickled(message)
        if self._sock.fileno() < 0:
            return
        self._outgoing += len(body).to_bytes(LENGTH, "big") + body
        if self._full:
            return
        if self._loop.time() - self._sent_at >= self._hold_s:
            self.flush()
        elif not self._held:
            self._held = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what was held, as far as the socket takes it; the rest follows when it can."""
        self._held = False
        if not self._outgoing or self._sock.fileno() < 0:
            return
        try:
            del self._outgoing[: self._sock.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:  # the peer is gone; the reader is told, in order, after what it still sent
            self._outgoing.clear()
        self._sent_at = self._loop.time()
        if bool(self._outgoing) != self._full:
            self._full = not self._full
            if self._full:
                self._loop.add_writer(self._sock, self.flush)
            else:
                self._loop.remove_writer(self._sock)

    def close(self) -> None:
        """Close the socket; ``closed`` is not called."""
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


def backstop_s(deadline_s: float) -> float:
    """Seconds that an event loop may stand still before its worker's own alarm ends it: well after its parent would have."""
    return math.ceil(2 * deadline_s + 10)
