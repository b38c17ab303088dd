"""One episode: an agent, its tools, and the measurement of what it did."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import monotonic

from agentrl.errors import EnvError
from agentrl.sandbox import Sandbox
from agentrl.types import Message, Observation, Step
from agentrl_environments.swe import actions, diffs, expert, prompts
from agentrl_environments.swe.grade import Outcome, Verdict, grade
from agentrl_environments.swe.rows import Instance
from agentrl_environments.swe.tools import QUIET, Tools, clip
from agentrl_environments.swe.workspace import Trees, environment, extract, lay, tree

SIGNALS: Mapping[str, str] = {
    "ran": "1 where the tool did what was asked, whatever a command's exit code; 0 where it refused or was stopped",
    "stopped": "1 where a command was stopped at its time limit",
    "modified": "1 where the turn changed files of the repository",
    "nonempty": "1 where, after the turn, the repository differs from what it was: there is a patch",
    "submitted": "1 on the turn that handed the work in",
    "applied": "1 on that turn where the patch is not empty and could be applied for grading",
    "fixed": "share of FAIL_TO_PASS that passes, on that turn",
    "kept": "share of PASS_TO_PASS that passes or is skipped, on that turn",
    "restored": "1 on that turn where the patch changed what steers the tests, which was put back",
    "rejected": "1 on that turn where the results contradict each other, as those of a patch that fakes them do",
}
_CHANGES = frozenset(["bash", "create", "str_replace", "insert", "undo_edit"])
_MAX_PATCH = 1 << 18
"""Longest patch, in characters, that the last observation quotes whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How an episode goes: the options of `Swe` that matter while playing."""

    commands_only: bool
    style: actions.Style
    told: bool
    """Whether the first observation explains the tools."""
    max_turns: int
    command_s: float
    total_s: float
    tests_s: float
    max_output: int
    max_stopped: int


class Episode:
    """An agent at work on an instance. ``stack`` holds the shell; who opened it closes it."""

    def __init__(
        self, instance: Instance, sandbox: Sandbox, trees: Trees, rules: Rules, stack: AsyncExitStack
    ) -> None:
        self._instance, self._sandbox, self._trees, self._rules, self._stack = (
            instance,
            sandbox,
            trees,
            rules,
            stack,
        )
        self._base = self._base_tree = self._tree = ""
        self._turns = self._stopped = 0
        self._spent_s = 0.0
        self._tools: Tools

    async def reset(self) -> Observation:
        """Lay out the repository and state the problem."""
        self._base = await lay(self._sandbox, self._instance, self._trees)
        self._base_tree = self._tree = await tree(self._sandbox)
        if not self._tree:
            raise EnvError(f"{self._instance.id}: the tree of the base cannot be read")
        plan = expert.plan(self._instance.patch, await self._files(), self._rules.style)
        env = {**environment(self._instance, self._sandbox.spec.workdir), **QUIET}
        shell = None
        if not self._rules.commands_only:
            shell = await self._stack.enter_async_context(self._sandbox.shell(env=env))
        self._tools = Tools(
            self._sandbox,
            shell,
            env=env,
            setup=self._instance.setup,
            command_s=self._rules.command_s,
            max_output=self._rules.max_output,
        )
        told = prompts.system(
            commands_only=self._rules.commands_only,
            folder=self._sandbox.spec.workdir,
            command_s=self._rules.command_s,
        )
        messages = (Message("system", told),) if self._rules.told else ()
        return Observation((*messages, Message("user", prompts.problem(self._instance))), plan=plan)

    async def step(self, action: str) -> Step:
        """Make one call, and measure what it did; a submission is graded."""
        self._turns += 1
        try:
            call = actions.parse(action, bash_only=self._rules.commands_only)
        except actions.Refused as refusal:
            return self._step(f"not understood: {refusal}", valid=0.0)
        started = monotonic()
        result = await self._tools.run(call)
        self._spent_s += monotonic() - started
        self._stopped = self._stopped + 1 if result.timed_out else 0
        if result.submitted:
            return await self._submit()
        before = self._tree
        if call.tool in _CHANGES:
            self._tree = await tree(self._sandbox)
        return self._step(
            result.text,
            ran=float(result.ran),
            stopped=float(result.timed_out),
            modified=float(self._tree != before),
        )

    async def _submit(self) -> Step:
        """Grade what was submitted, in a sandbox that the agent has not touched."""
        patch = await extract(self._sandbox, self._base)
        verdict = await grade(self._sandbox, self._instance, self._trees, patch, tests_s=self._rules.tests_s)
        info = {
            **dict.fromkeys(SIGNALS, 0.0),
            **{
                "valid": 1.0,
                "ran": 1.0,
                "submitted": 1.0,
                "nonempty": float(bool(patch.strip())),
                "success": float(verdict.resolved),
            },
            **{"applied": float(verdict.applied), "fixed": verdict.fixed, "kept": verdict.kept},
            **{
                "restored": float(bool(verdict.restored)),
                "rejected": float(verdict.outcome is Outcome.REJECTED),
            },
        }
        return Step(Observation.text(_told(verdict, patch)), info["success"], terminated=True, info=info)

    def _step(self, text: str, *, valid: float = 1.0, **measured: float) -> Step:
        info = {
            **dict.fromkeys(SIGNALS, 0.0),
            "success": 0.0,
            "valid": valid,
            **measured,
            "nonempty": float(self._tree != self._base_tree),
        }
        rules = self._rules
        over = (
            self._turns >= rules.max_turns
            or self._spent_s > rules.total_s
            or self._stopped >= rules.max_stopped
        )
        return Step(Observation.text(text), truncated=over, info=info)

    async def _files(self) -> Mapping[str, str]:
        """Return the texts of the base that the fix touches: what the expert needs to see."""
        files: dict[str, str] = {}
        for path in diffs.paths(self._instance.patch):
            try:
                files[path] = (await self._sandbox.read(f"{self._sandbox.spec.workdir}/{path}")).decode()
            except (OSError, UnicodeDecodeError):
                continue  # made by the fix, or no text
        return files


def _told(verdict: Verdict, patch: bytes) -> str:
    """Return the record of the grading: nobody acts on it, and whoever reads the trajectory wants to know."""
    lines = [f"submitted: {verdict.outcome}" + f" ({verdict.detail})" * bool(verdict.detail)]
    lines.append(f"fixed {verdict.fixed:.3f}, kept {verdict.kept:.3f}")
    if verdict.restored:
        lines.append(f"put back before the tests: {', '.join(verdict.restored)}")
    return "\n".join([*lines, "", clip(patch.decode(errors="replace"), _MAX_PATCH)]).rstrip()
