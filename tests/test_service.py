"""The service, with a back end that the tests control; the tests of real back ends use the service too."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from agentrl_sandboxes.backend import Backend, Handle, Lease, Stream
from agentrl_sandboxes.metrics import METRICS
from agentrl_sandboxes.pool import PoolOptions
from agentrl_sandboxes.service import Service, serving
from looped import looped

from agentrl.errors import ConfigError, ImageMissing, SandboxError
from agentrl.sandbox import Capabilities, Limit
from agentrl.types import SandboxSpec

ALL: frozenset[Limit] = frozenset({"cpu", "memory", "processes", "disk", "files", "lifetime"})
SPEC = SandboxSpec()
QUICK = PoolOptions(backoff_s=0.001, reap_every_s=0.02, start_deadline_s=5.0)


@dataclass
class Scripted:
    """A back end without real sandboxes; ``on_create`` and ``on_destroy`` are called in these methods."""

    capabilities: Capabilities = Capabilities(isolation="namespaces", limits=ALL)  # noqa: RUF009 - it is frozen
    on_create: Callable[[SandboxSpec], Any] = lambda spec: asyncio.sleep(0)
    on_destroy: Callable[[str], Any] = lambda name: asyncio.sleep(0)
    missing: dict[str, str] = field(default_factory=dict)
    prepared: list[str] = field(default_factory=list)
    there: dict[str, Lease] = field(default_factory=dict)
    created: int = 0
    most: int = 0
    reaps: int = 0

    async def prepare(self, image: str) -> None:
        self.prepared.append(image)
        await asyncio.sleep(0)
        if image in self.missing:
            raise ImageMissing(self.missing[image])

    async def create(self, spec: SandboxSpec, lease: Lease, command: Sequence[str]) -> Handle:
        self.created += 1
        await self.on_create(spec)
        self.there[lease.id] = lease
        self.most = max(self.most, len(self.there))
        return Handle(lease.id)

    async def open_stream(self, handle: Handle) -> Stream:
        raise NotImplementedError

    async def destroy(self, handle: Handle) -> None:
        await self.on_destroy(handle.id)
        self.there.pop(handle.id, None)

    async def reap(self, now: float) -> int:
        self.reaps += 1
        return 1


@dataclass(eq=False)
class Fake:
    backend: Backend
    spec: SandboxSpec
    handle: Handle
    alive: bool = True

    async def close(self) -> None:
        await self.backend.destroy(self.handle)


async def start(backend: Backend, spec: SandboxSpec, lease: Lease) -> Any:
    return Fake(backend, spec, await backend.create(spec, lease, []))


@asynccontextmanager
async def served(backend: Scripted, options: PoolOptions = QUICK, **others: Any) -> AsyncIterator[Service]:
    async with serving(backend, options=options, start=start, **others) as service:
        assert isinstance(service, Service)
        yield service
    assert not backend.there, "something was left"
    assert service._pool.num_used == 0
    assert not service._jobs


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


def failing(times: int, problem: Exception) -> Callable[[SandboxSpec], Any]:
    left = [times]

    async def create(spec: SandboxSpec) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise problem

    return create


async def forever(*_: object) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (replace(SPEC, memory_mib=0), "memory_mib must be a positive number, found 0"),
        (replace(SPEC, lifetime_s=float("inf")), "lifetime_s must be a positive number, found inf"),
        (replace(SPEC, workdir="here"), "absolute paths"),
        (replace(SPEC, writable=("/a/../b",)), "absolute paths"),
        (replace(SPEC, network="open"), "offers the networks 'none', and the sandbox asks for 'open'"),
    ],
)
@looped
async def test_a_spec_that_cannot_be_given_is_the_users_mistake(spec: SandboxSpec, said: str) -> None:
    backend = Scripted()
    async with served(backend) as service:
        with pytest.raises(ConfigError, match=said):
            async with service.open(spec):
                pass
    assert backend.created == 0


@looped
async def test_a_limit_that_is_not_enforced_is_refused_until_it_is_accepted() -> None:
    backend = Scripted(
        capabilities=Capabilities(isolation="namespaces", limits=ALL - {"memory", "disk"}, images=False)
    )
    async with served(backend) as service:
        with pytest.raises(
            ConfigError, match=r"memory_mib, disk_mib.*unenforced=frozenset\(\{'disk', 'memory'\}\)"
        ):
            async with service.open(SPEC):
                pass
    async with served(backend, unenforced={"memory", "disk"}) as service:
        async with service.open(SPEC) as sandbox:
            assert sandbox.spec == SPEC
        with pytest.raises(ConfigError, match="leave image empty"):
            async with service.open(replace(SPEC, image="other")):
                pass
        assert "only its own root" in (await service.missing(["", "other"]))["other"]


@looped
async def test_missing_images_come_back_each_with_its_reason_and_the_others_are_prepared_once() -> None:
    backend = Scripted(missing={"gone": "nobody has it"})
    async with served(backend) as service:
        assert await service.missing(["a", "gone", "a", "b"]) == {"gone": "nobody has it"}
        async with service.open(replace(SPEC, image="a")):
            pass
        with pytest.raises(ImageMissing, match="nobody has it"):
            async with service.open(replace(SPEC, image="gone")):
                pass
        with pytest.raises(ImageMissing, match="nobody has it"):
            async with service.open(replace(SPEC, image="gone")):
                pass
    # the second refusal came from the quarantine
    assert sorted(backend.prepared) == ["a", "b", "gone", "gone"]


@looped
async def test_a_start_that_fails_is_tried_again_with_growing_waits() -> None:
    backend = Scripted(on_create=failing(2, SandboxError("no luck")))
    async with served(backend, replace(QUICK, backoff_s=0.02)) as service:
        began = time.monotonic()
        async with service.open(SPEC):
            assert time.monotonic() - began >= 0.5 * (0.02 + 0.04)
        assert service.metrics() | {"retried": 2.0, "opened": 1.0, "failed": 0.0} == service.metrics()
    assert backend.created == 3


@pytest.mark.parametrize("problem", [SandboxError("no luck"), OSError("disk gone"), KeyError("a bug")])
@looped
async def test_a_start_that_always_fails_is_a_sandbox_error_that_says_how(problem: Exception) -> None:
    backend = Scripted(on_create=failing(99, problem))
    async with served(backend) as service:
        with pytest.raises(SandboxError, match="in 3 attempts; the last") as error:
            async with service.open(SPEC):
                pass
        assert str(problem.args[0]) in str(error.value)
        assert service.metrics()["failed"] == 1


@looped
async def test_a_start_that_hangs_ends_at_its_deadline() -> None:
    backend = Scripted(on_create=forever)
    async with served(backend, replace(QUICK, start_deadline_s=0.02, attempts=2)) as service:
        with pytest.raises(SandboxError, match=r"took longer than 0\.02 s"):
            async with service.open(SPEC):
                pass


@looped
async def test_an_image_that_does_not_start_is_quarantined_and_tried_again_later() -> None:
    backend = Scripted(on_create=failing(4, SandboxError("broken")))
    async with served(backend, replace(QUICK, attempts=2, quarantine_after=4, quarantine_s=0.1)) as service:
        for _ in range(2):
            with pytest.raises(SandboxError, match="2 attempts"):
                async with service.open(SPEC):
                    pass
        with pytest.raises(
            SandboxError, match=r"quarantine after 4 failed starts in a row, for another .*: .*broken"
        ):
            async with service.open(SPEC):
                pass
        assert backend.created == 4
        async with service.open(replace(SPEC, image="another")):
            pass
        await asyncio.sleep(0.11)
        async with service.open(SPEC):
            pass
        assert service.metrics()["quarantined"] == 1


@looped
async def test_no_more_than_the_slots_are_ever_there_and_no_more_than_asked_start_at_once() -> None:
    starting = [0, 0]

    async def create(spec: SandboxSpec) -> None:
        starting[0] += 1
        starting[1] = max(starting)
        await asyncio.sleep(0.001)
        starting[0] -= 1

    backend = Scripted(on_create=create)
    async with served(backend, replace(QUICK, num_open=5, num_starting=2, num_warm=1)) as service:

        async def episode(number: int) -> None:
            async with service.open(replace(SPEC, num_files=100 + number % 3)):
                await asyncio.sleep(0.002)

        await asyncio.gather(*(episode(number) for number in range(40)))
        metrics = service.metrics()
    assert backend.most <= 5
    assert starting[1] <= 2
    assert metrics["opened"] == 40
    assert metrics["wait_s_p95"] >= metrics["wait_s"] > 0
    assert set(metrics) == set(METRICS)


@looped
async def test_an_episode_that_waits_for_a_slot_in_vain_fails_with_the_reason() -> None:
    async with (
        served(Scripted(), replace(QUICK, num_open=1, wait_deadline_s=0.02)) as service,
        service.open(SPEC),
    ):
        with pytest.raises(SandboxError, match="raise num_open"):
            async with service.open(SPEC):
                pass


@looped
async def test_the_pool_keeps_warm_what_is_in_use_and_hands_it_over() -> None:
    backend = Scripted()
    async with served(backend, replace(QUICK, num_warm=2)) as service:
        async with service.open(SPEC):
            await until(lambda: service.metrics()["warm"] == 2)
        async with service.open(SPEC):
            assert service.metrics()["from_pool"] == 1
        await until(lambda: service.metrics()["warm"] == 2)


@looped
async def test_a_warm_sandbox_that_died_is_not_handed_over() -> None:
    backend = Scripted()
    async with served(backend, replace(QUICK, num_warm=1)) as service:
        async with service.open(SPEC):
            await until(lambda: service.metrics()["warm"] == 1)
        for sandbox in service._held:
            sandbox.alive = False  # type: ignore[misc]
        async with service.open(SPEC) as sandbox:
            assert sandbox.alive
            assert service.metrics()["from_pool"] == 0


@looped
async def test_a_warm_sandbox_that_nobody_took_is_closed() -> None:
    backend = Scripted()
    async with served(backend, replace(QUICK, num_warm=1, idle_s=0.05)) as service:
        async with service.open(SPEC):
            await until(lambda: service.metrics()["warm"] == 1)
        await until(lambda: not backend.there)


@pytest.mark.parametrize("when", ["waiting", "preparing", "starting", "started", "open", "closing"])
@looped
async def test_an_episode_cancelled_at_any_time_leaves_nothing(when: str) -> None:
    reached = asyncio.Event()

    async def pause(*_: object) -> None:
        reached.set()
        await asyncio.sleep(0.03)

    backend = Scripted()
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(served(backend, replace(QUICK, num_open=1)))
        if when == "waiting":
            await stack.enter_async_context(service.open(SPEC))
            reached.set()
        if when in {"starting", "started"}:
            backend.on_create = pause
        if when == "closing":
            backend.on_destroy = pause

        async def episode() -> None:
            async with service.open(SPEC):
                if when == "open":
                    await pause()

        played = asyncio.create_task(episode())
        if when not in {"preparing"}:
            await reached.wait()
        await asyncio.sleep(0)
        if when == "started":
            while not backend.there:
                await asyncio.sleep(0)
        played.cancel()
        await asyncio.sleep(0)
        played.cancel()
        with pytest.raises(asyncio.CancelledError):
            await played


@looped
async def test_leaving_closes_what_is_open_starting_and_waiting() -> None:
    backend = Scripted()
    ends: list[str] = []

    async def episode(service: Service) -> None:
        try:
            async with service.open(SPEC):
                await asyncio.sleep(5)
        except SandboxError as problem:
            ends.append(str(problem))

    async with served(backend, replace(QUICK, num_open=2)) as service:
        playing = [asyncio.create_task(episode(service)) for _ in range(3)]
        await until(lambda: len(backend.there) == 2)
    await asyncio.wait(playing, timeout=0.01)
    assert ends == ["the sandbox provider was closed while the sandbox was started"]
    for task in playing:
        task.cancel()
    await asyncio.gather(*playing, return_exceptions=True)


@looped
async def test_leaving_is_finished_even_when_it_is_cancelled() -> None:
    backend = Scripted(on_destroy=lambda name: asyncio.sleep(0.05))

    async def run() -> None:
        async with served(backend) as service, AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(service.open(SPEC))
            stack.pop_all()  # forgotten by a careless user
            raise ZeroDivisionError

    running = asyncio.create_task(run())
    await until(lambda: len(backend.there) == 3)
    for _ in range(5):
        running.cancel()
        await asyncio.sleep(0.002)
    with pytest.raises((asyncio.CancelledError, ZeroDivisionError)):
        await running
    assert not backend.there


@looped
async def test_what_could_not_be_closed_is_tried_again_and_keeps_its_slot_until_then() -> None:
    backend = Scripted(on_destroy=failing(1, OSError("the daemon is busy")))  # type: ignore[arg-type]
    async with served(backend, replace(QUICK, num_open=1)) as service:
        async with service.open(SPEC):
            pass
        assert service.metrics()["close_failed"] == 1
        assert len(backend.there) == 1
        async with service.open(SPEC):
            assert backend.most == 1


@looped
async def test_what_a_failed_start_could_not_remove_is_removed_later() -> None:
    backend = Scripted(on_destroy=failing(1, OSError("the daemon is busy")))  # type: ignore[arg-type]

    async def half_started(ledger: Backend, spec: SandboxSpec, lease: Lease) -> Any:
        handle = await ledger.create(spec, lease, [])
        if not backend.reaps > 1:
            await ledger.destroy(handle)
            raise AssertionError("unreachable: removing it fails")
        return Fake(ledger, spec, handle)

    async with serving(backend, options=replace(QUICK, attempts=1), start=half_started) as service:
        with pytest.raises(SandboxError, match="the daemon is busy"):
            async with service.open(SPEC):
                pass
        assert len(backend.there) == 1
        await until(lambda: not backend.there)
        async with service.open(SPEC):
            assert len(backend.there) == 1
    assert not backend.there


@looped
async def test_a_sandbox_that_gave_up_closing_itself_is_removed_by_its_lease() -> None:
    backend = Scripted()

    class Forgetful(Fake):
        async def close(self) -> None:
            pass

    async def forgetful(ledger: Backend, spec: SandboxSpec, lease: Lease) -> Any:
        return Forgetful(ledger, spec, await ledger.create(spec, lease, []))

    async with serving(backend, options=QUICK, start=forgetful) as service:
        async with service.open(SPEC):
            assert len(backend.there) == 1
        assert not backend.there


@looped
async def test_a_reset_sandbox_has_its_whole_lifetime_again() -> None:
    backend = Scripted()

    async def aged(ledger: Backend, spec: SandboxSpec, lease: Lease) -> Any:
        return Fake(
            ledger,
            spec,
            await ledger.create(spec, replace(lease, deadline=lease.deadline - spec.lifetime_s), []),
        )

    async with (
        serving(backend, options=QUICK, start=aged) as service,
        service.open(replace(SPEC, lifetime_s=1000.0)),
    ):
        (lease,) = backend.there.values()
        assert lease.deadline > time.time() + 1000


@looped
async def test_the_reaper_runs_at_the_start_and_on_a_timer_and_survives_errors() -> None:
    backend = Scripted()
    async with served(backend) as service:
        assert backend.reaps == 1
        await until(lambda: backend.reaps >= 3)
        assert service.metrics()["reaped"] >= 3
        backend.reap = failing(2, OSError("no daemon"))  # type: ignore[assignment, method-assign]
        await until(lambda: service.metrics()["reap_failed"] == 2)


@looped
async def test_leases_name_the_run_and_end_after_the_sandbox_does() -> None:
    backend = Scripted()
    async with served(backend, run="demo") as service, service.open(replace(SPEC, lifetime_s=1000.0)):
        (lease,) = backend.there.values()
        assert lease.run == "demo"
        assert lease.deadline > time.time() + 1000
