"""The recipes load and pass their checks; those for pretrained models can be planned on a model folder."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from chatml import CHAT_TOKENIZER
from typer.testing import CliRunner

from agentrl.cli import app
from agentrl.learner.model import build_model
from agentrl.learner.spec import ModelSpec, Shape, TrainedTokenizer
from agentrl.recipe.check import check
from agentrl.recipe.load import load

FOLDER = Path(__file__).parent.parent / "recipes"
METHODS = sorted(path for path in (FOLDER / "methods").glob("*.py") if path.stem != "base")
RECIPES = [*sorted(FOLDER.glob("*.py")), *METHODS]
PRETRAINED = FOLDER / "textworld_pretrained.py"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    spec = ModelSpec(
        shape=Shape(hidden=32, layers=1, heads=2, kv_heads=1, mlp=64, max_context=4096),
        tokenizer=TrainedTokenizer(),
    )
    build_model(spec, len(CHAT_TOKENIZER), seed=0).save_pretrained(folder)
    CHAT_TOKENIZER.save_pretrained(folder)
    return folder


def test_the_recipe_of_the_readme_is_whole_and_passes_its_checks():
    readme = (FOLDER.parent / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    names = {}
    exec(block, names)
    check(names["recipe"])


def test_recipes_are_read_overridden_printed_and_refused_without_torch():
    script = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from agentrl.errors import ConfigError
        from agentrl.options import pretty
        from agentrl.recipe.check import check
        from agentrl.recipe.load import load
        for path in {[str(path) for path in RECIPES]!r}:
            recipe = load(Path(path), ["seed=1"])
            check(recipe)
            assert recipe.seed == 1 and recipe.name in pretty(recipe)
        try:
            load(Path(path), ["stages.learn.updates=many"])
        except ConfigError as problem:
            print(problem)
        print(sorted({{"torch", "transformers", "textworld"}} & set(sys.modules)))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["option 'stages.learn.updates' takes int; found 'many'", "[]"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_passes_its_checks(path):
    recipe = load(path)
    check(recipe)
    assert recipe.name == path.stem


def test_the_pretrained_recipe_says_that_its_model_folder_is_missing():
    result = CliRunner().invoke(app, ["train", str(PRETRAINED), "--dry-run"])
    assert result.exit_code != 0
    assert "folder does not exist" in " ".join((result.output + str(result.exception)).split())


def test_the_pretrained_recipe_plans_on_a_model_folder(model_folder):
    result = CliRunner().invoke(
        app, ["train", str(PRETRAINED), f"model.folder={model_folder}", "compute.device=cpu", "--dry-run"]
    )
    assert result.exit_code == 0, result.output
    assert "memory" in result.output.lower()


def test_the_recipe_for_code_models_plans_on_a_model_folder(model_folder):
    path = FOLDER / "swe_qwen.py"
    result = CliRunner().invoke(
        app,
        [
            "train",
            str(path),
            f"model.folder={model_folder}",
            "engine.max_context=4096",
            "compute.device=cpu",
            "--dry-run",
        ],
    )
    assert result.exit_code == 0, result.output
    assert "memory" in result.output.lower()


@pytest.mark.slow
def test_the_pretrained_recipe_trains_on_raw_text_through_a_chat_template(model_folder, tmp_path):
    small = [
        "env.train=4",
        "env.valid=1",
        "env.test=2",
        "env.ood=1",
        "env.max_turns=3",
        f"env.cache={tmp_path / 'games'}",
    ]
    short = [
        "stages.ppo.updates=2",
        "stages.ppo.source.num_groups=4",
        "stages.ppo.optimisation.freeze_policy_updates=1",
    ]
    cpu = [
        "compute.device=cpu",
        "compute.precision=float32",
        "compute.threads=1",
        "num_workers=1",
        "sampling.max_tokens=4",
    ]
    options = [f"model.folder={model_folder}", *small, *short, *cpu]
    result = CliRunner().invoke(app, ["train", str(PRETRAINED), *options, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "results.md").exists()
