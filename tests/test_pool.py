import asyncio

import pytest
from agentrl_sandboxes.pool import Pool, PoolOptions
from hypothesis import given, settings
from hypothesis import strategies as st
from looped import looped

from agentrl.errors import ConfigError, SandboxError
from agentrl.types import SandboxSpec

ONE, TWO = SandboxSpec(image="one"), SandboxSpec(image="two")


@pytest.mark.parametrize(
    "options",
    [
        {"num_open": 0},
        {"num_warm": -1},
        {"attempts": 0},
        {"attempts": 1.5},
        {"backoff_s": -1.0},
        {"idle_s": float("nan")},
        {"num_starting": 0},
    ],
)
def test_options_that_make_no_sense_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        PoolOptions(**options)


@looped
async def test_slots_are_served_first_come_first_served() -> None:
    pool, order = Pool[str](1, print), []
    await pool.take(ONE, deadline_s=1)

    async def wait(name: int) -> None:
        assert await pool.take(ONE if name % 2 else TWO, deadline_s=5) is None
        order.append(name)
        pool.give_back()

    waiting = [asyncio.create_task(wait(name)) for name in range(6)]
    await asyncio.sleep(0)
    assert pool.num_waiting == 6
    pool.give_back()
    await asyncio.gather(*waiting)
    assert order == list(range(6))
    assert pool.num_used == 0


@looped
async def test_what_is_warm_is_taken_before_a_slot() -> None:
    pool = Pool[str](2, print)
    assert pool.take_spare()
    pool.put(ONE, "warm")
    assert await pool.take(ONE, deadline_s=1) == "warm"
    assert await pool.take(ONE, deadline_s=1) is None
    assert pool.num_used == 2


@looped
async def test_a_warm_one_that_comes_while_somebody_waits_for_it_is_handed_over() -> None:
    pool = Pool[str](1, print)
    assert pool.take_spare()
    waiting = asyncio.create_task(pool.take(ONE, deadline_s=5))
    await asyncio.sleep(0)
    assert not pool.take_spare()
    pool.put(ONE, "fresh")
    assert await waiting == "fresh"


@looped
async def test_the_longest_idle_of_another_spec_makes_room() -> None:
    evicted: list[str] = []
    pool = Pool[str](2, evicted.append)
    for name in ("old", "young"):
        assert pool.take_spare()
        pool.put(ONE, name)
    waiting = asyncio.create_task(pool.take(TWO, deadline_s=5))
    await asyncio.sleep(0)
    assert evicted == ["old"]
    pool.give_back()
    assert await waiting is None
    assert pool.num_warm(ONE) == 1


@looped
async def test_who_waits_in_vain_learns_why() -> None:
    pool = Pool[str](1, print)
    await pool.take(ONE, deadline_s=1)
    with pytest.raises(SandboxError, match=r"no sandbox became free within 0\.01 s: all 1 are in use"):
        await pool.take(ONE, deadline_s=0.01)
    assert pool.num_waiting == 0


@looped
async def test_what_was_given_to_somebody_who_is_cancelled_comes_back() -> None:
    pool = Pool[str](1, print)
    await pool.take(ONE, deadline_s=1)
    for give in (pool.give_back, lambda: pool.put(ONE, "warm")):
        waiting = asyncio.create_task(pool.take(ONE, deadline_s=5))
        await asyncio.sleep(0)
        give()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        served = await pool.take(ONE, deadline_s=1)
        assert served in (None, "warm")
    assert pool.num_used == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "cancel", "back", "warm", "idle"]), st.booleans()), max_size=60
    ),
    st.integers(1, 4),
)
def test_no_slot_is_ever_lost_or_made_up(steps: list[tuple[str, bool]], num_slots: int) -> None:
    asyncio.run(_walk(steps, num_slots))


async def _walk(steps: list[tuple[str, bool]], num_slots: int) -> None:
    out: list[object] = []
    evicted: list[object] = []
    pool = Pool[object](num_slots, evicted.append)
    takers: list[asyncio.Task[object]] = []
    for step, which in steps:
        spec = ONE if which else TWO
        if step == "take":
            takers.append(asyncio.create_task(pool.take(spec, deadline_s=60)))
        elif step == "cancel" and takers:
            takers[len(takers) // 2].cancel()
        elif step == "back" and out:
            out.pop()
            pool.give_back()
        elif step == "warm" and pool.take_spare():
            pool.put(spec, object())
        elif step == "idle":
            out.extend(pool.idle(lambda spec: 0.0))
        if which:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        while evicted:
            evicted.pop()
            pool.give_back()
        for taker in [taker for taker in takers if taker.done()]:
            takers.remove(taker)
            if not taker.cancelled():
                out.append(taker.result())
    for taker in takers:
        taker.cancel()
    for result in await asyncio.gather(*takers, return_exceptions=True):
        if not isinstance(result, BaseException):
            out.append(result)
    out.extend(evicted)
    assert pool.num_used == len(out) + pool.num_warm()
    assert 0 <= pool.num_used <= num_slots
    assert pool.num_waiting == 0
