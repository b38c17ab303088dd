"""A user's mistake gives exit code 2 and one message that says how to fix it, if possible before any work."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from console import PROGRAM, RECIPE, agentrl, refused

from agentrl.learner.model import train_tokenizer

HUGE = (
    "model.shape.hidden=200000",
    "model.shape.mlp=800000",
    "model.shape.layers=80",
    "model.shape.heads=100",
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mistakes") / "tiny.py"
    path.write_text(RECIPE)
    return path


OVERRIDES = {
    "an unknown field": (["modle.folder=x"], ["no field 'modle'", "did you mean 'model'?"]),
    "an unknown stage": (["stages.lern.updates=2"], ["'lern'", "imitate, learn", "did you mean 'learn'?"]),
    "no assignment": (["seed"], ["'seed'", "path=value"]),
    "the wrong type": (["seed=1.5"], ["'seed' takes int", "'1.5'"]),
    "an environment's own check": (["env.arms=20"], ["arms must be from 2 to 8, found 20"]),
    "no turn": (["env.max_turns=0"], ["max_turns must be at least 1"]),
    "no update": (["stages.learn.updates=0"], ["stage 'learn'", "updates is 0"]),
    "a group of one with group credit": (
        ["stages.learn.source.group_size=1"],
        ["stage 'learn'", "GRPO", "at least 2", "group_size is 1"],
    ),
    "an unknown split": (["evaluation.split=dev"], ["'dev'", "train, valid, test"]),
    "a shape that is none": (["model.shape.heads=3"], ["multiple of heads"]),
    "an unknown architecture": (["model.shape.architecture=nothing"], ["'nothing'"]),
    "no room for bytes": (["model.tokenizer.vocab_size=200"], ["vocab_size 200", "259 or more"]),
    "a model that does not fit": (HUGE, ["does not fit", "MiB free", "smaller model"]),
    "no such device": (["compute.device=abacus"], ["'abacus'"]),
    "other tasks than the recipe's": (["panels.test=0123"], ["split 'test'", "0123", "change `panels`"]),
    "a missing model": (["model.folder=nowhere", "model.shape=none"], ["folder does not exist: nowhere"]),
}


@pytest.mark.parametrize(("overrides", "words"), OVERRIDES.values(), ids=OVERRIDES.keys())
def test_a_recipe_that_cannot_run_is_refused_before_any_work(recipe, tmp_path, overrides, words):
    folder = tmp_path / "run"
    refused(agentrl("train", recipe, *overrides, "--out", folder), *words)
    refused(agentrl("train", recipe, *overrides, "--out", folder, "--dry-run"), *words)
    assert not (folder / "manifest.json").exists()
    assert not (folder / "evaluations").exists()


FILES = {
    "no recipe": ("recipe = 3\n", ["must hold a value", "found int"]),
    "an unknown field": (RECIPE.replace('name="tiny"', 'nmae="tiny"'), ["line 17", "'nmae'"]),
    "a missing module": ("import nowhere\n", ["line 1", "'nowhere'"]),
    "no Python": ("recipe = (\n", ["SyntaxError", "line 1"]),
    "wrong types": (
        RECIPE.replace('name="tiny"', 'seed="0", num_workers=2.0, name="tiny"'),
        ["seed must be int; found '0' (str)", "num_workers must be int; found 2.0"],
    ),
    "many mistakes at once": (
        RECIPE.replace("updates=2,", "updates=0,").replace('name="learn"', 'name="imitate"'),
        ["stage names repeat: imitate, imitate", "updates is 0"],
    ),
    "a signal that nobody measures": (
        "from agentrl.rewards.outcome import Process\n"
        + RECIPE.replace("credit=GRPO()", 'reward=Process("glory"), credit=GRPO()'),
        ["Process reads signals that the environment does not report: glory; it reports payout"],
    ),
}


@pytest.mark.parametrize(("text", "words"), FILES.values(), ids=FILES.keys())
def test_a_recipe_file_that_is_wrong_is_refused(tmp_path, text, words):
    path = tmp_path / "wrong.py"
    path.write_text(text)
    refused(agentrl("train", path, "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


COMMANDS = {
    "no such recipe": (["train", "nowhere.py"], ["'nowhere.py'", "recipes/"]),
    "a folder that is no run": (["train", "."], ["no run folder"]),
    "an unknown environment": (
        ["eval", "bandid", "--policy", "random"],
        ["'bandid'", "did you mean 'bandit'", "known: bandit"],
    ),
    "an unknown option": (
        ["eval", "bandit", "armz=3", "--policy", "random"],
        ["'armz'", "did you mean 'arms'"],
    ),
    "an option of the wrong type": (["play", "bandit", "arms=two"], ["arms", "takes int", "'two'"]),
    "no policy": (["eval", "bandit"], ["--policy", "openai:MODEL@URL"]),
    "an unknown policy": (["eval", "bandit", "--policy", "clever"], ["'clever'", "random, expert"]),
    "an endpoint without address": (
        ["eval", "bandit", "--policy", "openai:m@localhost"],
        ["http://", "'localhost'"],
    ),
    "no checkpoint": (["eval", "bandit", "--policy", "checkpoint:nowhere"], ["nowhere", "does not exist"]),
    "a folder that is nothing": (["eval", "."], ["neither a run"]),
    "an unknown split": (
        ["eval", "bandit", "--policy", "random", "--split", "dev"],
        ["'dev'", "train, valid, test"],
    ),
    "a number that makes no sense": (
        ["eval", "bandit", "--policy", "random", "--episodes", "0"],
        ["--episodes is 0"],
    ),
    "no report": (["compare", "a.json", "b.json"], ["a.json", "agentrl eval"]),
    "a module that is not there": (["info", "nowhere:Maze"], ["no module is named 'nowhere'"]),
}


@pytest.mark.parametrize(("arguments", "words"), COMMANDS.values(), ids=COMMANDS.keys())
def test_a_command_that_cannot_be_done_is_refused(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    refused(agentrl(*arguments), *words)
    assert not list(tmp_path.iterdir())


def test_a_mistake_in_a_process_of_its_own_ends_with_exit_code_two_and_no_traceback(tmp_path):
    done = subprocess.run(
        [*PROGRAM, "info", "bandid"], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no environment plug-in is named 'bandid'; did you mean")
    assert done.stderr.count("\n") == 1


def test_a_package_of_an_extra_that_is_missing_is_named_with_its_extra(recipe, tmp_path):
    code = "import sys\nsys.modules['torch'] = None\nfrom agentrl.cli import main\nmain()"
    command = [sys.executable, "-c", code, "train", str(recipe), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "error: this needs the package 'torch', which is not installed; "
        "in agentrl's folder: pip install '.[train]'\n"
    )


def test_a_tokenizer_without_the_special_tokens_is_refused_before_any_work(recipe, tmp_path):
    from agentrl.learner.spec import TrainedTokenizer

    plain = tmp_path / "tokenizer"
    train_tokenizer(["a b"], TrainedTokenizer(special=("<pad>", "<end>"))).save_pretrained(plain)
    folder = tmp_path / "run"
    refused(agentrl("train", recipe, f"model.tokenizer={plain}", "--out", folder), "<act>")
    assert not folder.exists()


def test_folders_that_exist_and_are_no_run_of_this_recipe_are_left_alone(recipe, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("all that is dear")
    refused(agentrl("train", recipe, "--out", tmp_path / "thesis"), "is not a run of agentrl", "--out")
    refused(agentrl("train", recipe, "--out", tmp_path / "thesis" / "chapter"), "--out")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter"]


SHORT = ("stages.imitate.updates=1", "stages.learn.updates=1", "evaluation.num_tasks=2")


@pytest.fixture
def run(recipe, tmp_path) -> Path:
    folder = tmp_path / "run"
    assert agentrl("train", recipe, *SHORT, "--out", folder).code == 0
    return folder


def test_torn_and_foreign_checkpoints_are_refused(recipe, run, tmp_path):
    changed = agentrl("train", recipe, *SHORT, "model.shape.hidden=64", "--out", run)
    refused(changed, "another recipe", "model.shape.hidden: 32 -> 64", "--out")
    weights = run / "checkpoints" / "000002" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"tampered")
    refused(agentrl("eval", run), "model.safetensors", "torn or was altered")
    other = tmp_path / "other"
    assert agentrl("train", recipe, *SHORT, "seed=1", "--out", other).code == 0
    (other / "overrides.json").write_text("{")
    refused(agentrl("eval", other), "overrides.json")


@pytest.mark.parametrize("limit", [1_000, 5_000, 30_000])
def test_a_full_disk_names_the_file_and_how_to_go_on(recipe, tmp_path, limit):
    folder = tmp_path / "run"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        done = agentrl("train", recipe, "--out", folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    last = done.err.splitlines()[-1]
    assert last.startswith(f"error: cannot write {folder}")
    assert "free space" in last
    assert last.endswith("start the same command again")


def test_a_recipe_that_failed_before_any_work_can_be_mended_and_started_in_the_same_folder(recipe, tmp_path):
    folder = tmp_path / "run"
    refused(agentrl("train", recipe, *SHORT, "panels.test=0123", "--out", folder), "panels")
    assert agentrl("train", recipe, *SHORT, "--out", folder).code == 0
    assert agentrl("eval", folder).code == 0


@pytest.mark.slow
def test_a_corrupt_game_file_is_named_with_the_folder_to_delete(tmp_path):
    options = ("game=coin-r4-q2", f"cache={tmp_path / 'cache'}", "train=1", "valid=1", "test=2", "ood=0")
    arguments = ("eval", "textworld", *options, "--policy", "expert", "--out", tmp_path / "report.json")
    assert agentrl(*arguments).code == 0
    for game in (tmp_path / "cache").rglob("*.json"):
        if game.name != "index.json":
            game.write_bytes(game.read_bytes()[:300])
    refused(agentrl(*arguments), "is corrupt: its hash differs", "delete the folder")
