import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agentrl_sandboxes import cgroups
from agentrl_sandboxes.cgroups import Groups


@pytest.fixture
def groups():
    """Yield where groups can be created, and a name to use; remove what is left of that group."""
    found = cgroups.find()
    if not found.parents:
        pytest.skip("no control groups may be made here")
    name = f"agentrl-test-{secrets.token_hex(4)}"
    yield found, name
    cgroups.remove(found.folders(name))


def limited(groups, name):
    groups.make(name, memory=64 << 20, pids=20, cpus=0.5)


def inside(groups, name, command):
    return subprocess.Popen(command, preexec_fn=lambda: groups.join(name), stdout=subprocess.PIPE, text=True)


def test_a_process_that_joins_is_in_every_group(groups):
    found, name = groups
    limited(found, name)
    with inside(found, name, ["cat", "/proc/self/cgroup"]) as process:
        said = process.stdout.read()
    assert said.count(f"/{name}\n") == len(found.folders(name))


def test_removing_kills_what_is_inside_and_leaves_nothing(groups):
    found, name = groups
    limited(found, name)
    with inside(
        found, name, ["sh", "-c", "trap '' TERM; sleep 600 & setsid sleep 600 & echo ready; wait"]
    ) as process:
        assert process.stdout.readline() == "ready\n"
        assert cgroups.remove(found.folders(name))
        assert process.wait(5) == -9
    assert not any(folder.exists() for folder in found.folders(name))
    assert cgroups.remove(found.folders(name))


def test_a_limit_that_the_kernel_takes_differently_is_an_error(groups):
    found, name = groups
    if "memory" not in found.parents:
        pytest.skip("the memory controller cannot be used here")
    with pytest.raises(OSError, match="the kernel set it to"):
        found.make(name, memory=(64 << 20) + 1, pids=20, cpus=0.5)


def test_looking_leaves_no_trial_behind():
    cgroups.find()
    left = list(Path("/sys/fs/cgroup").glob("**/agentrl-trial-*")) if Path("/sys/fs/cgroup").exists() else []
    assert left == []


@pytest.fixture
def unified():
    """Return a version 2 folder in which groups can be created, whatever controllers it has."""
    for point in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        if Path(point, "cgroup.procs").exists() and os.access(f"{point}/cgroup.procs", os.W_OK):
            return Path(point)
    pytest.skip("no version 2 hierarchy can be written to here")
    return None


def test_version_2_groups_are_joined_and_killed_as_a_whole(unified):
    groups, name = Groups({"memory": (2, unified)}), f"agentrl-test-{secrets.token_hex(4)}"
    (unified / name).mkdir()
    with inside(groups, name, ["sh", "-c", "setsid sleep 600 & echo ready; wait"]) as process:
        assert process.stdout.readline() == "ready\n"
        assert len((unified / name / "cgroup.procs").read_text().split()) >= 2
        started = time.monotonic()
        assert cgroups.remove([unified / name])
        assert time.monotonic() - started < 2
    assert not (unified / name).exists()


def test_a_sole_process_of_a_delegated_group_makes_room_and_may_use_its_controllers(unified):
    # as under "systemd-run --scope -p Delegate=yes": the launcher is alone in its group, and moves to a child
    # group
    available = (unified / "cgroup.controllers").read_text().split()
    if not available:
        pytest.skip("the version 2 hierarchy has no controllers here")
    scope = unified / f"agentrl-test-{secrets.token_hex(4)}"
    scope.mkdir()
    had = (unified / "cgroup.subtree_control").read_text().split()
    try:
        (unified / "cgroup.subtree_control").write_text(f"+{available[0]}")
        controller = repr(available[0])
        script = (
            "from agentrl_sandboxes import cgroups; "
            f"print(cgroups.find([{controller}]).parents[{controller}])"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script],
            preexec_fn=lambda: (scope / "cgroup.procs").write_text("0"), stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdout.read().strip() == str((2, scope))
        assert available[0] in (scope / "cgroup.subtree_control").read_text()
    finally:
        for folder in (scope / "agentrl-launcher", scope):
            if folder.exists():
                cgroups.remove([folder])
        if available[0] not in had:
            (unified / "cgroup.subtree_control").write_text(f"-{available[0]}")
