import asyncio
import collections
import os
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from misbehaving import Gentle, Misbehaving, Sandboxed
from plain import PlainProvider

from agentrl.errors import ConfigError, EnvError
from agentrl.hosts import open_host
from agentrl.hosts.workers import MAX_STARTS, Workers
from agentrl.policy import ScriptedPolicy
from agentrl.rollout import Limits, Played, play_all
from agentrl.samplers import Draw
from agentrl.types import Action, End, SandboxSpec, Task

LIMITS = Limits(max_turns=3, concurrency=16)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(*pids: int, within_s: float = 5.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.01)
    return False


def kinds_of_play(played: Played) -> set[End]:
    return {trajectory.end for group in played.groups for trajectory in group}


async def playing(
    spec: Misbehaving, *actions: str, num_workers: int = 2, deadline_s: float = 20.0, episodes: int = 2
) -> Played:
    draws = [Draw(task, episodes, 0) for task in spec.tasks("train")]
    async with open_host(spec, num_workers=num_workers, deadline_s=deadline_s) as host:
        return await play_all(draws, policy=ScriptedPolicy(actions), host=host, seed=0, limits=LIMITS)


def test_a_worker_plays_what_this_process_plays():
    assert asyncio.run(playing(Misbehaving(), "count")) == asyncio.run(playing(Gentle(), "count"))


def test_killing_workers_changes_no_trajectory_and_loses_none():
    class Assassin(ScriptedPolicy):
        acts = 0

        async def act(self, turns, observation, *, seed):
            Assassin.acts += 1
            if Assassin.acts in (20, 60, 90):
                os.kill(host.pids[0], signal.SIGKILL)
            return Action("count")

    async def run():
        nonlocal host
        spec = Misbehaving(work_s=0.001)
        async with Workers(spec, 2, 20.0) as host:
            draws = [Draw(task, 4, 0) for task in spec.tasks("train")]
            return await play_all(
                draws,
                policy=Assassin(("count",)),
                host=host,
                seed=0,
                limits=Limits(max_turns=3, concurrency=16, max_attempts=9),
            )

    host = None
    disturbed = asyncio.run(run())
    undisturbed = asyncio.run(playing(Misbehaving(), "count", episodes=4))
    assert disturbed.groups == undisturbed.groups
    assert disturbed.failures
    assert all("SIGKILL" in failure.error for failure in disturbed.failures)


@pytest.mark.parametrize("accident", ["die once", "break once"])
def test_an_accident_fails_its_worker_and_is_played_again(tmp_path, accident):
    played = asyncio.run(
        playing(Misbehaving(marks=str(tmp_path)), accident, "count", num_workers=1, episodes=1)
    )
    assert [len(group) for group in played.groups] == [1] * 16
    assert kinds_of_play(played) == {End.TERMINATED}
    assert 1 <= len(played.failures) <= 16


@pytest.mark.parametrize(
    ("kind", "accident"), [(Misbehaving, "die"), (Misbehaving, "break"), (Gentle, "break")]
)
def test_episodes_that_always_break_what_others_use_cost_no_other_its_place(kind, accident):
    class Vandal(ScriptedPolicy):
        async def act(self, turns, observation, *, seed):
            await asyncio.sleep(0.05)
            name = observation.messages[0].content.split(":")[0]
            return Action(accident if name in vandals and turns else "count")

    async def run():
        spec = kind()
        async with open_host(spec, num_workers=1, deadline_s=20.0) as host:
            draws = [Draw(task, 1, 0) for task in spec.tasks("train")]
            return await play_all(draws, policy=Vandal(()), host=host, seed=0, limits=LIMITS)

    vandals = ("task-3", "task-7", "task-11")
    played = asyncio.run(run())
    assert {group[0].task.id for group in played.groups} == {f"task-{index}" for index in range(16)} - set(
        vandals
    )
    attempts = collections.Counter(failure.task.id for failure in played.failures)
    assert {name: attempts[name] for name in vandals} == dict.fromkeys(vandals, LIMITS.max_attempts)
    assert sum(attempts.values()) > len(vandals) * LIMITS.max_attempts  # others were hit


