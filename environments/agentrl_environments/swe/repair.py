"""``swe-repair``: the same bugs, sandboxes and grading as ``swe``, with a menu of edits instead of an editor.

It is small enough for small models. The agent knows the broken function, but not the fix. The first
observation lists edits of that function, one of which is the fix:

    1 if value > high: -> if value >= high:
    2 if value < low: -> if value <= low:

``try 2`` applies the second edit (and no other) to the repository and runs up to three of the failing tests;
``submit`` submits the current state. The environment ``swe`` carries out both: ``try`` as a command in its
shell, ``submit`` as its submission. So ``swe-repair`` measures the same signals, and grades by the official
rule in a fresh sandbox.
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
from agentrl.errors import MissingExtra
from agentrl.sandbox import Sandbox
from agentrl.types import Observation, Step, Task, seed_of
from agentrl_environments.swe import Swe, diffs
from agentrl_environments.swe.rows import Instance
from agentrl_environments.swe.workspace import tools_folder

KINDS = ("change_operator", "off_by_one", "change_constant", "invert_condition")
"""Kinds of bugs that become tasks of ``swe-repair``: those whose fix looks like the menu's other edits."""
_TESTS = 3
"""Maximum number of failing tests that ``try`` runs."""
_CONTEXT = 28
"""Number of characters shown on each side of the place that an edit changes."""
_TRY = """
cd {folder} && git checkout -q -- . && git apply {menu}/$1.patch && git apply {menu}/tests.patch || exit 3
{command} 2>&1 | tail -n 1
git apply --reverse {menu}/tests.patch
"""


@dataclass(frozen=True, kw_only=True)
class Repair(Swe):
    """Choose, from a menu of edits, the one that fixes a known broken function.

    The tasks are bugs in a single line.
    """

    max_turns: int = 6
    most_edits: int = 5
    """Maximum number of edits in a menu."""
    orders: int = 8
    """Number of tasks made from each row of the split ``train``. Their menus have different orders, so that a
    policy cannot memorise the number of the right edit for each row."""

    sample: ClassVar[Path] = Path(__file__).parent / "repairs.jsonl.gz"
    signals: ClassVar[Mapping[str, str]] = {
        **Swe.signals,
        "passed": "1 where the tests pass with the edit that was tried",
    }

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the split's tasks: bugs in a single line, several times in ``train`` (see ``orders``)."""
        known = {instance.id: instance for instance in self._instances()}
        tasks = [task for task in super().tasks(split) if _is_task(known[task.id])]
        orders = self.orders if split == "train" else 1
        return tuple(
            replace(task, id=f"{task.id}#{order}", data={**task.data, "order": order})
            for order in range(orders)
            for task in tasks
        )

    @asynccontextmanager
    async def open(self, task: Task, sandbox: Sandbox | None, shared: object) -> AsyncIterator[Env]:
        """Open an episode of `Swe` that is played through a menu of edits."""
        async with super().open(task, sandbox, shared) as inner:
            assert sandbox is not None
            yield _Menu(inner, self._instance(task), sandbox, self.most_edits, task.data["order"])


class _Menu:
    """An episode of ``swe-repair``: its actions try an edit of the menu, or submit."""

    def __init__(self, inner: Env, instance: Instance, sandbox: Sandbox, most_edits: int, order: int) -> None:
        self._inner, self._instance, self._sandbox = inner, instance, sandbox
        self._most_edits, self._order = most_edits, order
        self._folder = f"{tools_folder(sandbox.spec.workdir)}/menu"
        self._num_edits = self._right = self._tried = 0

    async def reset(self) -> Observation:
        """Set up the repository, write the menu's edits into a folder beside it, and show the menu."""
        await self._inner.reset()
        (path,) = diffs.paths(self._instance.patch)
        base = (await self._sandbox.read(f"{self._sandbox.spec.workdir}/{path}")).decode()
        edits = menu(self._instance, base, self._most_edits, self._order)
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
        return self._shown("\n".join(f"{number} {line}" for number, (line, _) in enumerate(edits, 1)))

    async def step(self, action: str) -> Step:
        """Try an edit (``try 2``), or submit the repository (``submit``)."""
        word = re.fullmatch(r"try (\d+)", action.strip())
        if word is None or not 1 <= int(word.group(1)) <= self._num_edits:
            step = await self._inner.step("submit" if action.strip() == "submit" else "")
            text = step.observation.messages[-1].content if step.terminated else "no such edit"
            return self._after(step, text)
        self._tried = int(word.group(1))
        step = await self._inner.step(f"bash sh {self._folder}/try.sh {self._tried}")
        output = step.observation.messages[-1].content
        failed = re.search(r"(\d+) (?:failed|error)", output)
        passed = failed is None and re.search(r"\d+ passed", output) is not None
        text = "passed" if passed else f"failed {failed.group(1) if failed else 'all'}"
        return self._after(step, text, passed=passed)

    def _after(self, step: Step, text: str, *, passed: bool = False) -> Step:
        """Return a step of the environment ``swe`` with another text and the signal ``passed``."""
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
def menu(instance: Instance, base: str, most: int, order: int = 0) -> list[tuple[str, str]]:
    """Return a menu of up to ``most`` edits, the fix among them: (description, patch) of each edit.

    ``base`` is the text of the broken file. The instance's id and ``order`` determine which edits the menu
    has, and in which order.

    Raises:
        MissingExtra: libcst is not installed.
    """
    try:
        from agentrl_environments.swe.synth.sites import find_in
    except ImportError as problem:
        raise MissingExtra("swe-repair needs libcst; pip install '.[swe]'") from problem
    (path,) = diffs.paths(instance.patch)
    chance = random.Random(seed_of("menu", instance.id, order))
    edits = {instance.patch: _describe_fix(instance.patch)}
    sites = find_in(path, base, instance.site, KINDS)
    chance.shuffle(sites)
    for site in sites:
        if len(edits) == most:
            break
        if made := site.candidate():
            (changed,) = made.apply({path: base}).values()
            edits.setdefault(diffs.unified(path, base, changed), _describe_change(base, changed))
    chosen = [(line, patch) for patch, line in edits.items()]
    chance.shuffle(chosen)
    return chosen


def _is_task(instance: Instance) -> bool:
    """Whether the fix changes one line of a function, and the kind of the bug is in `KINDS`."""
    files = diffs.parse(instance.patch)
    if instance.kind not in KINDS or "::" not in instance.site or len(files) != 1 or len(files[0].hunks) != 1:
        return False
    signs = [line[0] for line in files[0].hunks[0].lines]
    return signs.count("-") == signs.count("+") == 1


def _describe_fix(patch: str) -> str:
    """Return the description, as shown in the menu, of the edit that a patch of one hunk makes."""
    (hunk,) = diffs.parse(patch)[0].hunks
    return _describe_change("".join(hunk.old), "".join(hunk.new))


def _describe_change(old: str, new: str) -> str:
    """Return the first line that differs between two texts, as ``old line -> new line``.

    Both lines are cut to the surroundings of the first character that differs.
    """
    pairs = [
        (x.strip(), y.strip()) for x, y in zip(old.splitlines(), new.splitlines(), strict=False) if x != y
    ]
    before, after = pairs[0]
    start = next((index for index, (x, y) in enumerate(zip(before, after, strict=False)) if x != y), 0)
    first = max(0, start - _CONTEXT)
    return f"{before[first : start + _CONTEXT]} -> {after[first : start + _CONTEXT]}"
