"""The host's side of the stream: framing, deadlines, and guests that send arbitrary bytes."""

import asyncio
import json
import time

import pytest
from agentrl_sandboxes.guest.wire import (
    CANCEL,
    CHUNK,
    CREDIT,
    DATA,
    END,
    HEADER,
    NUMBER,
    OPEN,
    PING,
    RESULT,
    WINDOW,
)
from agentrl_sandboxes.link import Link, RequestTooLong
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import SandboxError


def frame(kind: int, channel: int, body: bytes = b"") -> bytes:
    return HEADER.pack(kind, channel, len(body)) + body


HELLO = frame(RESULT, 0, b"{}")


class Peer:
    """The guest's end of a stream, driven by the test."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[bytes] = asyncio.Queue()
        self.heard = bytearray()
        self.closed = False

    async def send(self, data: bytes) -> None:
        self.heard += data

    async def receive(self) -> bytes:
        return await self.said.get()

    async def close(self) -> None:
        self.closed = True

    def say(self, *frames: bytes) -> None:
        self.said.put_nowait(b"".join(frames))

    def frames(self) -> list[tuple[int, int, bytes]]:
        heard, found = bytes(self.heard), []
        while heard:
            kind, channel, length = HEADER.unpack_from(heard)
            found.append((kind, channel, heard[HEADER.size : HEADER.size + length]))
            heard = heard[HEADER.size + length :]
        return [each for each in found if each[0] != PING]


async def opened(**options) -> tuple[Link, Peer]:
    peer = Peer()
    peer.say(HELLO)
    return await Link.open(peer, **options), peer


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_request_goes_out_and_its_answer_comes_back():
    async def check():
        link, peer = await opened()
        asking = asyncio.create_task(link.request("exec", b"input", deadline_s=5, expect=10, argv=["a"]))
        await settle()
        assert [kind for kind, _, _ in peer.frames()] == [OPEN, DATA, END]
        assert json.loads(peer.frames()[0][2]) == {"op": "exec", "argv": ["a"]}
        assert peer.frames()[1][2] == b"input"
        peer.say(frame(DATA, 1, b"out"), frame(DATA, 1, b"put"), frame(RESULT, 1, b'{"code": 3}'))
        answer = await asking
        assert (answer.data, answer.result) == (b"output", {"code": 3})
        await link.close()
        assert peer.closed

    asyncio.run(check())


@given(
    answers=st.lists(st.tuples(st.binary(max_size=50), st.integers(0, 9)), min_size=1, max_size=8),
    cuts=st.lists(st.integers(1, 40), max_size=60),
    order=st.randoms(use_true_random=False),
)
def test_frames_may_be_cut_and_answers_may_come_in_any_order(answers, cuts, order):
    async def check():
        link, peer = await opened()
        asking = [asyncio.create_task(link.request("x", deadline_s=5, expect=50)) for _ in answers]
        await settle()
        numbered = list(enumerate(answers, start=1))
        order.shuffle(numbered)
        said = b""
        for number, (data, value) in numbered:
            said += frame(DATA, number, data) + frame(RESULT, number, json.dumps({"is": value}).encode())
        for cut in cuts:
            if said[:cut]:
                peer.say(said[:cut])
            said = said[cut:]
        if said:
            peer.say(said)
        assert [(answer.data, answer.result["is"]) for answer in await asyncio.gather(*asking)] == answers
        await link.close()

    asyncio.run(check())


@given(said=st.binary(min_size=1, max_size=300), known=st.booleans())
def test_whatever_a_guest_says_is_an_answer_or_an_infrastructure_error(said, known):
    async def check():
        link, peer = await opened()
        asking = asyncio.create_task(link.request("x", deadline_s=60, expect=50))
        await settle()
        peer.say(frame(said[0] % 8, int(known), said[1:]) if known else said)
        peer.said.put_nowait(b"")
        (answer,) = await asyncio.gather(asking, return_exceptions=True)
        assert not isinstance(answer, BaseException) or (
            isinstance(answer, SandboxError) and str(answer) == link.reason
        )
        await settle()
        assert link.reason
        with pytest.raises(SandboxError):
            await link.request("x", deadline_s=1)
        await link.close()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (frame(DATA, 1, b"x" * 51), "more than the 50 bytes"),
        (frame(RESULT, 1, b"[]"), "a malformed answer"),
        (frame(RESULT, 1, b"[" * 100_000), "a malformed answer"),
        (HEADER.pack(DATA, 1, CHUNK + 1), "a frame of"),
        (frame(RESULT, 0, b"AssertionError()"), "the guest broke: AssertionError"),
        (b"", "the guest is gone"),
    ],
)
def test_why_a_link_ends_is_said(said, reason):
    async def check():
        link, peer = await opened()
        asking = asyncio.create_task(link.request("x", deadline_s=60, expect=50))
        await settle()
        peer.said.put_nowait(said)
        with pytest.raises(SandboxError, match=reason):
            await asking
        await link.close()

    asyncio.run(check())


def test_an_answer_that_does_not_come_ends_the_link(monkeypatch):
    monkeypatch.setattr("agentrl_sandboxes.link.GRACE_S", 0.0)

    async def check():
        link, _ = await opened()
        other = asyncio.create_task(link.request("y", deadline_s=60))
        with pytest.raises(SandboxError, match="did not answer"):
            await link.request("x", deadline_s=0.05)
        with pytest.raises(SandboxError, match="did not answer"):
            await other
        await link.close()

    asyncio.run(check())


def test_an_answer_that_came_while_this_process_was_stopped_counts(monkeypatch):
    monkeypatch.setattr("agentrl_sandboxes.link.GRACE_S", 0.0)

    async def check():
        link, peer = await opened()
        asking = asyncio.create_task(link.request("x", deadline_s=0.05))
        await settle()
        time.sleep(1.3)  # past the deadline and the second one, with nothing else running
        peer.say(frame(RESULT, 1, b'{"late": 1}'))
        assert (await asking).result == {"late": 1}
        await link.close()

    asyncio.run(check())


def test_a_guest_that_falls_silent_is_lost():
    async def check():
        link, _ = await opened(heartbeat_s=0.1)
        with pytest.raises(SandboxError, match="silent"):
            await link.request("x", deadline_s=60)
        await link.close()

    asyncio.run(check())


def test_a_request_that_is_cancelled_is_cancelled_inside():
    async def check():
        link, peer = await opened()
        asking = asyncio.create_task(link.request("x", deadline_s=60))
        await settle()
        asking.cancel()
        await settle()
        assert peer.frames()[-1] == (CANCEL, 1, b"")
        peer.say(frame(RESULT, 1, b"{}"))  # the answer was already on its way
        await settle()
        assert not link.reason
        await link.close()

    asyncio.run(check())


def test_no_more_than_a_window_is_sent_ahead():
    async def check():
        link, peer = await opened()
        data = bytes(3 * WINDOW)
        asking = asyncio.create_task(link.request("x", data, deadline_s=60))
        await settle()
        sent = [body for kind, _, body in peer.frames() if kind == DATA]
        assert sum(map(len, sent)) == WINDOW
        peer.say(frame(CREDIT, 1, NUMBER.pack(CHUNK)))
        await settle()
        assert sum(len(body) for kind, _, body in peer.frames() if kind == DATA) == WINDOW + CHUNK
        peer.say(frame(RESULT, 1, b"{}"))
        await asking
        await link.close()

    asyncio.run(check())


def test_a_request_that_does_not_fit_into_a_frame_is_refused_and_harms_nothing():
    async def check():
        link, peer = await opened()
        with pytest.raises(RequestTooLong):
            await link.request("x", deadline_s=1, argv=["y" * (5 << 20)])
        assert not link.reason
        assert not peer.frames()
        await link.close()

    asyncio.run(check())


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"bash: python3: not found\n",
        frame(RESULT, 0, b'{"errno": 13, "error": "/x: Permission denied"}'),
    ],
)
def test_a_guest_that_does_not_start_is_an_error_and_the_stream_is_closed(said):
    async def check():
        peer = Peer()
        peer.said.put_nowait(said)
        peer.said.put_nowait(b"")
        with pytest.raises(SandboxError):
            await Link.open(peer)
        assert peer.closed

    asyncio.run(check())
