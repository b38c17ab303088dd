import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import tiny
from corridor import Blocking

from agentrl.credit.gae import TurnGAE
from agentrl.errors import CheckpointError, ConfigError
from agentrl.losses.clip import Clip
from agentrl.losses.kl import KL
from agentrl.losses.objective import Objective
from agentrl.losses.value import ValueLoss
from agentrl.records.metrics import read_metrics

ROOT = Path(__file__).parent.parent

RECIPE = replace(
    tiny.recipe,
    stages=(
        replace(tiny.WARM, evaluate=True),
        replace(
            tiny.LEARN,
            updates=5,
            credit=TurnGAE(),
            objective=Objective(loss=Clip(), value=ValueLoss(), regularisers=(KL(0.01),)),
            evaluate_every=2,
        ),
    ),
)
"""Demonstrations, then PPO with everything that a checkpoint holds: moments, value head, reference."""


def every_third(recipe):
    return replace(recipe, checkpoints=replace(recipe.checkpoints, every=3))


Moment = Callable[[Path], bool]
MOMENTS: dict[str, Moment] = {
    "before the tokenizer is there": lambda run: (run / "manifest.json").exists(),
    "while the tokenizer is written": lambda run: (
        (run / ".tokenizer").exists() or (run / "tokenizer").exists()
    ),
    "when the demonstrations were played": lambda run: (run / "demonstrations" / "warm.parquet").exists(),
    "when an update is stored and not yet a checkpoint": lambda run: (
        run / "trajectories" / "update=000001" / "part-0.parquet"
    ).exists(),
    "while a checkpoint is written": lambda run: (run / "checkpoints" / ".000003.tmp").exists(),
    "while the agent is played": lambda run: (run / "checkpoints" / "000003").exists(),
    "when an evaluation was played and not reported": lambda run: (
        run / "evaluations" / "learn-2.parquet"
    ).exists(),
    "when an evaluation was reported and not committed": lambda run: (
        run / "evaluations" / "learn-4.json"
    ).exists(),
    "while the last checkpoint is written": lambda run: (run / "checkpoints" / ".000008.tmp").exists(),
    "when all is over but the tidying": lambda run: (run / "checkpoints" / "000008").exists(),
}
"""What the run folder shows at the moments when the process is killed; in the order in which they come."""


@pytest.fixture(scope="module")
def processes():
    """Start processes that have all imported and computed nothing yet."""
    method = multiprocessing.get_context("forkserver")
    method.set_forkserver_preload(
        ["agentrl.train", "agentrl.engines.local", "transformers.models.qwen2.modeling_qwen2", "pandas"]
    )
    return method


@pytest.fixture(
    scope="module",
    params=[RECIPE, every_third(RECIPE)],
    ids=["a checkpoint each update", "a checkpoint every third"],
)
def undisturbed(request, processes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    process = tiny.in_background(processes, request.param, folder)
    process.join()
    assert process.exitcode == 0
    return request.param, tiny.remains(folder)


def kill_when(reached: Moment, process, folder: Path) -> bool:
    """Kill the process at the moment; return whether it lived until then."""
    while process.is_alive():
        if reached(folder):
            time.sleep(random.random() * 0.005)
            process.kill()
            process.join()
            return process.exitcode == -signal.SIGKILL
    return False


def test_a_run_that_is_killed_at_every_moment_ends_as_if_it_never_was(undisturbed, processes, tmp_path):
    recipe, expected = undisturbed
    folder = tmp_path / "run"
    killed = [
        name
        for name, moment in MOMENTS.items()
        if kill_when(moment, tiny.in_background(processes, recipe, folder), folder)
    ]
    assert len(killed) >= len(MOMENTS) - 2, f"only killed {killed}"
    last = tiny.in_background(processes, recipe, folder)
    last.join()
    assert last.exitcode == 0
    found = tiny.remains(folder)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
    assert not list(folder.rglob("*.tmp"))


def test_a_killed_run_leaves_no_worker_process_behind(processes, tmp_path):
    recipe = replace(tiny.recipe, env=Blocking(), num_workers=2)
    process = tiny.in_background(processes, recipe, tmp_path / "run")
    workers = []

    def playing(run: Path) -> bool:
        workers[:] = (
            psutil.Process(process.pid).children(recursive=True)
            if (run / "checkpoints" / "000001").exists()
            else []
        )
        return bool(workers)

    assert kill_when(playing, process, tmp_path / "run")
    gone, alive = psutil.wait_procs(workers, timeout=10)
    assert (len(gone), alive) == (2, [])


def tear(checkpoint: Path) -> None:
    weights = checkpoint / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def test_a_torn_checkpoint_is_set_aside_and_the_one_before_it_used(tmp_path):
    expected = tiny.remains_of(RECIPE, tmp_path / "whole")
    tiny.run(RECIPE, tmp_path / "run")
    tear(tmp_path / "run" / "checkpoints" / "000008")
    said = tiny.run(RECIPE, tmp_path / "run")
    assert "resuming from an earlier checkpoint: model/model.safetensors in the checkpoint" in said
    assert "resumed" in said
    assert "at update 7 of 8" in said
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "torn-000008")
    assert tiny.remains(tmp_path / "run") == expected


