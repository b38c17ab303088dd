"""The environment contract: environments measure, they never pay.

An environment author writes two classes. ``Env`` is one episode of one task: it is opened, played once and
closed. ``EnvSpec`` is the configured plug-in: frozen data that lists tasks and opens episodes.
``agentrl.testing.check_env`` checks both.

Environments report *signals* (``Step.info``): numbers with a name and a meaning, declared in
``EnvSpec.signals``. Rewards decide what a signal is worth, so a stored trajectory can be scored again. Every
environment reports two standard signals on every turn: ``success`` (1.0 on the turn that solved the task) and
``valid`` (1.0 if the action was understood).
"""

from __future__ import annotations

import hashlib
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext, suppress
from typing import Any, ClassVar, Protocol

from agentrl.errors import AgentRLError, ConfigError, EnvError, boundary
from agentrl.sandbox import Sandbox, Sandboxes
from agentrl.types import Observation, Step, Task

STANDARD_SIGNALS: Mapping[str, str] = {
    "success": "1 on the turn that solved the task, else 0",
    "valid": "1 if the action was understood, 0 if it was refused",
}

Progress = Callable[[str, int, int], None]
"""A function that is called as ``progress(what, done, total)`` during slow work: ``done`` of ``total`` steps
of the work ``what`` are complete."""


class Env(Protocol):
    """One episode of one task, used once: open it, reset it once, step until it ends, discard it."""

    async def reset(self) -> Observation:
        """Start the episode and return the first observation."""
        ...

    async def step(self, action: str) -> Step:
        """Play one action. This is not called again after a step that terminated or truncated.

        It raises whatever goes wrong in the environment itself. A bad *action* is answered with an
        observation; it never raises.
        """
        ...


class EnvSpec(ABC):
    """A configured environment: a picklable frozen dataclass that lists tasks and opens their episodes."""

    signals: ClassVar[Mapping[str, str]] = STANDARD_SIGNALS
    """Every signal that a step may report, with its meaning; the standard ones must be among them."""

    blocking: ClassVar[bool] = False
    """Whether ``reset`` and ``step`` block, or are not thread-safe; episodes then run in worker processes."""

    splits: ClassVar[tuple[str, ...]] = ("train", "valid", "test")

    max_turns: int
    """Number of turns after which an episode is truncated; at least 1."""

    @abstractmethod
    def tasks(self, split: str) -> Sequence[Task]:
        """Return the split's tasks: the same tasks, in the same order, on every machine and at any time.

        Raises:
            ConfigError: the split does not exist; the message lists the splits that do.
        """

    @abstractmethod
    def open(self, task: Task, sandbox: Sandbox | None, shared: Any) -> AbstractAsyncContextManager[Env]:
        """Open one episode of ``task``; leaving the context frees everything that it held.

        ``shared`` is the object that ``shared()`` opened. An implementation annotates it with its own type
        (here it is ``Any``, because that type differs between environments).
        """

    def shared(self) -> AbstractAsyncContextManager[Any]:
        """Open what many episodes share because it is expensive to start.

        It is opened once per worker process. By default nothing is shared, and ``None`` is opened.
        """
        return nullcontext()

    def attacks(self, task: Task) -> Mapping[str, Sequence[str]]:
        """Return known ways to cheat at ``task``: for the name of each, the actions that it consists of.

        ``check_env`` plays them, and none may succeed.
        """
        return {}

    def prepare(self, progress: Progress) -> None:  # noqa: B027 - an optional hook, empty on purpose
        """Make what ``tasks`` and ``open`` need, such as games, once and atomically, in a cache on disk."""


def panel_hash(tasks: Sequence[Task]) -> str:
    """Return a content hash of a panel of tasks, independent of their order.

    >>> panel_hash([Task("a"), Task("b")]) == panel_hash([Task("b"), Task("a")])
    True
    """
    lines = sorted(json.dumps([task.id, task.data], sort_keys=True, default=list) for task in tasks)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@asynccontextmanager
async def open_episode(
    spec: EnvSpec, task: Task, sandboxes: Sandboxes | None, shared: object
) -> AsyncIterator[Env]:
    """Open an episode with the sandbox that its task asks for. Errors inside the block pass unchanged.

    Raises:
        ConfigError: the task asks for a sandbox and there is no provider.
        EnvError: the environment broke while it was opened or closed.
    """
    if task.sandbox is not None and sandboxes is None:
        raise ConfigError(
            f"task {task.id!r} asks for a sandbox and no provider is configured; choose one, such as "
            "sandbox='docker'"
        )
    stack = AsyncExitStack()
    try:
        with boundary(EnvError, f"opening {task.id!r}"):
            sandbox = None
            if task.sandbox is not None and sandboxes is not None:
                sandbox = await stack.enter_async_context(sandboxes.open(task.sandbox))
            env = await stack.enter_async_context(spec.open(task, sandbox, shared))
        yield env
    except BaseException:
        with (
            suppress(AgentRLError),
            boundary(EnvError, f"closing {task.id!r}"),
        ):  # the first error is the news
            await stack.__aexit__(*sys.exc_info())
        raise
    else:
        with boundary(EnvError, f"closing {task.id!r}"):
            await stack.aclose()
