"""Runs what the page about credit rules says: the rule, its numbers, its tests, and its recipe."""

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agentrl.cli import app
from agentrl.recipe.check import check
from agentrl.recipe.load import load

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "your-own-credit-rule.md").read_text()
RULE, UNBIASED, BIASED, TESTS, RECIPE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(autouse=True)
def rule(tmp_path, monkeypatch):
    """The page's rule as a module that can be imported."""
    (tmp_path / "others_median.py").write_text(RULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("others_median", None)


def test_a_credit_rule_is_one_file_of_less_than_sixty_lines():
    assert len(RULE.splitlines()) < 60


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if "unbiased" in name else [])
        for name in re.findall(r"def (test_\w+)", TESTS)
    ],
)
def test_the_pages_tests_pass(name):
    scope: dict[str, Any] = {}
    exec(TESTS, scope)
    scope[name]()


def test_the_pages_recipe_passes_its_checks(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "median.py").write_text(RECIPE)
    recipe = load(tmp_path / "median.py")
    check(recipe)
    assert type(recipe.stages[0].credit).__name__ == "OthersMedian"


@pytest.mark.slow
def test_the_page_prints_what_it_says():
    scope: dict[str, Any] = {}
    for code in (UNBIASED, BIASED):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(code, scope)
        assert output.getvalue().startswith("cosine")
        assert f"```\n{output.getvalue()}```" in PAGE


@pytest.mark.slow
def test_the_pages_recipe_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "median.py").write_text(RECIPE)
    small = [
        "stages.learn.updates=1",
        "stages.learn.source.num_groups=2",
        "stages.learn.source.group_size=3",
        "evaluation.num_tasks=2",
    ]
    result = CliRunner().invoke(
        app, ["train", str(tmp_path / "median.py"), *small, "--out", str(tmp_path / "run")]
    )
    assert result.exit_code == 0, result.output
    assert "others_median:OthersMedian" in (tmp_path / "run" / "recipe.json").read_text()
