"""Gymnasium in both directions: agentrl environments in gymnasium, and gymnasium environments in agentrl.

Importing this module registers every installed environment as ``agentrl/NAME-v0``, following gymnasium's
convention. It reads packaging metadata and imports no environment:

    env = gymnasium.make("agentrl.gym:agentrl/bandit-v0", split="train", arms=4)
    text, info = env.reset(options={"task": "bandit-train-0"})

Actions and observations are text. ``info`` holds the signals, the task's id and the admissible actions, if
the environment lists them. The other direction, gymnasium environments in agentrl, is
``agentrl.env.gym_text``.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from concurrent.futures import Future
from typing import Any  # Any: gymnasium's observations and keyword arguments are untyped

import gymnasium
from gymnasium.spaces import Text

from agentrl.env import EnvSpec
from agentrl.env.gym_text import GymEpisode, GymText
from agentrl.errors import AgentRLError, ConfigError, EnvError
from agentrl.hosts import open_host
from agentrl.plugins import environments, make_environment, sandboxes_for, unknown
from agentrl.rollout import Host, deadline
from agentrl.sandbox import SandboxProvider
from agentrl.types import Observation, Step, Task

__all__ = ["AnyText", "GymEpisode", "GymText", "TextEnv", "register_all"]

PRINTABLE = frozenset(map(chr, range(32, 127)))
MAX_CHARACTERS = 1 << 20
VERSION = 0


class AnyText(Text):
    """The space of all texts up to a length.

    Unlike gymnasium's own space ``Text``, it is not limited to listed characters. Samples are short and
    printable.
    """

    def __init__(self, max_length: int = MAX_CHARACTERS, *, seed: int | None = None) -> None:
        super().__init__(max_length, min_length=0, charset=PRINTABLE, seed=seed)

    def contains(self, x: Any) -> bool:
        """Return whether ``x`` is a text that is not too long."""
        return isinstance(x, str) and len(x) <= self.max_length

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Return a random text of at most 32 printable characters; masks work as in ``Text``."""
        if mask is not None or probability is not None:
            return super().sample(mask, probability)
        return "".join(self.np_random.choice(self.character_list, size=self.np_random.integers(33)))

    def __repr__(self) -> str:
        return f"AnyText({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyText) and self.max_length == other.max_length

    __hash__ = None  # type: ignore[assignment]  # a space is mutable: it holds a generator


