"""Software engineering: fix a bug in a real repository, with a shell and an editor in a sandbox.

The repository's tests grade the result, by the official rule, in a fresh sandbox (see ``grade``). Tasks come
from files in the formats of the field (see ``rows``), or are made from source distributions (see ``synth``).
The actions that an agent may write are described in ``actions``.
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
from agentrl_environments.swe.attacks import attacks_on
from agentrl_environments.swe.episode import SIGNALS, Rules, SweEpisode
from agentrl_environments.swe.rows import Instance
from agentrl_environments.swe.splits import HELD_OUT, SHARES, split_of
from agentrl_environments.swe.workspace import Trees, tools_folder

__all__ = ["Instance", "Swe"]

ToolSet = Literal["editor", "bash"]
Prompt = Literal["full", "brief"]
SAMPLE = Path(__file__).parent / "sample.jsonl.gz"
"""The file of task rows that ships with the package."""


@dataclass(frozen=True, kw_only=True)
class Swe(EnvSpec):
    """Bugs to fix in real repositories, whose tests grade the fix.

    A hash of the broken function assigns each bug to ``train``, ``valid`` or ``test``, so that no broken
    function is in two of these splits. The split ``held-out`` has the repositories that are in no other
    split. A step waits for a command or, on submission, for a test run. Set `Limits.env_deadline_s` to at
    least ``command_s + tests_s``, plus about 20 seconds for two new sandboxes.
    """

    rows: str = ""
    """File of task rows (.json, .jsonl, .parquet) in any format that the module ``rows`` can read. If it is
    empty, the sample that ships with the package is used."""
    held_out: tuple[str, ...] = HELD_OUT
    """Repositories that are not trained on. Their bugs make up the split ``held-out``."""
    tools: ToolSet = "editor"
    """Tools of the agent. ``editor`` gives it a persistent shell, an editor and a search. ``bash`` gives it
    only single commands in fenced blocks, as in mini-swe-agent."""
    prompt: Prompt = "full"
    """How much the prompt explains. With ``full`` it explains the tools, and expert plans are function calls.
    With ``brief``, for policies taught from demonstrations, it is only the problem, and plans are one-line
    calls."""
    image: str = ""
    """Sandbox image for tasks whose row names no image. If it is empty, the sandbox provider's base image is
    used."""
    max_turns: int = 50
    command_s: float = 30.0
    """Time limit of one command of the agent, in seconds."""
    total_s: float = 1800.0
    """Time limit of all commands of an episode together, in seconds."""
    tests_s: float = 60.0
    """Time limit of the test run when a submission is graded, in seconds."""
    max_output: int = 10_000
    """Maximum number of characters of a tool's answer. The middle of a longer answer is left out."""
    max_stopped: int = 3
    """The episode is truncated after this number of commands in a row have reached their time limit."""
    cpus: float = 1.0
    memory_mib: int = 2048
    disk_mib: int = 512
    cache: str = ""
    """Folder in which source distributions are cached. If it is empty, the user's cache folder is used."""

    sample: ClassVar[Path] = SAMPLE
    splits: ClassVar[tuple[str, ...]] = (*SHARES, "held-out")
    signals: ClassVar[Mapping[str, str]] = {**STANDARD_SIGNALS, **SIGNALS}

    def __post_init__(self) -> None:
        for name, known in (("tools", get_args(ToolSet)), ("prompt", get_args(Prompt))):
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
        """Return the split's tasks, in the order of their rows in the file."""
        if split not in self.splits:
            raise ConfigError(f"swe has no split {split!r}; it has {', '.join(self.splits)}")
        return tuple(
            self.task_of(instance) for instance in self._instances() if self.split_of(instance) == split
        )

    def split_of(self, instance: Instance) -> str:
        """Return the name of the split that an instance belongs to."""
        return split_of(instance, self.held_out)

    def prepare(self, progress: Progress) -> None:
        """Fetch the source distributions and the test runner that tasks need, unless the cache has them."""
        needed = sorted({instance.source for instance in self._instances() if instance.source}, key=str)
        for done, source in enumerate(needed):
            progress(f"fetch {source}", done, len(needed))
            sources.archive(source, self.cache)
        if needed:
            sources.tools(self.cache)

    def attacks(self, task: Task) -> Mapping[str, Sequence[str]]:
        """Return known attacks: actions, by attack name, that seek a good grade without fixing the bug.

        None of them may work.
        """
        return attacks_on(self._instance(task), bash_only=self._bash_only)

    @asynccontextmanager
    async def open(self, task: Task, sandbox: Sandbox | None, shared: object) -> AsyncIterator[Env]:
        """Open an episode. A submitted patch is read from the sandbox, which is then reset for grading."""
        if sandbox is None:
            raise EnvError(f"{task.id} needs a sandbox and was opened without one")
        instance = self._instance(task)
        trees = Trees()
        if instance.source is not None:
            trees = Trees(sources.archive(instance.source, self.cache), sources.tools(self.cache))
        async with AsyncExitStack() as stack:
            yield SweEpisode(instance, sandbox, trees, self._rules, stack)

    @property
    def _bash_only(self) -> bool:
        """Whether the agent has no other tool than single shell commands."""
        return self.tools == "bash"

    @property
    def _rules(self) -> Rules:
        explain_tools = self.prompt == "full"
        return Rules(
            bash_only=self._bash_only,
            style="block" if self._bash_only else "function" if explain_tools else "line",
            explain_tools=explain_tools,
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
        """Return a task's instance.

        Raises:
            ConfigError: the file no longer holds the row from which the task was made.
        """
        instance = rows.index(self.rows or self.sample).get(task.data.get("instance", ""))
        if instance is None or instance.digest != task.data.get("digest"):
            raise ConfigError(
                f"{self.rows or self.sample} does not hold the row of task {task.id!r}; "
                "the file has changed: restore it, or list the tasks again"
            )
        return instance

    def task_of(self, instance: Instance) -> Task:
        """Return the task of an instance.

        The task's data hold only the id, the repository and the hash of the row. Privileged content, such as
        the fix, stays in the file.
        """
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
