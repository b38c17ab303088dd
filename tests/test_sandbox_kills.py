"""A process that opens sandboxes may be killed at any moment, and nothing of them is left.

No process, control group, container, file or record.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from agentrl.errors import ConfigError

HARNESS = Path(__file__).parent / "kills.py"


def ended(kind: str, *, seed: int, together: int = 4, **ways: int) -> dict:
    hows = ",".join(Counter(ways).elements())
    command = [sys.executable, str(HARNESS), "watch", kind, hows, str(seed), str(together)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ready(kind: str) -> str:
    """Return the back end if it works.

    Its images are prepared here, so that no driver is ended while it builds one.
    """
    done = subprocess.run(
        [sys.executable, str(HARNESS), "reap", kind], capture_output=True, text=True, timeout=280, check=False
    )
    if done.returncode:
        assert ConfigError.__name__ in done.stderr, done.stderr
        pytest.skip(done.stderr.splitlines()[-1])
    return kind


def check(found: dict, *, num: int, num_signals: int) -> None:
    assert found["left"] == []
    assert found["complaints"] == []
    assert found["num"] == num
    assert found["num_busy"] >= num_signals // 2, (
        "too few were ended while sandboxes were open: nothing was tested"
    )


def test_a_few_drivers_killed_at_random_leave_nothing() -> None:
    check(ended(ready("local"), seed=0, kill=2, raise_=1, cancel=1), num=4, num_signals=2)


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_150_drivers_of_local_sandboxes_ended_at_random_moments_leave_nothing() -> None:
    found = ended(ready("local"), seed=1, kill=110, term=12, interrupt=8, raise_=10, cancel=10)
    check(found, num=150, num_signals=130)
    assert found["num_reaped"] == 0, "it ends by itself, without a reaper"


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_50_drivers_of_docker_sandboxes_ended_at_random_moments_leave_nothing(docker_url) -> None:
    found = ended(ready(docker_url), seed=2, kill=36, term=4, interrupt=3, raise_=4, cancel=3)
    check(found, num=50, num_signals=43)