def test_an_episode_alone_has_a_process_of_its_own_which_goes_with_it():
    async def run():
        spec = Misbehaving()
        async with Workers(spec, 1, 20.0) as host:
            async with host.open(spec.tasks("train")[0], alone=True) as env:
                pid = int((await env.step("pid")).observation.messages[0].content)
                assert pid not in host.pids
                assert alive(pid)
            assert gone(pid)
            return host.pids

    assert len(asyncio.run(run())) == 1


def test_a_shared_resource_that_breaks_in_this_process_is_opened_anew(tmp_path):
    played = asyncio.run(playing(Gentle(marks=str(tmp_path)), "break once", "count", episodes=1))
    assert kinds_of_play(played) == {End.TERMINATED}
    assert any("the browser is gone" in failure.error for failure in played.failures)
    started, closed = (len(list(tmp_path.glob(f"{what}-*"))) for what in ("start", "closed"))
    assert started == closed >= 2


def test_a_hung_worker_is_replaced_after_one_deadline(tmp_path):
    async def run():
        spec = Misbehaving(marks=str(tmp_path))
        async with Workers(spec, 1, 1.0) as host:
            (old,) = host.pids
            draws = [Draw(spec.tasks("train")[0], 1, 0)]
            started = time.monotonic()
            played = await play_all(
                draws, policy=ScriptedPolicy(("hang once", "count")), host=host, seed=0, limits=LIMITS
            )
            return played, old, host.pids, time.monotonic() - started

    played, old, new, took_s = asyncio.run(run())
    assert kinds_of_play(played) == {End.TERMINATED}
    assert "did not answer within 1 s" in played.failures[0].error
    assert old not in new
    assert not alive(old)
    assert 1.0 <= took_s < 4.0


def test_one_call_that_waits_too_long_fails_alone():
    async def run():
        spec = Misbehaving()
        task, other = spec.tasks("train")[:2]
        async with Workers(spec, 1, 1.0) as host:
            (pid,) = host.pids

            async def late():
                async with host.open(task) as env:
                    await env.step("wait")

            async def busy():
                async with host.open(other) as env:
                    for _ in range(30):
                        await env.step("count")
                        await asyncio.sleep(0.05)

            waiting = asyncio.create_task(late())
            await busy()
            with pytest.raises(EnvError, match="did not answer a call within 1 s"):
                await waiting
            assert host.pids == (pid,)
            async with host.open(task) as env:
                await env.step("count")

    asyncio.run(run())


def test_a_cancelled_call_frees_its_episode():
    async def run():
        spec = Misbehaving()
        async with Workers(spec, 1, 20.0) as host:
            (pid,) = host.pids
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2), host.open(spec.tasks("train")[0]) as env:
                    await env.step("wait")
            async with host.open(spec.tasks("train")[0]) as env:
                await env.step("count")
            assert host.pids == (pid,)

    asyncio.run(run())


@pytest.mark.parametrize("kind", [Misbehaving, Gentle])
def test_an_environment_that_raises_fails_its_episode_only(kind):
    played = asyncio.run(playing(kind(), "count", "raise", episodes=1))
    assert not played.groups
    assert len(played.failures) == 16 * LIMITS.max_attempts
    assert {failure.error.split(" ", 4)[-1] for failure in played.failures} == {
        "raised ValueError: the floor is lava"
    }
    assert {len(failure.turns) for failure in played.failures} == {1}


@pytest.mark.parametrize("action", ["unpicklable", "exit", "die"])
def test_what_cannot_come_back_is_a_failure(action):
    played = asyncio.run(playing(Misbehaving(), action, num_workers=1, episodes=1))
    assert not played.groups
    assert {failure.end for failure in played.failures} == {End.FAILED}


def test_a_dead_worker_leaves_its_last_words():
    played = asyncio.run(playing(Misbehaving(), "die", num_workers=1, episodes=1))
    assert "died (SIGKILL); its last output: these are my last words" in played.failures[0].error


