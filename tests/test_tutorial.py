import re
import sys
from pathlib import Path

from agentrl.commands.scaffold import render

PAGE = (Path(__file__).parent.parent / "docs" / "tutorial-environment.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_tutorials_environment_has_fifty_lines():
    assert len(BLOCKS[0].splitlines()) <= 50


def test_the_tutorials_environment_is_what_the_skeleton_writes():
    assert BLOCKS[0] == render("environment.py.txt", {"name": "guess", "module": "guess", "Class": "Guess"})


def test_the_tutorials_code_runs(tmp_path, monkeypatch):
    (tmp_path / "guess.py").write_text(BLOCKS[0])
    monkeypatch.syspath_prepend(tmp_path)
    scope: dict[str, object] = {}
    exec("from guess import Guess\n" + "\n".join(BLOCKS[1:]), scope)
    assert scope["info"]["valid"] == 1.0
    sys.modules.pop("guess")
