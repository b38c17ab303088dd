"""The trees of instances made from source distributions, as archives for a sandbox.

The same distribution gives the same bytes on every machine: an archive has only files, sorted by path,
without dates and owners.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from agentrl.errors import ConfigError
from agentrl_environments.swe.rows import SourceDistribution
from agentrl_environments.swe.synth import packages


@lru_cache(maxsize=32)
def archive(source: SourceDistribution, cache: str = "") -> bytes:
    """Return the tree of a source distribution as a plain tar archive.

    ``cache`` is the folder of distributions. If it is empty, the user's cache folder is used.

    Raises:
        ConfigError: the distribution is not in the cache and cannot be fetched.
    """
    package = packages.PinnedPackage(name=source.package, version=source.version, sha256=source.sha256)
    with _fetching():
        return tar(packages.fetch(package, Path(cache) if cache else None).files)


@lru_cache(maxsize=4)
def tools(cache: str = "") -> bytes:
    """Return the files of the test runner as a plain tar archive.

    The parameter ``cache`` and the errors are those of `archive`.
    """
    with _fetching():
        return tar(packages.tools(Path(cache) if cache else None))


def tar(files: Mapping[str, bytes]) -> bytes:
    """Return files, given as contents by relative path, as a plain tar archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for path, data in sorted(files.items()):
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(data), 0o755 if data.startswith(b"#!") else 0o644
            made.addfile(info, io.BytesIO(data))
    return out.getvalue()


@contextmanager
def _fetching() -> Iterator[None]:
    """Turn the error of a package that cannot be fetched into a ``ConfigError`` with advice.

    The advice says how to make the package available.
    """
    try:
        yield
    except packages.UnusablePackage as problem:
        raise ConfigError(
            f"{problem}; give pip access to a network or an index once, "
            "or copy the cache folder from another machine"
        ) from problem