def test_noise_on_standard_output_corrupts_nothing(capfd):
    assert asyncio.run(playing(Misbehaving(), "shout")).groups
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [Misbehaving, Gentle])
def test_an_episode_that_cannot_be_closed_failed(kind):
    played = asyncio.run(playing(kind(start="close raises"), "count", episodes=1))
    assert not played.groups
    assert "the door is stuck" in played.failures[0].error


@pytest.mark.parametrize("kind", [Misbehaving, Gentle])
def test_a_start_that_fails_is_said_at_once(kind):
    with pytest.raises(EnvError, match="OSError: the library does not load"):
        asyncio.run(playing(kind(start="raise"), "count"))


def test_a_start_that_hangs_is_given_up():
    with pytest.raises(EnvError, match=r"did not answer within 0\.5 s"):
        asyncio.run(playing(Misbehaving(start="hang"), "count", deadline_s=0.5))


def test_a_replacement_is_tried_again(tmp_path):
    async def run():
        spec = Misbehaving(marks=str(tmp_path), start="raise twice")
        async with Workers(spec, 1, 20.0) as host:
            os.kill(host.pids[0], signal.SIGKILL)
            draws = [Draw(spec.tasks("train")[0], 1, 0)]
            return await play_all(draws, policy=ScriptedPolicy(("count",)), host=host, seed=0, limits=LIMITS)

    assert kinds_of_play(asyncio.run(run())) == {End.TERMINATED}
    assert len(list(tmp_path.glob("start-*"))) == 1 + MAX_STARTS


def test_the_body_of_an_episode_keeps_its_own_errors():
    async def run(spec):
        async with (
            open_host(spec, num_workers=1, deadline_s=20.0) as host,
            host.open(spec.tasks("train")[0]) as env,
        ):
            await env.step("count")
            raise KeyError("a mistake of the caller")

    for spec in (Misbehaving(), Gentle()):
        with pytest.raises(KeyError, match="of the caller"):
            asyncio.run(run(spec))


def test_every_worker_hashes_alike():
    async def run():
        spec = Misbehaving()
        async with (
            Workers(spec, 2, 20.0) as host,
            host.open(spec.tasks("train")[0]) as one,
            host.open(spec.tasks("train")[1]) as two,
        ):
            pids = {(await env.step("pid")).observation.messages[0].content for env in (one, two)}
            hashes = {(await env.step("hash")).observation.messages[0].content for env in (one, two)}
            return pids, hashes

    pids, hashes = asyncio.run(run())
    assert (len(pids), len(hashes)) == (2, 1)


def test_idle_episodes_do_not_slow_active_ones():
    async def run():
        spec = Misbehaving(work_s=0.001)
        tasks = spec.tasks("train")
        async with Workers(spec, 1, 20.0) as host:

            async def latency_s() -> float:
                async with host.open(tasks[0]) as env:
                    started = time.monotonic()
                    for _ in range(200):
                        await env.step("count")
                    return time.monotonic() - started

            alone = min([await latency_s() for _ in range(3)])
            idle = [host.open(tasks[index % len(tasks)]) for index in range(256)]
            for episode in idle:
                await episode.__aenter__()
            crowded = min([await latency_s() for _ in range(3)])
            for episode in idle:
                await episode.__aexit__(None, None, None)
            return alone, crowded

    alone, crowded = asyncio.run(run())
    assert crowded < 2 * alone


def test_two_hosts_do_not_see_each_other():
    async def run():
        one, two = Misbehaving(), Misbehaving(work_s=0.001)
        async with Workers(one, 1, 20.0) as first, Workers(two, 1, 20.0) as second:
            draws = [Draw(task, 2, 0) for task in one.tasks("train")]
            plays = [
                play_all(draws, policy=ScriptedPolicy(("count",)), host=host, seed=0, limits=LIMITS)
                for host in (first, second)
            ]
            left, right = await asyncio.gather(*plays)
            return left, right, first.pids + second.pids

    left, right, pids = asyncio.run(run())
    assert left == right
    assert gone(*pids)


