"""A corridor of doors: the smallest environment that can be learned.

Worker processes import it, so it imports little.
"""

import os
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from agentrl.env import STANDARD_SIGNALS, Env, EnvSpec
from agentrl.sandbox import Sandbox
from agentrl.types import Observation, Step, Task, seed_of

LETTERS = "abcd"


@dataclass(frozen=True, kw_only=True)
class Corridor(EnvSpec):
    """A corridor of ``max_turns`` doors: each shows a letter, and saying it pays 1.

    An episode succeeds if it opens all doors.
    """

    signals: ClassVar = {**STANDARD_SIGNALS, "opened": "1 where the door opened"}
    max_turns: int = 3
    accident: str = ""
    """``raise`` an error once per affected task, let the process ``die`` once, or raise ``always``."""
    marks: str = ""
    """Folder in which accidents that happened once are marked."""

    def tasks(self, split: str) -> Sequence[Task]:
        numbers = {"train": range(48), "valid": range(48, 56), "test": range(56, 72)}[split]
        doors = [
            random.Random(seed_of("corridor", number)).choices(LETTERS, k=self.max_turns)
            for number in numbers
        ]
        return [
            Task(f"corridor-{number}", {"doors": "".join(row)})
            for number, row in zip(numbers, doors, strict=True)
        ]

    def shown(self, observation: Observation) -> Observation:
        """Return the observation to show instead of ``observation``."""
        return observation

    def answered(self, step: Step) -> Step:
        """Return the step to answer with instead of ``step``."""
        return step

    @asynccontextmanager
    async def open(self, task: Task, sandbox: Sandbox | None, shared: object) -> AsyncIterator[Env]:
        yield _Walk(self, task, str(task.data["doors"]))


@dataclass(frozen=True, kw_only=True)
class Blocking(Corridor):
    """The same corridor, in worker processes."""

    blocking = True


@dataclass
class _Walk:
    spec: Corridor
    task: Task
    doors: str
    place: int = 0
    opened: int = 0

    async def reset(self) -> Observation:
        return self._show()

    async def step(self, action: str) -> Step:
        self._accident()
        right = self.doors[self.place : self.place + 1] == action
        self.place += 1
        self.opened += right
        over = self.place == len(self.doors)
        info = {
            "success": float(over and self.opened == self.place),
            "valid": float(action in tuple(LETTERS)),
            "opened": float(right),
        }
        return self.spec.answered(Step(self._show(), float(right), terminated=over, info=info))

    def _show(self) -> Observation:
        if self.place >= len(self.doors):
            return Observation.text("over")
        door, plan = self.doors[self.place], tuple(self.doors[self.place :])
        return self.spec.shown(Observation.text(f"door {door}", actions=tuple(LETTERS), plan=plan))

    def _accident(self) -> None:
        if self.spec.accident == "always":
            raise RuntimeError(f"the roof of {self.task.id} fell in")
        if not self.spec.accident or self.place != 1 or seed_of(self.task.id) % 4:
            return
        try:
            (Path(self.spec.marks) / ("death" if self.spec.accident == "die" else self.task.id)).touch(
                exist_ok=False
            )
        except FileExistsError:
            return
        if self.spec.accident == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("the floor gave way")
