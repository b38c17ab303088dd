"""Generated games on disk, and the panels drawn from them.

Seeds are grouped into blocks of 32. A block is a folder ``<cache>/<version>/<family>/<base seed>/0007`` that
holds an ``index.json`` and one ordinary TextWorld ``.json`` per game (with the compiled ``.z8`` beside it, if
one was needed). A block is written under a temporary name and renamed when it is complete, and its content is
a function of its path. So several processes may prepare the same games at once, or be killed while doing so.

**Splits.** The split of a game depends only on its structural key (`brief.structure_key`): no structure is in
two splits, whatever the sizes of the panels and the seeds. A panel is the first ``size`` distinct structures
of its split in the order of seeds. So a larger panel contains every smaller one, and no panel depends on
which machine made it or with how many workers.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

import platformdirs

from agentrl.env import Progress
from agentrl.errors import ConfigError, EnvError, MissingExtra

BLOCK = 32
SHARES = {"train": range(5), "valid": range(5, 6), "test": range(6, 8)}
"""For each split, the remainders modulo 8 of the structural keys of its games."""
_BARREN = 8
"""The search for games of a split is given up after this number of consecutive blocks without a game of a new
structure."""
_FORMAT = 1
"""Version of the cached files. Increase it when a change of the code makes seeds give other files."""


@dataclass(frozen=True)
class Entry:
    """One game of a block's index.

    ``key`` is the game's structural key. ``file`` is the game's file, relative to the family's folder, and
    ``sha256`` is the hash of the file's bytes.
    """

    seed: int
    key: str
    sha256: str
    file: str

    @property
    def split(self) -> str:
        """Name of the split that the game's structure belongs to."""
        return next(name for name, share in SHARES.items() if int(self.key[:8], 16) % 8 in share)


