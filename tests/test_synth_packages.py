import hashlib
import importlib.util
import io
import tarfile
from pathlib import Path

import pytest
import toy
from agentrl_environments.swe.rows import SourceDistribution
from agentrl_environments.swe.synth import packages
from agentrl_environments.swe.synth.packages import (
    PACKAGES,
    PinnedPackage,
    UnusablePackage,
    arrange,
    fetch,
    named,
    unpack,
)

from agentrl.errors import ConfigError

TOY = PinnedPackage(name="toy", version="1.0")


def archive(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as made:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_an_archive_is_unpacked_without_what_was_made_when_it_was_built() -> None:
    data = toy.sdist()
    tree = unpack(TOY, data)
    assert tree.files == dict(sorted(toy.FILES.items()))
    assert tree.source == SourceDistribution("toy", "1.0", hashlib.sha256(data).hexdigest())
    assert tree.modules == ("toy/__init__.py", "toy/calc.py")
    assert tree.root == "."


def test_members_that_leave_the_folder_and_links_are_left_out() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as made:
        for name, data in {
            "toy-1.0/toy/a.py": b"",
            "toy-1.0/toy/__init__.py": b"",
            "toy-1.0/test_a.py": b"",
            "toy-1.0/../../evil.py": b"",
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("toy-1.0/toy/link.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(link)
    assert set(unpack(TOY, out.getvalue()).files) == {"toy/a.py", "toy/__init__.py", "test_a.py"}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"no archive", "cannot be read"),
        (toy.sdist()[:200], "cannot be read"),
        (archive(("toy-1.0/README", b"")), "has no Python modules"),
        (archive(("toy-1.0/toy/__init__.py", b"")), "has no tests"),
    ],
)
def test_an_archive_that_no_task_can_be_made_of_is_refused_with_the_reason(data: bytes, why: str) -> None:
    with pytest.raises(UnusablePackage, match=why) as refused:
        unpack(TOY, data)
    assert refused.value.reason == "layout"


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "MAX_BYTES", 1000)
    with pytest.raises(UnusablePackage, match="unpacks to more than"):
        unpack(TOY, archive(("toy-1.0/toy/__init__.py", bytes(2000))))


def test_layouts_are_recognised_and_scripts_tests_and_documents_are_no_modules() -> None:
    files = {
        path: b""
        for path in (
            "src/a/__init__.py",
            "src/a/b.py",
            "tests/test_b.py",
            "docs/conf.py",
            "setup.py",
            "src/a/tests/test_c.py",
        )
    }
    tree = arrange(TOY, SourceDistribution("toy", "1.0", ""), files)
    assert (tree.root, tree.modules) == ("src", ("src/a/__init__.py", "src/a/b.py"))
    single = arrange(
        TOY,
        SourceDistribution("toy", "1.0", ""),
        {"one.py": b"", "test_one.py": b"", "benchmarks/speed.py": b""},
    )
    assert (single.root, single.modules) == (".", ("one.py",))
    assert single.command.startswith("PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} ")
    assert "python3 -S -m pytest" in single.command


def test_known_packages_are_pinned_by_hash_and_others_by_version() -> None:
    assert all(len(package.sha256) == 64 for package in PACKAGES)
    assert {"h11", "voluptuous", "parse", "xmltodict", "semver", "cachetools", "toolz", "tomlkit"} <= {
        package.name for package in PACKAGES
    }
    assert named("h11==0.16.0") is named("h11")
    assert named("six==1.16.0:" + "a" * 64).sha256 == "a" * 64
    with pytest.raises(
        ConfigError, match=r"no version is known for package 'six' .* pin one, as in six==1\.0"
    ):
        named("six")


def test_what_is_in_the_cache_needs_no_network_and_what_was_altered_is_not_used(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    data = toy.sdist()
    pinned = PinnedPackage(name="toy", version="1.0", sha256=hashlib.sha256(data).hexdigest())
    (tmp_path / "toy-1.0.tar.gz").write_bytes(data)
    assert fetch(pinned, tmp_path).files == dict(sorted(toy.FILES.items()))
    (tmp_path / "toy-1.0.tar.gz").write_bytes(data + b"x")
    with pytest.raises(UnusablePackage, match=r"pip could not fetch toy==1\.0") as refused:
        fetch(pinned, tmp_path)
    assert refused.value.reason == "download"


def test_compiled_files_of_the_runner_are_read_by_this_interpreter(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = b"x = 1\n"
    (tmp_path / "agentrl_made.py").write_bytes(source)
    compiled = importlib.util.cache_from_source(str(tmp_path / "agentrl_made.py"))
    (tmp_path / "__pycache__").mkdir()
    Path(compiled).write_bytes(packages._compiled("agentrl_made.py", b"x = 2\n"))
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.import_module("agentrl_made").x == 2, (
        "the compiled file is what counts: it is not checked against the source"
    )
