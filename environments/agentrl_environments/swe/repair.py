"""``swe-repair``: the same bugs, sandboxes and grading, with a menu of edits instead of an editor: small enough for small models.

Where the bug is, is given; how to mend it, is not. The first observation lists edits of the broken function, one of which is the fix:

    1 if value > high: -> if value >= high:
    2 if value < low: -> if value <= low:

``try 2`` puts the second edit (and no other) into the repository and runs up to three of the failing tests, ``submit`` hands in what is
there. Both are calls of the ordinary environment underneath (a command in its shell, its submission), so that all it measures is measured
here as well, and grading is the official rule in a fresh sandbox.
"""

from __future__ import annotations

import random
import re
import shlex
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from agentrl.env import Env
from agentrl.errors import EnvError, MissingExtra
from agentrl.sandbox import Sandbox
from agentrl.types import Observation, Step, Task, seed_of
from agentrl_environments.swe import Swe, diffs
from agentrl_environments.swe.rows import Instance
from agentrl_environments.swe.workspace import tools_folder

KINDS = ("change_operator", "off_by_one", "change_constant", "invert_condition")
"""Kinds of bugs that are tasks here: for these, a menu of such edits does not give the fix away by its form."""
_TESTS = 3
_CONTEXT = 28
"""Characters shown on each side of what an edit changes."""
_TRY = """
cd {folder} && git checkout -q -- . && git apply {menu}/$1.patch && git apply {menu}/tests.patch || exit 3
{command} 2>&1 | tail -n 1
git apply --reverse {menu}/tests.patch
"""


@dataclass(frozen=True, kw_only=True)
class Repair(Swe):
    """Choose the edit that mends a known function. Only bugs of one line, of `KINDS`, are tasks."""

    max_turns: int = 6
    most_edits: int = 5
    """Longest menu."""
    orders: int = 8
    """Tasks that each row of ``train`` makes, with menus in different orders: what can be learned is not a number for each row."""

    sample: ClassVar[Path] = Path(__file__).parent / "repairs.jsonl.gz"
    signals: ClassVar[Mapping[str, str]] = {
        **Swe.signals,
        "passed": "1 where the edit that was tried makes the shown tests pass",
    }

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the split's tasks whose fix is a change of one line."""
        known = {instance.id: instance for instance in self._instances()}
        tasks = [task for task in super().tasks(split) if _mendable(known[task.id])]
        orders = self.orders if split == "train" else 1
        return tuple(
            replace(task, id=f"{task.id}#{order}", data={**task.data, "order": order})
            for order in range(orders)
            for task in tasks
        )

    @asynccontextmanager
    async def open(self, task: Task, sandbox: Sandbox | None, shared: object) -> AsyncIterator[Env]:
        """Open an episode of the ordinary environment, behind the menu."""
        if sandbox is None:
            raise EnvError(f"{task.id} needs a sandbox and was opened without one")
        async with super().open(task, sandbox, shared) as inner:
            yield _Menu(inner, self._instance(task), sandbox, (self.most_edits, str(task.data["order"])))


