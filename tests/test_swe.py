import asyncio
import pickle
from collections.abc import Sequence
from dataclasses import replace

import pytest
import swe_tasks
from agentrl_environments.swe import Swe, rows
from agentrl_environments.swe.rows import Instance
from agentrl_sandboxes.docker import Docker

from agentrl.errors import ConfigError
from agentrl.hosts.in_process import InProcess
from agentrl.policy import ExpertPolicy, Policy, ScriptedPolicy
from agentrl.rollout import Limits, play
from agentrl.sandbox import SandboxProvider
from agentrl.testing import check_env
from agentrl.types import End, Task, Trajectory

LIMITS = Limits(max_turns=50)


def played(
    spec: Swe, *policies: Policy, task: int = 0, provider: SandboxProvider = swe_tasks.PROVIDER
) -> list[Trajectory]:
    """Play an episode with each policy, all at once, on a task of the spec."""
    tasks = [found for split in spec.splits for found in spec.tasks(split)]

    async def run() -> list[Trajectory]:
        async with InProcess(spec, 120.0, provider) as host:
            return await asyncio.gather(
                *[
                    play(tasks[task], 0, policy=policy, host=host, seed=0, limits=LIMITS)
                    for policy in policies
                ]
            )

    swe_tasks.provider()
    return asyncio.run(run())


def script(*actions: str) -> ScriptedPolicy:
    return ScriptedPolicy(actions)


def ends(trajectory: Trajectory) -> tuple[End, str]:
    return trajectory.end, trajectory.error


@pytest.mark.parametrize(
    ("tools", "prompt"),
    [pytest.param("editor", "full", marks=pytest.mark.slow), ("editor", "brief"), ("bash", "full")],
)
def test_the_experts_plan_resolves_a_real_bug(tools, prompt, tmp_path):
    spec = swe_tasks.spec(tmp_path, swe_tasks.h11(), tools=tools, prompt=prompt)
    (found,) = played(spec, ExpertPolicy())
    assert ends(found) == (End.TERMINATED, "")
    assert found.success
    last = found.turns[-1].info
    assert {
        name: last[name] for name in ("submitted", "nonempty", "applied", "fixed", "kept")
    } == dict.fromkeys(("submitted", "nonempty", "applied", "fixed", "kept"), 1.0)
    assert all(set(turn.info) == set(spec.signals) for turn in found.turns)
    assert found.signal("modified").sum() == 1.0
    assert swe_tasks.h11().patch.splitlines()[-3:] == found.final.messages[-1].content.splitlines()[-3:]
    roles = [message.role for message in found.turns[0].observation.messages]
    assert roles == (["system", "user"] if prompt == "full" else ["user"])


def test_signals_measure_what_the_gates_need(tmp_path):
    spec = swe_tasks.spec(tmp_path, swe_tasks.h11(), max_turns=6, prompt="brief")
    nothing, edited, unsent = played(
        spec,
        script("submit"),
        script("hello", "view nowhere", "bash echo x >x.txt", "bash rm x.txt", "create y.txt y", "submit"),
        script("bash echo x >x.txt", *["bash true"] * 9),
    )
    assert (nothing.end, nothing.success) == (End.TERMINATED, False)
    assert [nothing.turns[0].info[name] for name in ("submitted", "nonempty", "applied", "fixed")] == [
        1,
        0,
        0,
        0,
    ]
    signals = {
        name: list(edited.signal(name))
        for name in ("valid", "ran", "modified", "nonempty", "submitted", "applied", "kept", "fixed")
    }
    assert signals == {
        "valid": [0, 1, 1, 1, 1, 1],
        "ran": [0, 0, 1, 1, 1, 1],
        "modified": [0, 0, 1, 1, 1, 0],
        "nonempty": [0, 0, 1, 0, 1, 1],
        "submitted": [0, 0, 0, 0, 0, 1],
        "applied": [0, 0, 0, 0, 0, 1],
        "kept": [0, 0, 0, 0, 0, 1],
        "fixed": [0, 0, 0, 0, 0, 0],
    }
    assert (unsent.end, len(unsent.turns), unsent.success) == (End.TRUNCATED, 6, False)
    assert unsent.signal("nonempty")[-1] == 1
    assert not unsent.signal("submitted").any()


def test_commands_that_are_stopped_again_and_again_end_the_episode(tmp_path):
    spec = swe_tasks.spec(tmp_path, swe_tasks.h11(), prompt="brief", command_s=0.5, max_stopped=2)
    spent = replace(spec, total_s=0.3)
    stopped, over = (
        played(spec, script("bash sleep 9", "bash true", "bash sleep 9", "bash sleep 9", "submit")),
        played(spent, script("bash sleep 0.4", "submit")),
    )
    assert (stopped[0].end, list(stopped[0].signal("stopped"))) == (End.TRUNCATED, [1, 0, 1, 1])
    assert (over[0].end, len(over[0].turns)) == (End.TRUNCATED, 1)


