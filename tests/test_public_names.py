"""``import agentrl as rl``: every public name, once, loaded when it is used."""

import importlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import agentrl as rl

STUB = Path(rl.__file__).with_suffix(".pyi")


@pytest.mark.parametrize("name", sorted(rl.public_names()))
def test_a_public_name_is_what_its_module_defines(name) -> None:
    module = importlib.import_module(rl.public_names()[name])
    assert getattr(rl, name) is getattr(module, name)
    assert name in dir(rl)


def test_each_name_is_listed_once() -> None:
    lines = [line for line in STUB.read_text().splitlines() if line.startswith("from ")]
    counted = Counter(line.rpartition(" ")[2] for line in lines)
    assert not {name: count for name, count in counted.items() if count > 1}
    assert len(rl.public_names()) == len(lines)


def test_no_public_name_hides_a_module() -> None:
    modules = {path.stem for path in STUB.parent.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not modules & set(rl.public_names())


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'agentrl' has no attribute 'GRPPO'"):
        rl.GRPPO  # noqa: B018 - the access is the test


def test_a_value_is_used_without_torch() -> None:
    use = "rl.Clip(), rl.GRPO(), rl.Rollouts(), rl.Task('a')"
    script = f"import sys, agentrl as rl; {use}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False\n"