class TextEnv(gymnasium.Env[str, str]):
    """An agentrl environment as a gymnasium environment.

    ``reset(options={"task": id})`` plays the given task; without it, a generator seeded by ``seed`` chooses
    one. The episodes run on an event loop in a separate thread, which the first ``reset`` starts. Tasks that
    ask for a sandbox get one from the provider ``sandbox``, given by name or as a configured value.

    Raises:
        ConfigError: the environment, split, task or an option does not exist.
        EnvError: the environment broke; ``reset`` starts a new episode.
    """

    # gymnasium declares it as a mutable dict
    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012

    def __init__(
        self,
        environment: str | EnvSpec,
        *,
        split: str = "train",
        render_mode: str | None = None,
        deadline_s: float = 120.0,
        sandbox: str | SandboxProvider = "auto",
        **options: Any,
    ) -> None:
        if isinstance(environment, EnvSpec) and options:
            raise ConfigError(
                f"options {', '.join(options)} belong to a name; the environment given is already configured"
            )
        spec = make_environment(environment, **options) if isinstance(environment, str) else environment
        spec.prepare(lambda what, done, total: None)
        self.tasks = {task.id: task for task in spec.tasks(split)}
        self.render_mode = render_mode
        self.observation_space = AnyText()
        self.action_space = AnyText()
        self._spec, self._deadline_s = spec, deadline_s
        self._sandboxes = (
            sandboxes_for(tuple(self.tasks.values()), sandbox) if isinstance(sandbox, str) else sandbox
        )
        self._thread: _Thread | None = None
        self._task: Task | None = None
        self._turn, self._text = 0, ""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode of ``options["task"]`` or of a random task."""
        super().reset(seed=seed)
        wanted = (options or {}).get("task")
        if wanted is None:
            wanted = list(self.tasks)[int(self.np_random.integers(len(self.tasks)))]
        elif wanted not in self.tasks:
            raise ConfigError(unknown("task of this split", str(wanted), list(self.tasks)[:20]))
        if self._thread is None:
            self._thread = _Thread(self._spec, self._deadline_s, self._sandboxes)
            weakref.finalize(self, self._thread.stop)
        self._task, self._turn = self.tasks[wanted], 0
        observation = self._thread.ask(self._task)
        assert isinstance(observation, Observation)
        return self._show(observation)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one action; the episode is truncated when it reaches the environment's ``max_turns``."""
        if self._thread is None or self._task is None:
            raise EnvError("no episode is open; call reset first")
        step = self._thread.ask(action)
        assert isinstance(step, Step)
        self._turn += 1
        text, info = self._show(step.observation)
        truncated = step.truncated or (self._turn >= self._spec.max_turns and not step.terminated)
        if step.terminated or truncated:
            self._task = None
        return text, float(step.reward), step.terminated, truncated, info | dict(step.info)

    def render(self) -> str | None:
        """Return the text of the last observation if the render mode is ``ansi``, else ``None``."""
        return self._text if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Close the episode and stop the thread and any worker."""
        if self._thread is not None:
            self._thread.stop()
            self._thread.join()
        self._thread, self._task = None, None

    def _show(self, observation: Observation) -> tuple[str, dict[str, Any]]:
        self._text = "\n".join(message.content for message in observation.messages)
        assert self._task is not None
        return self._text, {"task": self._task.id, "actions": observation.actions}


class _Thread:
    """A thread that plays episodes one after another on its own event loop.

    Callers need no event loop, and may be inside one.
    """

    def __init__(self, spec: EnvSpec, deadline_s: float, sandboxes: SandboxProvider | None) -> None:
        self._spec, self._deadline_s, self._sandboxes = spec, deadline_s, sandboxes
        self._asked: asyncio.Queue[_Question] = asyncio.Queue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="agentrl.gym", daemon=True)
        self._thread.start()

    def ask(self, what: Task | str) -> Observation | Step:
        """Start an episode of a task, or play an action, and wait for the answer."""
        answer: Future[Observation | Step] = Future()
        self._loop.call_soon_threadsafe(self._asked.put_nowait, (what, answer))
        return answer.result()

    def stop(self) -> None:
        """Ask the thread to end, without waiting for it; may be called more than once."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._asked.put_nowait, (None, Future()))

    def join(self) -> None:
        """Wait until the thread has closed its episode and host, or for 10 s more than the deadline."""
        self._thread.join(self._deadline_s + 10)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        question = await self._asked.get()
        while question[0] is not None:
            try:
                async with open_host(
                    self._spec, num_workers=1, deadline_s=self._deadline_s, sandboxes=self._sandboxes
                ) as host:
                    while question[0] is not None:
                        question = await self._answer(host, question)
            except AgentRLError as problem:
                question[1].set_exception(problem)
                question = await self._asked.get()

    async def _answer(self, host: Host, question: _Question) -> _Question:
        """Answer ``question`` and, if it starts an episode, every further question of that episode.

        Returns the question that follows.
        """
        what, answer = question
        try:
            if not isinstance(what, Task):
                raise EnvError("the episode is over; call reset first")
            async with host.open(what) as env:
                async with deadline(self._deadline_s, EnvError, f"reset of {what.id}"):
                    answer.set_result(await env.reset())
                while True:
                    action, answer = await self._asked.get()
                    if not isinstance(action, str):
                        break
                    async with deadline(self._deadline_s, EnvError, f"step of {what.id}"):
                        answer.set_result(await env.step(action))
            return action, answer
        except AgentRLError as problem:
            answer.set_exception(problem)
            return await self._asked.get()


_Question = tuple[Task | str | None, Future[Observation | Step]]


def register_all() -> tuple[str, ...]:
    """Register every installed environment with gymnasium and return their ids.

    May be called more than once.
    """
    ids = tuple(f"agentrl/{name}-v{VERSION}" for name in environments())
    for name, identity in zip(environments(), ids, strict=True):
        if identity not in gymnasium.registry:
            gymnasium.register(identity, entry_point="agentrl.gym:TextEnv", kwargs={"environment": name})
    return ids


register_all()
