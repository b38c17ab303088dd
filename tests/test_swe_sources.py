import io
import tarfile

import pytest
from agentrl_environments.swe import sources
from agentrl_environments.swe.rows import SourceDistribution
from agentrl_environments.swe.synth import packages

from agentrl.errors import ConfigError


def test_an_archive_is_a_function_of_its_files_alone():
    files = {"b/run.sh": b"#!/bin/sh\n", "a.py": b"x = 1\n"}
    assert sources.tar(files) == sources.tar(dict(reversed(files.items())))
    with tarfile.open(fileobj=io.BytesIO(sources.tar(files))) as archive:
        members = [(member.name, member.mode, member.mtime, member.uid) for member in archive]
    assert members == [("a.py", 0o644, 0, 0), ("b/run.sh", 0o755, 0, 0)]


@pytest.mark.parametrize(
    "get",
    [lambda cache: sources.archive(SourceDistribution("nowhere", "1.0", "0" * 64), cache), sources.tools],
)
def test_what_cannot_be_had_is_a_mistake_that_its_owner_can_mend(get, tmp_path, monkeypatch):
    def refuse(*_: object) -> bytes:
        raise packages.UnusablePackage("download", "pip could not fetch it: no network")

    monkeypatch.setattr(packages, "_download", refuse)
    with pytest.raises(
        ConfigError, match=r"no network; give pip access to a network .* or copy the cache folder"
    ):
        get(str(tmp_path))


def test_a_cached_archive_of_another_content_is_not_used(tmp_path, monkeypatch):
    (tmp_path / "nowhere-1.0.tar.gz").write_bytes(b"something else")

    def refuse(*_: object) -> bytes:
        raise packages.UnusablePackage("download", "it was asked for again")

    monkeypatch.setattr(packages, "_download", refuse)
    with pytest.raises(ConfigError, match="asked for again"):
        sources.archive(SourceDistribution("nowhere", "1.0", "0" * 64), str(tmp_path))
