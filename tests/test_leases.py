import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agentrl_sandboxes import leases
from agentrl_sandboxes.backend import Lease
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="process states are read from /proc"
)
PROGRAM = "from agentrl_sandboxes import leases; print(leases.owner(), flush=True); input()"


def process() -> tuple[subprocess.Popen[str], str]:
    """Yield another process, and its name as an owner."""
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    return child, child.stdout.readline().strip()


def end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate()


def test_a_living_process_is_not_dead_and_a_killed_one_is_even_before_its_parent_collects_it() -> None:
    child, name = process()
    assert not leases.dead(name)
    child.kill()
    until = time.monotonic() + 5
    while not leases.dead(name) and time.monotonic() < until:
        time.sleep(0.01)
    assert Path(f"/proc/{child.pid}").exists()
    assert leases.dead(name)
    child.communicate()
    assert leases.dead(name)


def test_a_later_process_with_the_same_number_is_another() -> None:
    place, pid, started = leases.owner().rsplit("/", 2)
    assert leases.dead(f"{place}/{pid}/{int(started) - 1}")


def test_of_other_machines_boots_and_process_namespaces_nothing_is_known() -> None:
    child, name = process()
    end(child)
    host, boot, pid, started = name.split("/")
    assert leases.dead(name)
    for elsewhere in (f"other-{host}/{boot}", f"{host}/{'0' * 8}{boot}", f"{host}/{boot}1"):
        assert not leases.dead(f"{elsewhere}/{pid}/{started}")


@pytest.mark.parametrize(
    "name", ["", "/", "///", "host/boot", "host/boot/x/y", f"{socket.gethostname()}/boot/-1/0"]
)
def test_a_name_that_is_none_is_never_found_dead(name: str) -> None:
    assert not leases.dead(name)


def test_a_lease_of_a_living_owner_is_reapable_only_after_its_deadline() -> None:
    lease = leases.new_lease(run="demo", lifetime_s=100)
    assert not leases.reapable(lease.labels(), time.time())
    assert not leases.reapable(lease.labels(), time.time() + 100)
    assert leases.reapable(lease.labels(), time.time() + 100 + 2 * leases.GRACE_S)


def test_a_lease_of_a_dead_owner_is_reapable_at_once() -> None:
    child, name = process()
    end(child)
    assert leases.reapable(
        Lease(id="agentrl-1", owner=name, run="", deadline=time.time() + 1e6).labels(), time.time()
    )


@given(
    st.dictionaries(
        st.sampled_from(["agentrl.lease", "agentrl.owner", "agentrl.run", "agentrl.deadline", "other"]),
        st.text(),
        max_size=4,
    )
)
def test_what_is_not_wholly_ours_is_never_reapable(labels: dict[str, str]) -> None:
    if {"agentrl.lease", "agentrl.owner", "agentrl.run", "agentrl.deadline"} <= set(labels):
        labels.pop("agentrl.owner")
    assert not leases.reapable(labels, now=1e18)


def test_ids_are_unique_and_safe_in_every_provider() -> None:
    ids = [leases.new_lease(lifetime_s=1).id for _ in range(200)]
    assert len(set(ids)) == 200
    assert all(len(one) <= 40 and set(one) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for one in ids)
    assert str(os.getpid()) in leases.owner()
