"""The examples and tables of ``sandboxes/README.md`` are correct."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from agentrl_sandboxes.backend import Backend
from agentrl_sandboxes.metrics import METRICS
from agentrl_sandboxes.pool import PoolOptions

from agentrl.sandbox import SandboxProvider
from agentrl.testing.abuse import ATTACKS

TEXT = (Path(__file__).parent.parent / "sandboxes" / "README.md").read_text()
QUICK_START, OWN_BACK_END = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_table_has_every_attack_and_what_is_expected_of_it() -> None:
    rows = re.findall(r"^\| (.+?) \| (\w+) \| (not enforced ¹|\w+) \| (\w+) \|$", TEXT, re.MULTILINE)
    assert [row[0] for row in rows] == [attack.title for attack in ATTACKS]
    for attack, (_, *outcomes) in zip(ATTACKS, rows, strict=True):
        assert set(outcomes) <= {attack.expected, "not enforced ¹"}


def test_the_options_of_the_pool_are_all_there_with_their_defaults() -> None:
    documented: dict[str, float] = {}
    for names, values in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([\d., ]+) \|", TEXT, re.MULTILINE):
        documented |= dict(zip(re.findall(r"\w+", names), map(float, values.split(", ")), strict=True))
    assert documented == {option.name: option.default for option in dataclasses.fields(PoolOptions)}


def test_the_metrics_are_all_named() -> None:
    assert not [name for name in METRICS if not name.endswith("_p95") and f"`{name}`" not in TEXT]


def test_the_example_of_a_back_end_has_the_six_members_and_fits_in_a_hundred_lines() -> None:
    members = {name for name in vars(Backend) if not name.startswith("_")}
    (backend,) = [
        node
        for node in ast.parse(OWN_BACK_END).body
        if isinstance(node, ast.ClassDef) and node.name == "CloudBackend"
    ]
    methods = {node.name for node in backend.body if isinstance(node, ast.AsyncFunctionDef)}
    assert methods | {"capabilities"} == members
    assert "self.capabilities = " in OWN_BACK_END
    assert len(OWN_BACK_END.splitlines()) < 100
    names = {"Client": object, "connect": None}
    exec(compile(OWN_BACK_END, "README.md", "exec", dont_inherit=True), names)
    assert issubclass(names["Cloud"], SandboxProvider)  # type: ignore[arg-type]


def test_the_quick_start_does_what_it_says() -> None:
    done = subprocess.run(
        [sys.executable, "-c", QUICK_START], capture_output=True, text=True, timeout=250, check=False
    )
    if done.returncode and ("meets the requirements" in done.stderr or "ImageMissing" in done.stderr):
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0 b'hello from inside\\n'\nb'5 in /tmp\\n'\n{'opened': 1.0")
