import asyncio
import dataclasses
import pickle
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from agentrl.hosts.wire import Wire, _pickled
from agentrl.types import Message, Observation, Step


@dataclasses.dataclass(frozen=True, slots=True)
class Titled(Observation):
    title: str = ""


@pytest.mark.parametrize(
    "sent",
    [
        Step(
            Observation(
                (Message("user", "a door", (b"png",)), Message("tool", "")), ("open", "wait"), ("open",)
            ),
            0.5,
            True,
            False,
            {"x": 1.0},
        ),
        Step(Observation.text("x"), np.float32(0.25), truncated=True, info={"success": np.bool_(True)}),
        Step(Titled((Message("user", "x"),), title="of another class")),
        "no record at all",
    ],
)
def test_what_was_sent_arrives(sent):
    arrived = pickle.loads(_pickled((7, "", sent)))
    assert arrived == (7, "", sent)
    assert type(arrived[2]) is type(sent)


async def exchange(messages, *, hold_s):
    """Send ``messages`` in one iteration of the event loop.

    Return how many were sent at once, how many were sent after the iteration, and what arrived in the end.
    """
    ours, theirs = socket.socketpair()
    arrived, last = [], asyncio.Event()

    def receive(message):
        arrived.append(message)
        if len(arrived) == len(messages):
            last.set()

    sender = Wire(ours, lambda _: None, lambda: None, hold_s=hold_s)
    for message in messages:
        sender.send(message)
    at_once = count(theirs.recv(1 << 20, socket.MSG_PEEK))
    await asyncio.sleep(0)
    later = count(theirs.recv(1 << 20, socket.MSG_PEEK))
    receiver = Wire(theirs, receive, lambda: None)
    async with asyncio.timeout(10):
        await last.wait()
    sender.close()
    receiver.close()
    return at_once, later, arrived


def count(data):
    number = 0
    while len(data) >= 4 and len(data) >= 4 + int.from_bytes(data[:4], "big"):
        number, data = number + 1, data[4 + int.from_bytes(data[:4], "big") :]
    return number


def test_messages_that_follow_fast_wait_for_each_other_and_the_first_does_not():
    messages = [(number,) for number in range(20)]
    assert asyncio.run(exchange(messages, hold_s=60.0)) == (1, 20, messages)
    assert asyncio.run(exchange(messages, hold_s=0.0)) == (20, 20, messages)


@pytest.mark.parametrize("hold_s", [0.0, 60.0])
def test_a_socket_that_is_full_loses_nothing(hold_s):
    messages = [(number, "x" * 100_000) for number in range(40)]
    _, later, arrived = asyncio.run(exchange(messages, hold_s=hold_s))
    assert later < 40
    assert arrived == messages


@pytest.mark.parametrize(
    ("does", "status"), [("await asyncio.sleep(1.2)", 0), ("time.sleep(5)", -signal.SIGALRM)]
)
def test_a_process_whose_loop_stands_still_ends_itself(does, status):
    program = f"""
import asyncio, time
from agentrl.hosts.worker import arm_watchdog

async def run():
    arm_watchdog(0.6)
    {does}

asyncio.run(run())
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == status
