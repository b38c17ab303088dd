"""Images: what is in them, when they are built again, and the effect of a crash or a bad archive."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from agentrl_sandboxes import debian, image_store, images
from agentrl_sandboxes.backend import SANDBOX_UID
from agentrl_sandboxes.cli import images as command
from typer.testing import CliRunner

from agentrl.errors import ConfigError, ImageMissing


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(image_store.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    return tmp_path / "agentrl" / "images"


def archive(path: Path, files: dict[str, bytes | str]) -> Path:
    """Write a tar archive.

    A string is the target of a symbolic link; a name that ends with '/' is a folder.
    """
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name.rstrip("/"))
            member.mode = 0o755
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
                tar.addfile(member)
            elif isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def small(tmp_path):
    return archive(
        tmp_path / "small.tar",
        {"usr/": b"", "usr/bin/": b"", "usr/bin/tool": b"#!/bin/sh\n", "bin": "usr/bin"},
    )


def everything(root: Path) -> dict[str, object]:
    """Return the content of each path, to compare trees."""
    return {
        str(path.relative_to(root)): path.readlink()
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(root.rglob("*"))
    }


def needs_base() -> None:
    try:
        debian.closure(images.PACKAGES)
    except ImageMissing as problem:
        pytest.skip(str(problem))


def test_an_archive_becomes_an_image_with_the_files_every_sandbox_needs(store, small):
    image = images.build("tiny", source=small)
    assert image.rootfs == store / image.digest / "rootfs" == images.rootfs("tiny")
    assert (image.rootfs / "bin/tool").read_bytes() == b"#!/bin/sh\n"
    assert os.access(image.rootfs / "usr/bin/tool", os.X_OK)
    assert "directory = *" in (image.rootfs / "etc/gitconfig").read_text()
    assert {"proc", "dev", "tmp", "workspace"} <= {path.name for path in image.rootfs.iterdir()}


def test_the_files_belong_to_one_user_who_is_not_root(store, small):
    image = images.build("tiny", source=small)
    owner = SANDBOX_UID if os.getuid() == 0 else os.getuid()
    assert {path.lstat().st_uid for path in [image.rootfs, *image.rootfs.rglob("*")]} == {owner}
    assert not any(path.lstat().st_mode & 0o6000 for path in image.rootfs.rglob("*"))


def test_the_same_ingredients_are_not_made_twice_and_give_the_same_digest(store, small):
    first = images.build("tiny", source=small)
    made = first.rootfs.stat().st_ino
    assert images.build("tiny", source=small) == first
    again = images.build("tiny", source=small, rebuild=True)
    assert again.digest == first.digest
    assert again.rootfs.stat().st_ino == made
    assert images.build("other", source=small).digest == first.digest


def test_a_changed_archive_makes_the_name_point_to_another_image(store, small, tmp_path):
    first = images.build("tiny", source=small)
    second = images.build("tiny", source=archive(tmp_path / "b.tar", {"usr/bin/tool": b"other"}))
    assert second.digest != first.digest
    assert images.find("tiny") == second


def test_a_layer_changes_its_image_and_never_the_one_below(store, small, tmp_path):
    base = images.build(source=small)
    before = everything(base.rootfs)
    layer = archive(
        tmp_path / "layer.tar",
        {"usr/bin/tool": b"changed", "testbed/a.py": b"x = 1\n", "bin/more": b"through a link"},
    )
    task = images.build("task", layers=[layer])
    assert everything(base.rootfs) == before
    assert (task.rootfs / "usr/bin/tool").read_bytes() == b"changed"
    assert (task.rootfs / "testbed/a.py").read_text() == "x = 1\n"
    assert (task.rootfs / "usr/bin/more").exists()
    assert (task.rootfs / "etc/gitconfig").stat().st_ino == (base.rootfs / "etc/gitconfig").stat().st_ino


@pytest.mark.parametrize(
    "files",
    [
        {"../outside": b"x"},
        {"a/../../outside": b"x"},
        {"up": "..", "up/../outside": b"x"},
        {"abs": "/", "abs/outside": b"x"},
        {"up": "../../..", "up/outside": b"x"},
    ],
)
def test_an_archive_cannot_write_outside_of_its_image(store, tmp_path, files):
    outside = [tmp_path / "outside", store / "outside", Path("/outside"), store / "building" / "outside"]
    with pytest.raises(ConfigError, match="outside"):
        images.build("bad", source=archive(tmp_path / "bad.tar", files))
    assert not any(path.exists() for path in outside)
    assert images.known() == ()
    assert list((store / "building").iterdir()) == []


def test_what_is_no_archive_is_refused_and_leaves_nothing(store, tmp_path):
    (tmp_path / "bad.tar").write_bytes(b"no archive at all" * 100)
    with pytest.raises(ConfigError, match="cannot unpack"):
        images.build("bad", source=tmp_path / "bad.tar")
    with pytest.raises(ConfigError, match="is not a file"):
        images.build("bad", layers=[tmp_path / "nothing.tar"])
    with pytest.raises(ConfigError, match="named with lower case"):
        images.build("../bad", source=tmp_path / "bad.tar")
    assert list((store / "building").iterdir()) == []


def test_a_name_that_is_not_there_says_what_is_and_how_to_build_it(store, small):
    images.build("tiny", source=small)
    with pytest.raises(
        ImageMissing, match=r"no image is named 'tny'; the images here are: tiny.*agentrl images build tny"
    ):
        images.rootfs("tny")
    with pytest.raises(ImageMissing, match="no image is named"):
        images.remove("tny")


def test_files_stay_for_as_long_as_a_name_has_them(store, small):
    first, second = images.build("one", source=small), images.build("two", source=small)
    assert first.rootfs == second.rootfs
    images.remove("one")
    assert second.rootfs.is_dir()
    images.remove("two")
    assert not second.rootfs.exists()
    assert images.known() == ()


def test_the_tar_is_the_same_each_time_and_all_of_it_is_roots(store, small):
    image = images.build("tiny", source=small)
    one, two = io.BytesIO(), io.BytesIO()
    images.write_tar(image, one)
    images.write_tar(image, two)
    assert one.getvalue() == two.getvalue()
    one.seek(0)
    with tarfile.open(fileobj=one) as tar:
        members = tar.getmembers()
        assert {(member.uid, member.gid, member.uname) for member in members} == {(0, 0, "")}
        assert {member.name for member in members} == set(everything(image.rootfs))


def _build_slowly(cache: str, source: str) -> None:
    image_store.platformdirs.user_cache_path = lambda name: Path(cache) / name
    whole = image_store.measure

    def late(tree):
        Path(cache, "half").touch()
        time.sleep(60)
        return whole(tree)

    image_store.measure = late
    images.build("tiny", source=Path(source))


def test_a_builder_that_is_killed_leaves_nothing_that_the_next_one_does_not_clear(store, small, tmp_path):
    builder = multiprocessing.get_context("fork").Process(
        target=_build_slowly, args=(str(tmp_path), str(small))
    )
    builder.start()
    while not (tmp_path / "half").exists():
        time.sleep(0.01)
    assert len(list((store / "building").iterdir())) == 1
    assert images.known() == ()
    os.kill(builder.pid, signal.SIGKILL)
    builder.join()
    assert images.build("tiny", source=small).rootfs.is_dir()
    assert list((store / "building").iterdir()) == []


def _build(cache: str, source: str, answer: multiprocessing.Queue) -> None:
    image_store.platformdirs.user_cache_path = lambda name: Path(cache) / name
    answer.put(images.build("tiny", source=Path(source)).digest)


def test_builders_at_the_same_time_make_one_image(store, small, tmp_path):
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    builders = [context.Process(target=_build, args=(str(tmp_path), str(small), answer)) for _ in range(4)]
    for builder in builders:
        builder.start()
    assert len({answer.get(timeout=60) for _ in builders}) == 1
    for builder in builders:
        builder.join()
    assert len(images.known()) == 1
    assert list((store / "building").iterdir()) == []


def test_missing_packages_are_named_with_the_command_that_installs_them():
    if shutil.which("dpkg-query") is None:
        pytest.skip("this is no Debian system")
    with pytest.raises(ImageMissing, match=r"no-such-package.*apt-get install no-such-package"):
        debian.closure(["bash", "no-such-package"])


def test_a_host_without_dpkg_says_what_to_give_instead(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ImageMissing, match="host has no dpkg-query"):
        debian.closure(["bash"])
    with pytest.raises(ImageMissing, match="apt-get install mmdebstrap"):
        debian.bootstrap(["bash"], Path("never.tar"))


def test_the_base_image_is_made_of_this_hosts_packages_in_seconds(store):
    needs_base()
    began = time.process_time()
    root = images.rootfs()
    assert time.process_time() - began < 20
    image = images.find()
    assert {package.partition("=")[0] for package in image.packages} >= set(images.PACKAGES)
    assert 1000 < image.num_files < 50_000
    assert (root / "usr/bin/python").readlink() == Path("python3")
    unreadable = [
        path
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and not path.stat().st_mode & 0o004
    ]
    assert unreadable == []


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("unshare") is None,
    reason="running programs in a root file system needs root",
)
def test_the_programs_of_the_base_image_run(store):
    needs_base()
    root = images.rootfs()
    code = """