def test_where_no_checkpoint_is_whole_the_run_says_so_and_touches_nothing(tmp_path):
    tiny.run(RECIPE, tmp_path / "run")
    for number in (7, 8):
        tear(tmp_path / "run" / "checkpoints" / f"{number:06d}")
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(CheckpointError, match="torn or was altered"):
        tiny.run(RECIPE, tmp_path / "run")
    assert sorted(
        (path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*") if path.name != "lock"
    ) == [entry for entry in before if entry[0].name != "lock"]


def test_a_finished_run_gives_its_results_again_and_does_nothing(tmp_path):
    first = tiny.reports_of(RECIPE, tmp_path / "run")
    before = tiny.remains(tmp_path / "run")
    assert tiny.reports_of(RECIPE, tmp_path / "run") == first
    assert list(first) == ["random", "warm-3", "learn-2", "learn-4", "learn-5"]
    assert tiny.remains(tmp_path / "run") == before


def test_a_run_folder_serves_one_process_at_a_time(processes, tmp_path):
    process = tiny.in_background(processes, tiny.recipe, tmp_path / "run")
    try:
        while not (tmp_path / "run" / "recipe.json").exists():
            assert process.is_alive()
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(ConfigError, match="another process is using the run folder"):
            tiny.run(tiny.recipe, tmp_path / "run")
    finally:
        process.kill()
        process.join()
    tiny.run(tiny.recipe, tmp_path / "run")


def test_a_run_of_another_recipe_is_not_gone_on_with(tmp_path):
    tiny.run(tiny.recipe, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"(?s)another recipe.*seed: 0 -> 1"):
        tiny.run(replace(tiny.recipe, seed=1), tmp_path / "run")


@pytest.mark.slow
def test_the_demo_killed_three_times_at_random_ends_like_one_that_was_not(tmp_path):
    settings = [
        "explore.updates=1",
        "explore.source.num_episodes=60",
        "explore.minibatches=8",
        "imitate.updates=2",
        "learn.updates=5",
    ]
    overrides = [f"stages.{setting}" for setting in settings] + [
        "evaluation.num_tasks=40",
        "compute.threads=1",
    ]

    def start(folder: Path) -> subprocess.Popen[bytes]:
        command = ["train", str(ROOT / "recipes" / "textworld_demo.py"), *overrides, "--out", str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-c", "from agentrl.cli import main; main()", *command],
            env=environment,
            stderr=subprocess.DEVNULL,
        )

    assert start(tmp_path / "whole").wait() == 0
    moments = random.Random(2024)
    for records in sorted(moments.sample(range(number_of_records(tmp_path / "whole") - 2), 3)):
        process = start(tmp_path / "run")
        while number_of_records(tmp_path / "run") < records:
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(moments.uniform(0.0, 1.0))
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "the run was over before it was killed"
        assert psutil.wait_procs(children, timeout=20)[1] == []
    assert start(tmp_path / "run").wait() == 0
    expected, found = tiny.remains(tmp_path / "whole"), tiny.remains(tmp_path / "run")
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def number_of_records(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(read_metrics(path)) if path.exists() else 0
