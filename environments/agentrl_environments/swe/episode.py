"""One episode: an agent with its tools, and the measurement of what it does."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import monotonic

from agentrl.errors import EnvError
from agentrl.sandbox import Sandbox
from agentrl.types import Message, Observation, Step
from agentrl_environments.swe import actions, diffs, expert, prompts
from agentrl_environments.swe.grade import GradingOutcome, Verdict, grade
from agentrl_environments.swe.rows import Instance
from agentrl_environments.swe.tools import QUIET, Tools, clip
from agentrl_environments.swe.workspace import Trees, environment, extract_patch, lay_out, tree_hash

SIGNALS: Mapping[str, str] = {
    "ran": "1 where the tool did what was asked, whatever the exit code; 0 where it refused or was stopped",
    "stopped": "1 where a command was stopped at its time limit",
    "modified": "1 where the turn changed files of the repository",
    "nonempty": "1 where, after the turn, the repository differs from its base: there is a patch",
    "submitted": "1 on the turn that submits the patch",
    "applied": "1 on submission if the patch is not empty and could be applied for grading",
    "fixed": "share of FAIL_TO_PASS that passes, on submission",
    "kept": "share of PASS_TO_PASS that passes or is skipped, on submission",
    "restored": "1 on submission if the patch changed files that control the tests, which were restored",
    "rejected": "1 on submission if the results contradict each other, as they do when a patch forges them",
}
_EDITING_TOOLS = frozenset(["bash", "create", "str_replace", "insert", "undo_edit"])
_MAX_PATCH = 1 << 18
"""Maximum length of a patch, in characters, that the last observation quotes in full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The options of `Swe` that matter while an episode is played."""

    bash_only: bool
    """Whether the agent has no other tool than single shell commands."""
    style: actions.Style
    explain_tools: bool
    """Whether the first observation explains the tools."""
    max_turns: int
    command_s: float
    total_s: float
    tests_s: float
    max_output: int
    max_stopped: int


class SweEpisode:
    """An episode of one instance.

    The agent's shell is opened on ``stack``, and closed when the owner of ``stack`` closes ``stack``.
    """

    def __init__(
        self, instance: Instance, sandbox: Sandbox, trees: Trees, rules: Rules, stack: AsyncExitStack
    ) -> None:
        self._instance, self._sandbox, self._trees = instance, sandbox, trees
        self._rules, self._stack = rules, stack
        self._base = self._base_tree = self._tree = ""
        self._turns = self._stopped = 0
        self._spent_s = 0.0
        self._tools: Tools

    async def reset(self) -> Observation:
        """Set up the repository in the sandbox, and return an observation that states the problem."""
        self._base = await lay_out(self._sandbox, self._instance, self._trees)
        self._base_tree = self._tree = await tree_hash(self._sandbox)
        if not self._tree:
            raise EnvError(f"{self._instance.id}: the tree of the base cannot be read")
        plan = expert.plan(self._instance.patch, await self._files(), self._rules.style)
        env = {**environment(self._instance, self._sandbox.spec.workdir), **QUIET}
        shell = None
        if not self._rules.bash_only:
            shell = await self._stack.enter_async_context(self._sandbox.shell(env=env))
        self._tools = Tools(
            self._sandbox,
            shell,
            env=env,
            setup=self._instance.setup,
            command_s=self._rules.command_s,
            max_output=self._rules.max_output,
        )
        messages = [Message("user", prompts.problem(self._instance))]
        if self._rules.explain_tools:
            instructions = prompts.system(
                bash_only=self._rules.bash_only,
                folder=self._sandbox.spec.workdir,
                command_s=self._rules.command_s,
            )
            messages.insert(0, Message("system", instructions))
        return Observation(tuple(messages), plan=plan)

    async def step(self, action: str) -> Step:
        """Make the call that an action means, and measure its effect; grade a submission."""
        self._turns += 1
        try:
            call = actions.parse(action, bash_only=self._rules.bash_only)
        except actions.InvalidAction as refusal:
            return self._step(f"not understood: {refusal}", valid=0.0)
        started = monotonic()
        result = await self._tools.run(call)
        self._spent_s += monotonic() - started
        self._stopped = self._stopped + 1 if result.timed_out else 0
        if result.submitted:
            return await self._submit()
        before = self._tree
        if call.tool in _EDITING_TOOLS:
            self._tree = await tree_hash(self._sandbox)
        return self._step(
            result.text,
            ran=float(result.ran),
            stopped=float(result.timed_out),
            modified=float(self._tree != before),
        )

    async def _submit(self) -> Step:
        """Grade the agent's patch, after a reset of the sandbox that undoes everything else the agent did."""
        patch = await extract_patch(self._sandbox, self._base)
        verdict = await grade(self._sandbox, self._instance, self._trees, patch, tests_s=self._rules.tests_s)
        info = {
            **dict.fromkeys(SIGNALS, 0.0),
            "valid": 1.0,
            "ran": 1.0,
            "submitted": 1.0,
            "nonempty": float(bool(patch.strip())),
            "success": float(verdict.resolved),
            "applied": float(verdict.applied),
            "fixed": verdict.fixed,
            "kept": verdict.kept,
            "restored": float(bool(verdict.restored)),
            "rejected": float(verdict.outcome is GradingOutcome.REJECTED),
        }
        record = Observation.text(_grading_record(verdict, patch))
        return Step(record, info["success"], terminated=True, info=info)

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
        """Return, by path, the texts in the base of the files that the fix touches, for the expert's plan."""
        files: dict[str, str] = {}
        for path in diffs.paths(self._instance.patch):
            try:
                files[path] = (await self._sandbox.read(f"{self._sandbox.spec.workdir}/{path}")).decode()
            except (OSError, UnicodeDecodeError):
                continue  # created by the fix, or not a text file
        return files


def _grading_record(verdict: Verdict, patch: bytes) -> str:
    """Return the text of the last observation: the verdict and the patch.

    No action follows it. It is for people and programs that read the trajectory.
    """
    detail = f" ({verdict.detail})" if verdict.detail else ""
    lines = [f"submitted: {verdict.outcome}{detail}", f"fixed {verdict.fixed:.3f}, kept {verdict.kept:.3f}"]
    if verdict.restored:
        lines.append(f"put back before the tests: {', '.join(verdict.restored)}")
    return "\n".join([*lines, "", clip(patch.decode(errors="replace"), _MAX_PATCH)]).rstrip()
