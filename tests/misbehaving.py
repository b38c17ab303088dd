"""An environment that fails on command, in the ways in which environments fail by accident.

Worker processes can import this module.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from agentrl.env import Env, EnvSpec
from agentrl.errors import SharedBroken
from agentrl.sandbox import Sandbox
from agentrl.types import Observation, SandboxSpec, Step, Task


@dataclass
class Counting:
    """Counts to three turns; some actions make it fail."""

    task: Task
    marks: Path | None
    work_s: float
    turn: int = 0

    async def reset(self) -> Observation:
        return Observation.text(f"{self.task.id}: 0", actions=("count", "skip"), plan=("count",) * 3)

    async def step(self, action: str) -> Step:
        self.turn += 1
        until = time.process_time() + self.work_s
        while time.process_time() < until:
            pass
        first = self.marks is not None and self._first_time()
        match action:
            case "raise":
                raise ValueError("the floor is lava")
            case "hang" | "hang once" if action == "hang" or first:
                time.sleep(1000)
            case "wait":
                await asyncio.sleep(1000)
            case "die" | "die once" if action == "die" or first:
                print("these are my last words", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                sys.exit(3)
            case "break" | "break once" if action == "break" or first:
                raise SharedBroken("the browser is gone")
            case "unpicklable":
                return Step(Observation.text("x"), info={"bad": lambda: 0})  # type: ignore[dict-item]
            case "shout":
                print("x" * 1_000_000)
            case "spawn":
                child = subprocess.Popen(["sleep", "1000"])
                return Step(Observation.text(str(child.pid)), info={"success": 0.0, "valid": 1.0})
            case "hash":
                return Step(Observation.text(str(hash("a string"))), info={"success": 0.0, "valid": 1.0})
            case "pid":
                return Step(Observation.text(str(os.getpid())), info={"success": 0.0, "valid": 1.0})
        info = {"success": float(self.turn == 3), "valid": 1.0}
        return Step(
            Observation.text(f"{self.task.id}: {self.turn}", actions=("count", "skip")),
            1.0,
            self.turn == 3,
            False,
            info,
        )

    def _first_time(self) -> bool:
        assert self.marks is not None
        try:
            (self.marks / "accident").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@dataclass(frozen=True)
class Misbehaving(EnvSpec):
    """A file in its ``marks`` folder records, across workers, that an accident has happened."""

    blocking = True
    max_turns: int = 3
    marks: str = ""
    start: str = ""
    work_s: float = 0.0

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"task-{index}") for index in range(16)]

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[object]:
        if self.start == "raise":
            raise OSError("the library does not load")
        if self.start == "raise twice" and len(list(Path(self.marks).glob("start-*"))) in (1, 2):
            (Path(self.marks) / f"start-{time.monotonic_ns()}").touch()
            raise OSError("the library does not load yet")
        if self.start == "hang":
            time.sleep(1000)
        if self.marks:
            (Path(self.marks) / f"start-{time.monotonic_ns()}").touch()
        try:
            yield "shared"
        finally:
            if self.marks:
                (Path(self.marks) / f"closed-{time.monotonic_ns()}").touch()

    @asynccontextmanager
    async def open(self, task: Task, sandbox: Sandbox | None, shared: object) -> AsyncIterator[Env]:
        assert shared == "shared"
        try:
            yield Counting(task, Path(self.marks) if self.marks else None, self.work_s)
        finally:
            if self.start == "close raises":
                raise OSError("the door is stuck")


@dataclass(frozen=True)
class Sandboxed(Misbehaving):
    """The same environment, with a sandbox for each task."""

    def tasks(self, split: str) -> Sequence[Task]:
        return [replace(task, sandbox=SandboxSpec()) for task in super().tasks(split)]


@dataclass(frozen=True)
class Gentle(Misbehaving):
    """The same environment, played on the event loop of this process."""

    blocking = False