@pytest.mark.slow
def test_no_known_attack_works(tmp_path):
    spec = swe_tasks.spec(tmp_path, swe_tasks.h11(), prompt="brief")
    (task,) = [task for split in spec.splits for task in spec.tasks(split)]
    attacks = spec.attacks(task)
    assert len(attacks) > 12
    for name, found in zip(attacks, played(spec, *map(script_of, attacks.values())), strict=True):
        assert ends(found) == (End.TERMINATED, ""), name
        assert not found.success, name
        assert found.signal("fixed")[-1] == 0, name


def script_of(actions: Sequence[str]) -> ScriptedPolicy:
    return ScriptedPolicy(tuple(actions))


@pytest.mark.slow
@pytest.mark.parametrize("make", [swe_tasks.h11, swe_tasks.voluptuous])
@pytest.mark.parametrize("tools", ["editor", "bash"])
def test_the_oracle_succeeds_and_no_attack_does_with_every_set_of_tools(make, tools, tmp_path):
    spec = swe_tasks.spec(tmp_path, make(), tools=tools)
    (task,) = [task for split in spec.splits for task in spec.tasks(split)]
    oracle, *attacked = played(spec, ExpertPolicy(), *map(script_of, spec.attacks(task).values()))
    assert oracle.success
    assert not any(found.success for found in attacked)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_environment_keeps_the_contract(tmp_path):
    places = (replace(swe_tasks.h11(), id=f"h11-{index}", site=str(index)) for index in range(1000))
    found: dict[str, Instance] = {}
    while len(found) < 3:
        found.setdefault(Swe().split_of(instance := next(places)), instance)
    spec = swe_tasks.spec(
        tmp_path,
        *found.values(),
        swe_tasks.voluptuous(),
        held_out=("voluptuous",),
        prompt="brief",
        max_turns=12,
    )
    check_env(spec, num_tasks=1, deadline_s=120.0, sandboxes=swe_tasks.provider())


@pytest.mark.slow
def test_a_real_bug_is_mended_and_graded_in_containers(docker_url, tmp_path):
    provider = Docker(url=docker_url)
    spec = replace(swe_tasks.spec(tmp_path, swe_tasks.h11(), prompt="brief"), image="")
    (task,) = [task for split in spec.splits for task in spec.tasks(split)]
    attacks = ("no patch", "conftest that passes", "sources that pass every test", "a process left behind")
    chosen = [script_of(spec.attacks(task)[name]) for name in attacks]
    try:
        oracle, *attacked = played(spec, ExpertPolicy(), *chosen, provider=provider)
    except ConfigError as problem:
        pytest.skip(str(problem))
    assert ends(oracle) == (End.TERMINATED, "")
    assert oracle.success
    assert [(ends(found), found.success) for found in attacked] == [((End.TERMINATED, ""), False)] * 4


def test_a_sandbox_that_is_lost_is_a_failed_episode_and_never_a_result(tmp_path):
    spec = swe_tasks.spec(tmp_path, replace(swe_tasks.h11(), base_commit="0" * 40), prompt="brief")
    (found,) = played(spec, script("submit"))
    assert found.end is End.FAILED
    assert "made from another tree" in found.error


def test_splits_are_by_what_is_taught_and_repositories_can_be_held_out(tmp_path):
    plain = replace(swe_tasks.h11(), source=None)
    many = [replace(plain, id=f"h11-{index}", site=f"place {index % 40}") for index in range(80)]
    others = [replace(plain, id=f"toolz-{index}", repo="toolz") for index in range(3)]
    spec = swe_tasks.spec(tmp_path, *many, *others)
    places = {split: {task.id for task in spec.tasks(split)} for split in spec.splits}
    assert sum(map(len, places.values())) == 83
    assert places["held-out"] == {"toolz-0", "toolz-1", "toolz-2"}
    assert len(places["train"]) > len(places["test"]) > 0
    for index in range(40):
        assert (
            len(
                {split for split, ids in places.items() for one in (index, index + 40) if f"h11-{one}" in ids}
            )
            == 1
        )
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_a_task_names_its_row_and_holds_nothing_of_the_fix(tmp_path):
    spec = swe_tasks.spec(tmp_path, swe_tasks.h11())
    (task,) = [task for split in spec.splits for task in spec.tasks(split)]
    assert "fullmatch" not in str(task.data)
    assert task.sandbox is not None
    assert (task.sandbox.workdir, task.sandbox.network) == ("/testbed", "none")
    rows.write(tmp_path / "rows.jsonl", [replace(swe_tasks.h11(), hints="changed")])
    with pytest.raises(ConfigError, match="does not hold the row"):
        spec.attacks(task)
    with pytest.raises(ConfigError, match="does not hold the row"):
        spec.attacks(Task("x", {"instance": "nobody"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": "hands"}, "tools is 'hands'; it must be one of editor, bash"),
        ({"prompt": "long"}, "prompt is 'long'"),
        ({"tests_s": 0.0}, "tests_s is 0.0; it must be more than 0"),
        ({"max_output": 10}, "max_output is 10"),
        ({"held_out": "toolz"}, "held_out is 'toolz'; it must be a list"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        Swe(**options)


def test_an_unknown_split_is_named(tmp_path):
    with pytest.raises(ConfigError, match="swe has no split 'dev'; it has train, valid, test, held-out"):
        swe_tasks.spec(tmp_path, swe_tasks.h11()).tasks("dev")
