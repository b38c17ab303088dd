"""The conformance suite of environments: one function, and one named message for each violated clause.

The clauses are the contract of ``agentrl.env`` and what the rest of agentrl relies on:

- A spec is data that a worker process can import. Splits are fixed and disjoint.
- Every turn reports the declared signals. No action raises.
- The same task and actions give the same trajectory, whatever else is played.
- An expert's plan succeeds. Doing nothing does not succeed, nor does any attack that the environment lists.
- Closing leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator

from agentrl.env import EnvSpec
from agentrl.errors import AgentRLError
from agentrl.sandbox import SandboxProvider
from agentrl.testing.contract import ContractViolation, Violation
from agentrl.testing.env_data import panel_violations, spec_violations
from agentrl.testing.env_episodes import EpisodeChecks


def check_env(
    spec: EnvSpec, *, num_tasks: int = 3, deadline_s: float = 60.0, sandboxes: SandboxProvider | None = None
) -> None:
    """Check an environment on the first ``num_tasks`` tasks of every split.

    Runs an event loop, so it must not be called inside one.

    Raises:
        ContractViolation: lists every violated clause once, with the first violation that was found.
        SandboxError: the sandbox provider could not start, so no episode was checked.
    """
    violations: dict[str, str] = {}
    for clause, found in spec_violations(spec):
        violations.setdefault(clause, found)
    for clause, found in panel_violations(spec, elsewhere=not violations, deadline_s=deadline_s):
        violations.setdefault(clause, found)
    if not violations:  # tasks that cannot be listed cannot be played
        tasks = [task for split in spec.splits for task in spec.tasks(split)[:num_tasks]]
        checks = EpisodeChecks(spec, tasks, deadline_s, sandboxes)
        for clause, found in [*asyncio.run(checks.run()), *_gymnasium(spec, deadline_s, sandboxes)]:
            violations.setdefault(clause, found)
    if violations:
        raise ContractViolation([f"{clause}: {found}" for clause, found in violations.items()], "environment")


def _gymnasium(spec: EnvSpec, deadline_s: float, sandboxes: SandboxProvider | None) -> Iterator[Violation]:
    """Run gymnasium's own checker, which needs more than one turn."""
    import gymnasium.utils.env_checker  # here, because every environment's tests import this module

    from agentrl.gym import TextEnv

    if spec.max_turns == 1:
        return
    env = TextEnv(spec, split=spec.splits[0], deadline_s=deadline_s, sandbox=sandboxes or "auto")
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            gymnasium.utils.env_checker.check_env(env, skip_render_check=True)
        for warning in warned:
            yield "gymnasium", str(warning.message)
    except (AssertionError, AgentRLError, gymnasium.error.Error) as problem:
        yield "gymnasium", str(problem)
    finally:
        env.close()