class _Menu:
    """An episode whose actions are the numbers of edits."""

    def __init__(self, inner: Env, instance: Instance, sandbox: Sandbox, drawn: tuple[int, str]) -> None:
        self._inner, self._instance, self._sandbox, self._drawn = inner, instance, sandbox, drawn
        self._folder = f"{tools_folder(sandbox.spec.workdir)}/menu"
        self._num_edits = self._right = self._tried = 0

    async def reset(self) -> Observation:
        """Lay out the repository, and the menu beside it."""
        await self._inner.reset()
        (path,) = diffs.paths(self._instance.patch)
        base = (await self._sandbox.read(f"{self._sandbox.spec.workdir}/{path}")).decode()
        edits = menu(self._instance, base, *self._drawn)
        self._num_edits = len(edits)
        for number, (_, patch) in enumerate(edits, 1):
            await self._sandbox.write(f"{self._folder}/{number}.patch", patch.encode())
            self._right = number if patch == self._instance.patch else self._right
        tests = " ".join(shlex.quote(test) for test in self._instance.fail_to_pass[:_TESTS])
        script = _TRY.format(
            folder=self._sandbox.spec.workdir, menu=self._folder, command=f"{self._instance.command} {tests}"
        )
        await self._sandbox.write(f"{self._folder}/tests.patch", self._instance.test_patch.encode())
        await self._sandbox.write(f"{self._folder}/try.sh", script.encode())
        return self._shown("\n".join(f"{number} {told}" for number, (told, _) in enumerate(edits, 1)))

    async def step(self, action: str) -> Step:
        """Try an edit, or submit."""
        word = re.fullmatch(r"try (\d+)", action.strip())
        if word is None or not 1 <= int(word.group(1)) <= self._num_edits:
            step = await self._inner.step("submit" if action.strip() == "submit" else "")
            return self._after(
                step, "no such edit" if not step.terminated else step.observation.messages[-1].content
            )
        self._tried = int(word.group(1))
        step = await self._inner.step(f"bash sh {self._folder}/try.sh {self._tried}")
        counts = dict(re.findall(r"(\d+) (failed|error|passed)", step.observation.messages[-1].content)[::-1])
        failed = re.search(r"(\d+) (?:failed|error)", step.observation.messages[-1].content)
        passed = bool(counts) and failed is None
        return self._after(
            step, "passed" if passed else f"failed {failed.group(1) if failed else 'all'}", passed=passed
        )

    def _after(self, step: Step, text: str, *, passed: bool = False) -> Step:
        return Step(
            self._shown(text),
            step.reward,
            step.terminated,
            step.truncated,
            {**step.info, "passed": float(passed)},
        )

    def _shown(self, text: str) -> Observation:
        edits = tuple(f"try {number}" for number in range(1, self._num_edits + 1))
        plan = ("submit",) if self._tried == self._right else (f"try {self._right}", "submit")
        return Observation.text(text, actions=(*edits, "submit"), plan=plan)


@lru_cache(maxsize=1024)
def menu(instance: Instance, base: str, most: int, order: str = "0") -> list[tuple[str, str]]:
    """Return edits of the broken function, and the fix among them, drawn by its id and ``order``: words and patch.

    Raises:
        MissingExtra: libcst is not installed.
    """
    try:
        from agentrl_environments.swe.synth.sites import find_in
    except ImportError as problem:
        raise MissingExtra("swe-repair needs libcst; pip install '.[swe]'") from problem
    (path,) = diffs.paths(instance.patch)
    chance = random.Random(seed_of("menu", instance.id, order))
    edits = {instance.patch: _fixed(instance.patch)}
    sites = find_in(path, base, instance.site, KINDS)
    chance.shuffle(sites)
    for site in sites:
        if len(edits) == most:
            break
        if made := site.candidate():
            (changed,) = made.apply({path: base}).values()
            edits.setdefault(diffs.unified(path, base, changed), _told(base, changed))
    chosen = [(told, patch) for patch, told in edits.items()]
    chance.shuffle(chosen)
    return chosen


def _mendable(instance: Instance) -> bool:
    """Whether the fix changes one line of a function, and the bug is of a kind that is a task here."""
    files = diffs.parse(instance.patch)
    if instance.kind not in KINDS or "::" not in instance.site or len(files) != 1 or len(files[0].hunks) != 1:
        return False
    signs = [line[0] for line in files[0].hunks[0].lines]
    return signs.count("-") == signs.count("+") == 1


def _fixed(patch: str) -> str:
    """Return what is shown of the fix."""
    (hunk,) = diffs.parse(patch)[0].hunks
    return _told("".join(hunk.old), "".join(hunk.new))


def _told(old: str, new: str) -> str:
    """Return the one line that differs, before and after, around what differs."""
    pairs = [
        (x.strip(), y.strip()) for x, y in zip(old.splitlines(), new.splitlines(), strict=False) if x != y
    ]
    before, after = pairs[0]
    start = next((index for index, (x, y) in enumerate(zip(before, after, strict=False)) if x != y), 0)
    first = max(0, start - _CONTEXT)
    return f"{before[first : start + _CONTEXT]} -> {after[first : start + _CONTEXT]}"
