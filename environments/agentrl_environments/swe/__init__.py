"""Software engineering: mend a bug in a real repository, with a shell and an editor in a sandbox; graded by the repository's tests.

Tasks come from files in the formats of the field (see ``rows``), or are made here from source distributions (see ``synth``). Grading is the
official rule, in a fresh sandbox (see ``grade``). What an agent may write is in ``actions``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from agentrl.env import STANDARD_SIGNALS, Env, EnvSpec, Progress
from agentrl.errors import ConfigError, EnvError
from agentrl.sandbox import Sandbox
from agentrl.types import SandboxSpec, Task
from agentrl_environments.swe import rows, sources
from agentrl_environments.swe.episode import SIGNALS, Episode, Rules
from agentrl_environments.swe.hacks import attacks
from agentrl_environments.swe.rows import Instance
from agentrl_environments.swe.workspace import Trees, tools_folder

__all__ = ["Instance", "Swe"]

Tools = Literal["editor", "bash"]
Prompt = Literal["full", "brief"]
SAMPLE = Path(__file__).parent / "sample.jsonl.gz"
"""The rows that are shipped."""
SHARES = {"train": range(800), "valid": range(800, 850), "test": range(850, 1000)}
"""Thousandths of the instances that are not held out, by the hash of what they teach (``Instance.split_key``)."""


@dataclass(frozen=True, kw_only=True)
class Swe(EnvSpec):
    """Bugs to mend.

    Splits: ``train``, ``valid`` and ``test`` by hash, so that no broken function is in two of them; ``held-out``: repositories that are in
    no other split. A step waits for a command or, on submission, for a test run: give `Limits.env_deadline_s` more than
    ``command_s + tests_s``, and some 20 s for making two sandboxes.
    """

    rows: str = ""
    """File of rows (.json, .jsonl, .parquet) in any format of the field; empty for the sample that is shipped."""
    held_out: tuple[str, ...] = ("xmltodict", "toolz")
    """Repositories that are not trained on."""
    tools: Tools = "editor"
    """``editor``: a shell that lives, an editor and a search. ``bash``: single commands in blocks, as mini-swe-agent has them."""
    prompt: Prompt = "full"
    """``full`` explains the tools, and its plans are function calls. ``brief`` is for policies that were taught: the problem only, and
    plans of one line each."""
    image: str = ""
    """Image of the instances that name none; empty for the provider's base image."""
    max_turns: int = 50
    command_s: float = 30.0
    """Longest command, in seconds."""
    total_s: float = 1800.0
    """Seconds that the commands of an episode may take together."""
    tests_s: float = 60.0
    """Longest test run of a grading."""
    max_output: int = 10_000
    """Characters of a tool's answer; of longer ones the middle is left out."""
    max_stopped: int = 3
    """Commands in a row that reach their limit before the episode is ended."""
    cpus: float = 1.0
    memory_mib: int = 2048
    disk_mib: int = 512
    cache: str = ""
    """Folder of source distributions; empty for the user's cache folder."""

    sample: ClassVar[Path] = SAMPLE
    splits: ClassVar[tuple[str, ...]] = (*SHARES, "held-out")
    signals: ClassVar[Mapping[str, str]] = {**STANDARD_SIGNALS, **SIGNALS}

    def __post_init__(self) -> None:
        for name, known in (("tools", get_args(Tools)), ("prompt", get_args(Prompt))):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"swe: {name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}"
                )
        positive = (
            "max_turns",
            "command_s",
            "total_s",
            "tests_s",
            "max_stopped",
            "cpus",
            "memory_mib",
            "disk_mib",
        )
        for name, least in {**dict.fromkeys(positive, 0.0), "max_output": 99}.items():
            if getattr(self, name) <= least:
                raise ConfigError(f"swe: {name} is {getattr(self, name)}; it must be more than {least:g}")
        if isinstance(self.held_out, str):
            raise ConfigError(f"swe: held_out is {self.held_out!r}; it must be a list of repositories")

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the split's tasks, in the order of the file."""
        if split not in self.splits:
            raise ConfigError(f"swe has no split {split!r}; it has {', '.join(self.splits)}")
        return tuple(
            self._task(instance) for instance in self._instances() if self.split_of(instance) == split
        )

    def split_of(self, instance: Instance) -> str:
        """Return the split that an instance belongs to."""
        if instance.repo in self.held_out:
            return "held-out"
        return next(split for split, share in SHARES.items() if instance.split_key in share)

    def prepare(self, progress: Progress) -> None:
        """Fetch the source distributions that are not in the cache yet."""
        needed = sorted({instance.source for instance in self._instances() if instance.source}, key=str)
        for done, source in enumerate(needed):
            progress(f"fetch {source}", done, len(needed))
            sources.archive(source, self.cache)
        if needed:
            sources.tools(self.cache)

    def attacks(self, task: Task) -> Mapping[str, Sequence[str]]:
        """Return known ways to be graded well without mending anything: none may work."""
        return attacks(self._instance(task), commands_only=self.tools == "bash")

    @asynccontextmanager
    async def open(self, task: Task, sandbox: Sandbox | None, shared: object) -> AsyncIterator[Env]:
        """Open an episode. The sandbox is made anew for grading, once the patch is out of it."""
        if sandbox is None:
            raise EnvError(f"{task.id} needs a sandbox and was opened without one")
        instance = self._instance(task)
        trees = Trees()
        if instance.source is not None:
            trees = Trees(sources.archive(instance.source, self.cache), sources.tools(self.cache))
        async with AsyncExitStack() as stack:
            yield Episode(instance, sandbox, trees, self._rules, stack)

    @property
    def _rules(self) -> Rules:
        commands_only, told = self.tools == "bash", self.prompt == "full"
        return Rules(
            commands_only=commands_only,
            style="block" if commands_only else "function" if told else "line",
            told=told,
            max_turns=self.max_turns,
            command_s=self.command_s,
            total_s=self.total_s,
            tests_s=self.tests_s,
            max_output=self.max_output,
            max_stopped=self.max_stopped,
        )

    def _instances(self) -> tuple[Instance, ...]:
        return rows.load(self.rows or self.sample)

    def _instance(self, task: Task) -> Instance:
        """Return a task's instance, if the file still holds the one that the task was made of."""
        instance = rows.index(self.rows or self.sample).get(str(task.data.get("instance")))
        if instance is None or instance.digest != task.data.get("digest"):
            raise ConfigError(
                f"{self.rows or self.sample} does not hold the row that task {task.id!r} was made of; the file was changed"
            )
        return instance

    def _task(self, instance: Instance) -> Task:
        """Return the task of an instance. It names the row and its hash: what is privileged stays in the file."""
        writable = tuple(path for path in instance.hidden if path.startswith("/"))
        sandbox = SandboxSpec(
            image=instance.image or self.image,
            workdir=instance.folder,
            writable=(tools_folder(instance.folder),) if instance.source else (instance.folder, *writable),
            cpus=self.cpus,
            memory_mib=self.memory_mib,
            disk_mib=self.disk_mib,
            lifetime_s=4 * (self.total_s + self.tests_s),
        )
        return Task(
            instance.id, {"instance": instance.id, "digest": instance.digest, "repo": instance.repo}, sandbox
        )