def test_closing_leaves_no_process_and_no_file(tmp_path):
    def files():
        return len(list(Path("/proc/self/fd").iterdir()))

    async def run():
        spec = Misbehaving(marks=str(tmp_path))
        async with Workers(spec, 2, 20.0) as host:
            episode = host.open(spec.tasks("train")[0])
            env = await episode.__aenter__()
            child = int((await env.step("spawn")).observation.messages[0].content)
            return (child, *host.pids)

    before = files()
    pids = asyncio.run(run())
    assert gone(*pids)
    assert files() == before
    assert len(list(tmp_path.glob("closed-*"))) == 2


@pytest.mark.parametrize("action", ["spawn", "hang"])
def test_killing_the_parent_leaves_no_process(tmp_path, action):
    program = f"""
import asyncio
from misbehaving import Misbehaving
from agentrl.hosts.workers import Workers

async def run():
    spec = Misbehaving()
    async with Workers(spec, 2, 20.0) as host, host.open(spec.tasks("train")[0]) as env:
        child = (await env.step("spawn")).observation.messages[0].content
        print(child, *host.pids, flush=True)
        await env.step({action!r})
        await asyncio.sleep(1000)

asyncio.run(run())
"""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 3
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(*pids)


def test_bad_options_are_refused_before_any_work():
    async def run(**options):
        async with open_host(Misbehaving(), **{"num_workers": 1, "deadline_s": 1.0, **options}):
            pass

    with pytest.raises(ConfigError, match="num_workers must be at least 1, found 0"):
        asyncio.run(run(num_workers=0))
    with pytest.raises(ConfigError, match="deadline_s must be a positive number"):
        asyncio.run(run(deadline_s=float("nan")))
    with pytest.raises(ConfigError, match="pickling Misbehaving"):
        Workers(Misbehaving(marks=lambda: 0), 1, 1.0)  # type: ignore[arg-type]


def test_what_sandboxes_counted_outlives_their_worker_and_what_they_held_does_not(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a killed worker leaves its sandboxes' folders

    async def run():
        spec = Sandboxed()
        task = spec.tasks("train")[0]
        async with Workers(spec, 2, 20.0, PlainProvider()) as host, AsyncExitStack() as episodes:

            async def play(**options):
                async with host.open(task, **options) as env:
                    await env.step("count")

            assert host.metrics() == {}
            doomed, _ = [await episodes.enter_async_context(host.open(task)) for _ in range(2)]  # one in each
            await asyncio.gather(play(), play())
            before = dict(host.metrics())
            victim = int((await doomed.step("pid")).observation.messages[0].content)
            os.kill(victim, signal.SIGKILL)
            with pytest.raises(EnvError, match="SIGKILL"):
                await doomed.step("count")
            while victim in host.pids or len(host.pids) < 2:
                await asyncio.sleep(0.01)
            killed = dict(host.metrics())
            await play()  # in the new worker, which has no other episode
            replaced = dict(host.metrics())
            await play(alone=True)
            alone = dict(host.metrics())
        return before, killed, replaced, alone, dict(host.metrics())

    found = asyncio.run(run())
    start_s = [metrics.pop("sandbox/start_s") for metrics in found]
    assert 0.0 < start_s[0] <= start_s[1] <= start_s[2] <= start_s[3] <= start_s[4]
    assert [(metrics["sandbox/opened"], metrics.get("sandbox/open")) for metrics in found] == [
        (4.0, 2.0),
        (4.0, 1.0),
        (5.0, 1.0),
        (6.0, 1.0),
        (6.0, None),
    ]


@pytest.mark.parametrize("kind", [Misbehaving, Gentle])
def test_a_task_that_needs_a_sandbox_is_refused_without_a_provider(kind):
    async def run():
        async with (
            open_host(kind(), num_workers=1, deadline_s=5.0) as host,
            host.open(Task("t", sandbox=SandboxSpec())),
        ):
            pass

    with pytest.raises(ConfigError, match="no provider is configured"):
        asyncio.run(run())
