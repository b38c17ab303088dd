import errno
import os
from pathlib import Path

import pytest

from agentrl.errors import ConfigError
from agentrl.records.files import replace, writing


def test_a_file_is_replaced_as_a_whole_and_its_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    replace(path, b"old")
    replace(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    path = tmp_path / "file"
    replace(path, b"old")
    (tmp_path / ".file.tmp").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"cannot write .*file: no space left on device; free space"):
        replace(path, b"new")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file", b"old")]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_without_rights_is_named(code):
    with (
        pytest.raises(ConfigError, match=r"cannot write runs/demo: .*choose a folder you may write to"),
        writing(Path("runs/demo")),
    ):
        raise OSError(code, os.strerror(code))


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="a part of the path is a file"):
        replace(tmp_path / "file" / "under", b"")


def test_other_problems_stay_what_they_are(tmp_path):
    with pytest.raises(InterruptedError), writing(tmp_path):
        raise InterruptedError
