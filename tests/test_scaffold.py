import os
import subprocess
import sys
import tomllib

import pytest

from agentrl.commands.scaffold import new_environment
from agentrl.errors import ConfigError


def test_a_new_environment_passes_the_conformance_suite_as_it_is(tmp_path):
    root = new_environment("word-chain", tmp_path)
    assert root == tmp_path / "word-chain"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"],
        cwd=root,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout


def test_its_package_registers_it(tmp_path):
    root = new_environment("word-chain", tmp_path)
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["agentrl.environments"] == {"word-chain": "word_chain:WordChain"}
    assert "class WordChain(EnvSpec)" in (root / "word_chain.py").read_text()
    assert "$" not in "".join(file.read_text() for file in root.rglob("*.*") if file.is_file())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Word Chain", "lower-case words joined by '-'"),
        ("../escape", "lower-case words"),
        ("", "lower-case words"),
        ("json", "would hide"),
        ("class", "would hide"),
        ("agentrl", "would hide"),
        ("bandit", "is already installed"),
    ],
)
def test_a_name_that_is_not_valid_is_refused(tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        new_environment(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_exists_is_not_touched(tmp_path):
    new_environment("maze", tmp_path)
    with pytest.raises(ConfigError, match="already exists"):
        new_environment("maze", tmp_path)