@dataclass(frozen=True)
class Games:
    """The games of a family on disk.

    ``base`` is the number that their seeds are derived from. ``root`` is the cache folder; if it is empty,
    the user's cache folder is used.
    """

    family: str
    base: int = 0
    root: str = ""

    @property
    def folder(self) -> Path:
        """The folder that holds the blocks of games of this family and base seed."""
        root = Path(self.root) if self.root else platformdirs.user_cache_path("agentrl") / "textworld"
        return root / f"{_engine_version()}-{_FORMAT}" / self.family / str(self.base)

    def panel(
        self, split: str, size: int, *, workers: int = 0, progress: Progress | None = None
    ) -> tuple[Entry, ...]:
        """Return the first ``size`` games of ``split`` with distinct structures; generate missing blocks.

        Raises:
            ConfigError: the family has too few structures, or the cache is damaged.
        """
        found: dict[str, Entry] = {}
        barren = block = 0
        generators = _Generators(self.folder, workers)
        with contextlib.closing(generators):
            while len(found) < size:
                if barren == _BARREN:
                    raise ConfigError(
                        f"'{self.family}' has too few different games for {split}={size}, "
                        f"found {len(found)} in {block * BLOCK} seeds; "
                        f"set {split}={len(found)}, or choose a larger world"
                    )
                if not self._index(block).exists():
                    self._make(generators, block, split, size - len(found), progress)
                before = len(found)
                for entry in self._read(block):
                    if entry.split == split and len(found) < size:
                        found.setdefault(entry.key, entry)
                block, barren = block + 1, 0 if len(found) > before else barren + 1
                if progress and generators.started:
                    progress(f"making games of {self.family} for {split}", len(found), size)
        return tuple(found.values())

    def load(self, file: str) -> dict[str, Any]:
        """Return the JSON value of a game file, after comparing its hash with the index of its folder.

        Raises:
            ConfigError: the file is missing, or differs from what was written. It is not generated again
                silently, because the user should know that the cache is damaged.
        """
        path = self.folder / file
        sha256 = {entry.file: entry.sha256 for entry in self._read(int(path.parent.name))}.get(file)
        mend = f"delete the folder {path.parent} to have it made again"
        try:
            content = path.read_bytes()
        except OSError as problem:
            raise ConfigError(f"game file {path} cannot be read ({problem.strerror}); {mend}") from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ConfigError(
                f"game file {path} is corrupt: its hash differs from the one in the index; {mend}"
            )
        data: dict[str, Any] = json.loads(content)
        return data

    def compile(self, files: Sequence[str], *, workers: int = 0, progress: Progress | None = None) -> None:
        """Compile each file that has no ``.z8`` yet (1 to 10 s each)."""
        jobs = [
            {"compile": str(path)}
            for path in map(self.folder.joinpath, files)
            if not path.with_suffix(".z8").exists()
        ]
        if not jobs:
            return
        with contextlib.closing(_Generators(self.folder, workers)) as generators:
            for done, _ in enumerate(generators.run(jobs), 1):
                if progress:
                    progress(f"compiling games of {self.family}", done, len(jobs))

    def _index(self, block: int) -> Path:
        return self.folder / f"{block:04d}" / "index.json"

    def _read(self, block: int) -> Iterator[Entry]:
        path = self._index(block)
        try:
            games = json.loads(path.read_bytes())["games"]
            return iter(
                [
                    Entry(game["seed"], game["key"], game["sha256"], f"{block:04d}/{game['key'][:12]}.json")
                    for game in games
                ]
            )
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise ConfigError(
                f"game index {path} is corrupt ({problem}); "
                f"delete the folder {path.parent} to have it made again"
            ) from None

    def _make(
        self, generators: _Generators, first: int, split: str, wanted: int, progress: Progress | None
    ) -> None:
        """Generate those blocks that are missing from number ``first`` on, at most 4 per process.

        The number of blocks is chosen so that they hold about ``wanted`` games of ``split``.
        """
        share = len(SHARES[split]) / 8
        num = max(1, min(-(-wanted // max(1, int(BLOCK * share))), 4 * generators.size))
        blocks = [block for block in range(first, first + num) if not self._index(block).exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            folders = [Path(stack.enter_context(_scratch(self.folder))) for _ in blocks]
            jobs = [
                {
                    "make": self.family,
                    "base": self.base,
                    "seeds": list(range(block * BLOCK, (block + 1) * BLOCK)),
                    "into": str(folder),
                }
                for block, folder in zip(blocks, folders, strict=True)
            ]
            for done, (number, answer) in enumerate(generators.run(jobs), 1):
                (folders[number] / "index.json").write_text(json.dumps(answer))
                with contextlib.suppress(
                    OSError
                ):  # another process was faster; its block has the same content
                    folders[number].rename(self.folder / f"{blocks[number]:04d}")
                if progress:
                    progress(f"making games of {self.family}", done * BLOCK, len(jobs) * BLOCK)


class _Generators:
    """Processes that run the module `generate`. They are started when first needed, and ended by `close`."""

    def __init__(self, folder: Path, size: int) -> None:
        self.size = size or os.cpu_count() or 1
        self._folder = folder
        self._processes: list[subprocess.Popen[str]] = []
        self._errors: list[IO[bytes]] = []

    @property
    def started(self) -> bool:
        """Whether any process was started."""
        return bool(self._processes)

    def run(self, jobs: Sequence[Mapping[str, object]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the index and the answer of each job, in the order in which the answers arrive.

        Raises:
            EnvError: a process died; the message holds the end of its output.
        """
        for _ in range(min(self.size, len(jobs)) - len(self._processes)):
            self._start()
        idle: SimpleQueue[int] = SimpleQueue()
        for worker in range(len(self._processes)):
            idle.put(worker)
        done: SimpleQueue[tuple[int, dict[str, Any] | BaseException]] = SimpleQueue()

        def work(number: int) -> None:
            worker = idle.get()
            try:
                done.put((number, self._answer(worker, jobs[number])))
            except BaseException as problem:
                done.put((number, problem))
            idle.put(worker)

        with ThreadPoolExecutor(len(self._processes)) as threads:
            for number in range(len(jobs)):
                threads.submit(work, number)
            for _ in jobs:
                number, answer = done.get()
                if isinstance(answer, BaseException):
                    threads.shutdown(wait=False, cancel_futures=True)
                    raise answer
                yield number, answer

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.communicate()
        for errors in self._errors:
            errors.close()

    def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        # The package reads a folder "textworld_data" in its working folder, so processes run in the cache.
        environment = {
            **os.environ,
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path),
        }
        self._processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "agentrl_environments.textworld.generate"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=self._folder,
                env=environment,
            )
        )
        self._errors.append(errors)

    def _answer(self, worker: int, job: Mapping[str, object]) -> dict[str, Any]:
        process = self._processes[worker]
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        errors = self._errors[worker]
        errors.seek(0)
        tail = errors.read().decode(errors="replace")[-2000:]
        raise EnvError(
            f"the process that generates TextWorld games died (exit code {process.wait()}) "
            f"at {json.dumps(job)[:200]}: {tail}"
        )


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[str]:
    """Make a temporary folder beside the blocks; leaving the context removes it, unless it was renamed."""
    path = tempfile.mkdtemp(prefix=".making-", dir=folder)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@functools.cache
def _engine_version() -> str:
    try:
        return version("textworld")
    except ImportError:
        raise MissingExtra(
            "text games need the TextWorld engine, which is not installed; pip install '.[textworld]'"
        ) from None
