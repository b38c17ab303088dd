"""The command line as a user sees it.

Most calls run in this process, which has imported torch already; a few run in a process of their own.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from console import RECIPE, agentrl, program, refused

from agentrl.evaluation.report import Report


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "tiny.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory) -> Path:
    """A run that has ended; tests must not change it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    done = agentrl("train", recipe, "--out", folder)
    assert done.code == 0, done.err
    (folder / "said").write_text(done.out)
    return folder


# train


def test_training_ends_with_the_table_and_says_where_everything_is(run):
    said = (run / "said").read_text()
    lines = [line.split()[0] for line in said.splitlines() if line]
    assert lines[2:6] == ["random", "expert", "imitate-2", "learn-2"]
    assert "imitate-2 (before)" in said
    assert "learn-2 (after)" in said
    assert "A = imitate-2, B = learn-2" in said
    assert f"agentrl eval {run}" in said
    assert f"tensorboard --logdir {run / 'tensorboard'}" in said
    results = json.loads((run / "results.json").read_text())
    assert list(results) == ["random", "expert", "imitate-2", "learn-2"]
    assert results["expert"]["measures"]["success"]["mean"] == 1.0
    assert Report.read(run / results["learn-2"]["report"]).num_episodes == 24
    assert (run / "results.md").read_text().count("learn-2 (after)") == 1


def test_the_same_command_resumes_and_a_run_folder_needs_no_recipe_file(run, recipe):
    metrics = (run / "metrics.jsonl").read_bytes()
    for target in (recipe, run):
        done = agentrl("train", target, "--out", run)
        assert done.code == 0
        assert "resumed" in done.err
        assert done.out == (run / "said").read_text()
    assert (run / "metrics.jsonl").read_bytes() == metrics


def test_overrides_are_kept_and_apply_again(recipe, tmp_path):
    folder = tmp_path / "run"
    short = ("stages.imitate.updates=1", "stages.learn.updates=1", "evaluation.num_tasks=2", "seed=3")
    assert agentrl("train", recipe, *short, "--out", folder).code == 0
    assert json.loads((folder / "recipe.json").read_text())["seed"] == 3
    assert json.loads((folder / "overrides.json").read_text())["overrides"] == list(short)
    refused(agentrl("train", recipe, "--out", folder), "another recipe", "seed: 3 -> 0", "--out")
    again = agentrl("train", folder)
    assert again.code == 0
    assert "at update 2 of 2" in again.err


def test_a_dry_run_tells_what_a_run_will_take_and_does_nothing(recipe, tmp_path):
    folder = tmp_path / "run"
    done = agentrl("train", recipe, "env.max_turns=5", "--dry-run", "--out", folder)
    assert done.code == 0, done.err
    assert "env: Bandit(arms=3, good=0.9, bad=0.1, max_turns=5)" in done.out
    stages = [line.split() for line in done.out.splitlines() if line.startswith(("imitate ", "learn "))]
    assert stages == [
        ["imitate", "Demonstrations", "2", "32", "64", "8,192"],
        ["learn", "Rollouts", "2", "2", "16", "1,024"],
    ]
    for word in (
        "parameters",
        "kv cache",
        "total",
        "GFLOP/s",
        "panel        train ",
        f"run folder   {folder}",
    ):
        assert word in done.out
    assert not folder.exists()


