"""Environments that each violate one clause of the contract, and the sound one from which they are derived.

Worker processes can import this module.
"""

import itertools
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from agentrl.env import STANDARD_SIGNALS, Env, EnvSpec
from agentrl.errors import ConfigError
from agentrl.sandbox import Sandbox
from agentrl.types import Message, Observation, Step, Task

CALLS = itertools.count()
KEPT: list[Any] = []


@dataclass
class Door:
    """A door that opens when the word of the task is said."""

    word: str
    spec: "Sound"
    tries: int = 0

    async def reset(self) -> Observation:
        return self.spec.show(
            Observation.text(f"a door {self.spec.odd()}", actions=(self.word, "wait"), plan=(self.word,))
        )

    async def step(self, action: str) -> Step:
        self.tries += 1
        said = action.strip()
        success = float(said == self.word)
        info = {"success": success, "valid": float(said in (self.word, "wait")), "tries": float(self.tries)}
        shown = Observation.text(f"tried {self.tries}", actions=(self.word, "wait"))
        return self.spec.answer(action, Step(shown, success, success > 0, info=info))


@dataclass(frozen=True)
class Sound(EnvSpec):
    signals: ClassVar = {**STANDARD_SIGNALS, "tries": "words said so far"}
    max_turns: int = 4

    def tasks(self, split: str) -> Sequence[Task]:
        if split not in self.splits:
            raise ConfigError(f"no split {split!r}; there are {', '.join(self.splits)}")
        return [Task(f"{split}-{index}", {"word": f"{split}{index}"}) for index in range(4)]

    @asynccontextmanager
    async def open(self, task: Task, sandbox: Sandbox | None, shared: object) -> AsyncIterator[Env]:
        yield Door(str(task.data["word"]), self)

    def odd(self) -> str:
        return ""

    def show(self, observation: Observation) -> Observation:
        return observation

    def answer(self, action: str, step: Step) -> Step:
        return step


@dataclass
class Thawed(EnvSpec):
    max_turns: int = 4
    tasks = Sound.tasks
    open = Sound.open
    odd, show, answer = Sound.odd, Sound.show, Sound.answer
    signals = Sound.signals


class Unpicklable(Sound):
    def __getstate__(self) -> object:
        raise TypeError("cannot be pickled")


@dataclass(frozen=True)
class NoTurns(Sound):
    max_turns: int = 0


@dataclass(frozen=True)
class ForgottenTurns(EnvSpec):
    tasks = Sound.tasks
    open = Sound.open
    odd, show, answer = Sound.odd, Sound.show, Sound.answer
    signals = Sound.signals


class Undeclared(Sound):
    signals = STANDARD_SIGNALS


class NoStandard(Sound):
    signals: ClassVar = {"tries": "words said so far"}


class NoMeaning(Sound):
    signals: ClassVar = {**STANDARD_SIGNALS, "tries": " "}


class Empty(Sound):
    def tasks(self, split: str) -> Sequence[Task]:
        return super().tasks(split) if split != "valid" else []


class Reordered(Sound):
    def tasks(self, split: str) -> Sequence[Task]:
        return super().tasks(split)[:: 1 if next(CALLS) % 2 else -1]


class HashOrdered(Sound):
    def tasks(self, split: str) -> Sequence[Task]:
        return [replace(task, data={**task.data, "salt": hash("salt")}) for task in super().tasks(split)]


class SameIds(Sound):
    def tasks(self, split: str) -> Sequence[Task]:
        return [Task("one id", task.data) for task in super().tasks(split)]


class NotJson(Sound):
    def tasks(self, split: str) -> Sequence[Task]:
        return [replace(task, data={**task.data, "set": {1}}) for task in super().tasks(split)]  # type: ignore[dict-item]


class Overlapping(Sound):
    def tasks(self, split: str) -> Sequence[Task]:
        return [replace(task, data={"word": "same"}) for task in super().tasks(split)[:1]]


class AnySplit(Sound):
    def tasks(self, split: str) -> Sequence[Task]:
        return super().tasks(split) if split in self.splits else []


class Unopenable(Sound):
    @asynccontextmanager
    async def open(self, task: Task, sandbox: Sandbox | None, shared: object) -> AsyncIterator[Env]:
        raise OSError("no door")
        yield


class Unshareable(Sound):
    @asynccontextmanager
    async def shared(self) -> AsyncIterator[object]:
        raise OSError("no building")
        yield


class Unready(Sound):
    """Its shared resource opens once and never again."""

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[object]:
        if KEPT:
            raise OSError("the building is gone")
        KEPT.append(self)
        yield


class Raising(Sound):
    def answer(self, action: str, step: Step) -> Step:
        action.encode("ascii")
        return step


class Speechless(Sound):
    def show(self, observation: Observation) -> Observation:
        return replace(observation, messages=())


class Roleless(Sound):
    def show(self, observation: Observation) -> Observation:
        return replace(observation, messages=(Message("narrator", "once"),))  # type: ignore[arg-type]


class Silent(Sound):
    def answer(self, action: str, step: Step) -> Step:
        return replace(step, info={"success": step.info["success"]})


class Infinite(Sound):
    def answer(self, action: str, step: Step) -> Step:
        return replace(step, reward=float("nan"))


class Chancy(Sound):
    def odd(self) -> str:
        return str(next(CALLS))


class Watching(Sound):
    """Its episodes see each other: the signal ``tries`` is the number of open episodes."""

    @asynccontextmanager
    async def open(self, task: Task, sandbox: Sandbox | None, shared: object) -> AsyncIterator[Env]:
        KEPT.append(task)
        yield Door(str(task.data["word"]), self)
        KEPT.remove(task)

    def answer(self, action: str, step: Step) -> Step:
        return replace(step, info={**step.info, "tries": float(len(KEPT))})


class Generous(Sound):
    def answer(self, action: str, step: Step) -> Step:
        return replace(step, info={**step.info, "success": 1.0}, terminated=True)


class Hackable(Sound):
    def attacks(self, task: Task) -> Mapping[str, Sequence[str]]:
        return {"waiting": ("wait", "wait"), "telling": ("wait", str(task.data["word"]))}


class Impossible(Sound):
    def answer(self, action: str, step: Step) -> Step:
        return replace(step, info={**step.info, "success": 0.0})


class Early(Sound):
    def answer(self, action: str, step: Step) -> Step:
        return replace(step, terminated=False)


class Refusing(Sound):
    def answer(self, action: str, step: Step) -> Step:
        return replace(step, info={**step.info, "valid": 0.0})


class LeakingThreads(Sound):
    def odd(self) -> str:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        return ""


class LeakingFiles(Sound):
    def odd(self) -> str:
        os.dup(0)
        return ""


class LeakingProcesses(Sound):
    def odd(self) -> str:
        KEPT.append(subprocess.Popen(["sleep", "3"]))
        return ""


class OnlyHere(Sound):
    """Behaves differently in a worker process."""

    def odd(self) -> str:
        return "" if os.environ.get("PYTHONHASHSEED") != "0" else "elsewhere"