import ctypes, json, pathlib, sqlite3, ssl, subprocess
print(subprocess.run(["git", "init", "-q", "/tmp/r"], check=True).returncode)
pathlib.Path("/tmp/r/test_x.py").write_text("def test_x(): assert 1")
print(subprocess.run(["python", "-m", "pytest", "-q", "/tmp/r"], check=True, capture_output=True).returncode)
versions = ("patch --version", "sed --version", "tar --version")
for line in ("awk 'BEGIN{print 1}'", "ps aux", "find /tmp", "grep root /etc/passwd", *versions):
    subprocess.run(line, shell=True, check=True, stdout=subprocess.DEVNULL)
"""
    mounts = f"mount --bind /dev {root}/dev; mount -t proc proc {root}/proc; mount -t tmpfs t {root}/tmp"
    script = f'{mounts}; exec chroot {root} /usr/bin/python3 -c "$0"'
    done = subprocess.run(
        ["unshare", "-m", "-p", "-f", "sh", "-c", script, code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["0", "0"]), done.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("mmdebstrap") is None or os.getuid() != 0,
    reason="mmdebstrap is not installed, or this is not root",
)
def test_a_mirror_gives_an_image_too(store):
    try:
        image = images.build("mirror", source="debian")
    except ImageMissing as problem:
        pytest.skip(f"the mirror cannot be used: {problem}")
    assert (image.rootfs / "usr/bin/python3").exists()
    assert (image.rootfs / "usr/bin/git").exists()


def test_the_command_builds_lists_and_removes(store, small):
    runner = CliRunner()
    built = runner.invoke(command, ["build", "tiny", "--source", str(small)])
    assert built.exit_code == 0, built.output
    digest = images.find("tiny").digest
    assert digest in built.output
    assert digest[:12] in runner.invoke(command, ["list"]).output
    assert runner.invoke(command, ["remove", "tiny"]).exit_code == 0
    assert images.known() == ()
    assert isinstance(runner.invoke(command, ["remove", "tiny"]).exception, ImageMissing)