def test_ctrl_c_says_how_to_resume(recipe, tmp_path):
    folder = tmp_path / "run"
    command = [
        sys.executable,
        "-c",
        "from agentrl.cli import main; main()",
        "train",
        recipe,
        "stages.learn.updates=100000",
        "--out",
        folder,
    ]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 100
        while not list(folder.glob("checkpoints/0*")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait(timeout=10)
    assert process.returncode == 130
    assert said.endswith(f"interrupted; the same command resumes {folder}\n")
    assert "Traceback" not in said


# eval, compare


def test_evaluating_a_run_repeats_its_final_evaluation(run, tmp_path):
    out = tmp_path / "again.json"
    done = agentrl("eval", run, "--out", out)
    assert done.code == 0, done.err
    again, before = Report.read(out), Report.read(run / "evaluations" / "learn-2.json")
    assert again.results == before.results
    assert (again.panel, again.seed) == (before.panel, before.seed)
    assert 0 < again.measures()["success"].mean < 1  # else the equality would say little
    assert out.with_suffix(".parquet").exists()
    assert again.settings["policy"].endswith("000004")


def test_what_the_command_line_asks_for_wins_over_the_recipe(run, tmp_path):
    out = tmp_path / "report.json"
    asked = (
        "--tasks",
        3,
        "--episodes",
        4,
        "--split",
        "valid",
        "--temperature",
        0,
        "--seed",
        5,
        "--policy",
        "random",
    )
    done = agentrl("eval", run, "max_turns=1", *asked, "--out", out)
    assert done.code == 0, done.err
    report = Report.read(out)
    assert (report.num_episodes, report.episodes_per_task, report.seed) == (12, 4, 5)
    assert report.settings["split"] == "valid"
    assert report.settings["temperature"] == 0
    assert report.measures()["turns"].mean == 1.0
    assert "pass@4" in done.out


def test_a_run_whose_recipe_has_come_to_mean_something_else_is_evaluated_with_a_warning(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    recorded = json.loads((copy / "recipe.json").read_text())
    (copy / "recipe.json").write_text(json.dumps(recorded | {"seed": 1}))
    done = agentrl("eval", copy, "--tasks", 2)
    assert done.code == 0
    assert "no longer means what it meant when the run was trained: seed: 1 -> 0" in done.err
    assert "no longer means" not in agentrl("eval", run, "--tasks", 2, "--out", tmp_path / "report.json").err


def test_an_older_checkpoint_a_recipe_and_an_environment_can_be_evaluated(run, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    older = sorted((run / "checkpoints").glob("0*"))[0]
    few = ("--tasks", 2)
    for target, policy in (
        (older, "checkpoint"),
        (recipe, "expert"),
        ("bandit", "random"),
        ("bandit", f"checkpoint:{run}"),
    ):
        done = agentrl("eval", target, *few, "--policy", policy, "--out", tmp_path / "report.json")
        assert done.code == 0, done.err
        assert Report.read(tmp_path / "report.json").num_episodes == 2
    assert agentrl("eval", "bandit", "arms=2", *few, "--policy", "expert").code == 0
    assert Report.read(tmp_path / "evaluations" / "bandit-expert-test.json").measures()["success"].mean == 1.0


def test_two_runs_or_reports_are_compared_task_by_task(run, tmp_path):
    expert = run / "evaluations" / "expert.json"
    done = agentrl("compare", run, expert)
    assert done.code == 0, done.err
    assert done.out.startswith(f"A = {run}, B = expert\n")
    assert "paired over 24 tasks" in done.out
    assert "McNemar" in done.out
    other = tmp_path / "other.json"
    assert agentrl("eval", "bandit", "arms=4", "--policy", "expert", "--tasks", 24, "--out", other).code == 0
    same = tmp_path / "valid.json"
    assert (
        agentrl("eval", "bandit", "--split", "valid", "--policy", "expert", "--tasks", 24, "--out", same).code
        == 0
    )
    refused(agentrl("compare", expert, same), "no task in common")


# play and the rest


def test_a_person_plays_and_sees_the_ledger():
    done = agentrl("play", "bandit", "max_turns=3", stdin="?\n\n!\nzz\na\na\n")
    assert done.code == 0, done.err
    assert "bandit-test-0, at most 3 turns" in done.out
    assert "> ?\n  a\n  b\n  c\n" in done.out
    assert "> !\n  a\n" in done.out
    assert "[refused, regret 0.9]" in done.out
    assert "terminated after 3 turns: solved" in done.out
    rows = [line.split() for line in done.out.splitlines()[-5:-1]]
    assert rows[0] == ["1", "zz", "0", "0", "-0.05", "0", "0.9"]
    assert rows[2][:5] == ["3", "a", "1", "1", "0"]
    assert rows[3][0] == "sum"


def test_playing_can_be_left_and_the_task_chosen():
    for stdin in ("q\n", ""):
        done = agentrl("play", "bandit", "--task", "bandit-valid-3", stdin=stdin)
        assert done.code == 0
        assert done.out.startswith("bandit-valid-3,")
        assert done.out.endswith("quit\n")
    assert agentrl("play", "bandit", "--split", "train", "--index", 511, stdin="q\n").out.startswith(
        "bandit-train-511,"
    )
    refused(agentrl("play", "bandit", "--index", 256), "256 tasks", "0 to 255")
    refused(agentrl("play", "bandit", "--task", "nowhere"), "'nowhere'", "'bandit-test-0'")


def test_what_there_is_is_listed_and_described():
    listed = agentrl("list")
    assert listed.code == 0
    assert {"bandit", "frozen-lake", "textworld"} <= set(listed.out.split())
    assert "textworld_demo.py" in listed.out
    described = agentrl("info", "bandit", "arms=4").out
    assert "arms       int    4" in described
    assert "Number of pulls in an episode" in described
    assert "regret" in described
    assert "train    512  " in described
    refused(agentrl("info", "bandid"), "did you mean 'bandit'")


def test_benchmarks_are_listed_and_run(tmp_path, monkeypatch):
    assert "update " in agentrl("bench").out
    refused(agentrl("bench", "nothing"), "no benchmark is named 'nothing'", "rollout")
    assert program("bench", "update", "--help").returncode == 0
    monkeypatch.setattr("agentrl.commands.inventory._ROOT", tmp_path)
    refused(agentrl("bench"), "source tree")


def test_a_new_environment_is_written(tmp_path):
    done = agentrl("new", "env", "word-chain", "--folder", tmp_path)
    assert done.code == 0
    assert (tmp_path / "word-chain" / "word_chain.py").exists()
    refused(agentrl("new", "env", "word-chain", "--folder", tmp_path), "already exists")
    refused(agentrl("new", "reward", "x"), "agentrl new env NAME")


def test_doctor_fails_where_something_needed_is_missing(monkeypatch):
    from agentrl.commands import doctor

    missing = doctor.Check("torch", False, "not installed", "pip install '.[train]'")
    monkeypatch.setattr(doctor, "checks", lambda: [missing])
    done = agentrl("doctor")
    assert done.code == 1
    assert "MISSING" in done.out
    assert "torch: pip install '.[train]'" in done.out
    monkeypatch.setattr(
        doctor,
        "checks",
        lambda: [doctor.Check("torch", True, "2"), doctor.Check("gpu", False, "none", needed=False)],
    )
    assert agentrl("doctor").code == 0


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("list",), ("info", "bandit"), ("eval", "--help")]
)
def test_light_commands_start_fast_and_load_nothing_heavy(arguments, tmp_path):
    code = (
        "import resource, sys\nfrom agentrl.cli import app\n"
        "try:\n    app()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'textworld'} & set(sys.modules)\nassert not heavy, heavy\n"
        "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "sys.stderr.write(f'{usage.ru_utime + usage.ru_stime}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert float(done.stderr) < 1.0  # 0.2 to 0.4 s where nothing else runs


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("agentrl.commands.inventory.catalogue", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        agentrl("list")
