import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentrl.errors import CheckpointError, ConfigError
from agentrl.records.manifest import make_manifest, package_versions, read_manifest, reconcile


def manifest(**changes):
    return {**make_manifest(seed=3, panels={"train": "aa", "test": "bb"}), **changes}


def test_a_manifest_is_json_and_says_what_the_run_ran_on(tmp_path):
    path = tmp_path / "run" / "manifest.json"
    assert reconcile(path, manifest()) == []
    kept = read_manifest(path)
    assert kept["packages"]["numpy"]
    assert kept["python"] == ".".join(map(str, sys.version_info[:3]))
    assert kept["panels"] == {"train": "aa", "test": "bb"}
    assert kept["commit"] is None or len(kept["commit"]) == 40
    assert str(Path.home()) not in path.read_text()


def test_the_same_machine_raises_no_warning_and_the_first_manifest_stays(tmp_path):
    path = tmp_path / "manifest.json"
    reconcile(path, manifest(started="then"))
    assert reconcile(path, manifest(started="now")) == []
    assert read_manifest(path)["started"] == "then"


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"threads": 64}, "torch threads was .* and is 64"),
        ({"python": "4.0"}, "Python was 3.* and is 4.0"),
        ({"packages": package_versions() | {"torch": "9.9"}}, "package versions: torch was .* and is 9.9"),
        ({"commit": "f" * 40}, "commit of agentrl was .* and is ffff"),
    ],
)
def test_what_may_change_the_numbers_is_a_warning(tmp_path, change, warning):
    path = tmp_path / "manifest.json"
    reconcile(path, manifest())
    (line,) = reconcile(path, manifest(**change))
    assert re.match(warning, line)


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"panels": {"train": "aa", "test": "cc"}}, {"panels": {"train": "aa"}}]
)
def test_other_tasks_or_another_seed_stop_the_run(tmp_path, change):
    path = tmp_path / "manifest.json"
    reconcile(path, manifest())
    with pytest.raises(ConfigError, match=r"cannot be resumed: .* was .* and is .*choose a new folder"):
        reconcile(path, manifest(**change))


@pytest.mark.parametrize("content", [b"", b"[]", b'{"torn', b"\xff"])
def test_an_unreadable_manifest_is_named(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        reconcile(path, manifest())


def test_threads_are_counted_only_where_torch_is_loaded():
    code = (
        "import sys, json; from agentrl.records.manifest import make_manifest; "
        "print(json.dumps(make_manifest(seed=0, panels={})))"
    )
    alone = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert alone["threads"] is None
    loaded = "import torch; torch.set_num_threads(2); " + code
    assert (
        json.loads(subprocess.run([sys.executable, "-c", loaded], capture_output=True, check=True).stdout)[
            "threads"
        ]
        == 2
    )
