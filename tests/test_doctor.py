import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from agentrl.commands.doctor import Check, checks, healthy


def by_name(**folders):
    return {check.name: check for check in checks(**folders)}


def test_this_machine_is_described_and_everything_missing_has_a_fix(tmp_path):
    found = checks(cache=tmp_path / "cache", runs=tmp_path / "runs")
    assert len({check.name for check in found}) == len(found)
    assert all(check.found for check in found)
    assert all(check.ok or check.fix for check in found)
    assert by_name(cache=tmp_path)["python"].ok


def test_a_folder_that_cannot_be_written_is_found(tmp_path):
    (tmp_path / "file").write_text("")
    found = by_name(cache=tmp_path / "file" / "cache", runs=tmp_path)
    assert not found["cache folder"].ok
    assert "XDG_CACHE_HOME" in found["cache folder"].fix
    assert found["run folder"].ok
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_more_threads_than_cores_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert "set OMP_NUM_THREADS to at most" in by_name(cache=tmp_path)["processor"].fix
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert by_name(cache=tmp_path)["processor"].ok


def test_docker_is_found_when_its_socket_answers(tmp_path, monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # a socket's path has at most 107 bytes
        path = Path(short) / "docker.sock"
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        assert not by_name(cache=tmp_path)["docker"].ok
        with socket.socket(socket.AF_UNIX) as daemon:
            daemon.bind(str(path))
            daemon.listen()
            assert by_name(cache=tmp_path)["docker"].ok


def test_only_what_is_needed_decides():
    optional = Check("gpu", False, "none", "buy one", needed=False)
    assert healthy([Check("python", True, "3.11"), optional])
    assert not healthy([Check("python", False, "3.9", "install"), optional])


def test_looking_loads_nothing_heavy_but_torch():
    code = (
        "import sys; from agentrl.commands.doctor import checks; assert 'torch' not in sys.modules; checks();"
        "print(sorted({'transformers', 'textworld', 'vllm', 'wandb', 'mlflow', 'docker'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_torch_is_a_finding_not_a_crash(tmp_path):
    code = (
        "import sys, importlib.util; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: "
        "None if name in ('torch', 'transformers') else find(name, *rest)\n"
        "from agentrl.commands.doctor import checks, healthy; found = {c.name: c for c in checks()}\n"
        "print(found['torch'], found['gpu'], healthy(list(found.values())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "not installed" in done.stdout
    assert "pip install '.[train]'" in done.stdout
    assert done.stdout.strip().endswith("False")
