"""The error that every conformance suite raises."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator, Sequence

from agentrl.env import EnvSpec
from agentrl.sandbox import SandboxProvider

Violation = tuple[str, str]
"""The name of a clause, and how it is violated."""


def value_violations(part: EnvSpec | SandboxProvider) -> Iterator[Violation]:
    """Yield the violated clauses on a part that other processes get: it is a frozen, picklable value."""
    if not dataclasses.is_dataclass(part) or not part.__dataclass_params__.frozen:
        yield "frozen", f"{type(part).__name__} must be a frozen dataclass"
    try:
        if pickle.loads(pickle.dumps(part)) != part:
            yield "picklable", "unpickling what was pickled gives another value"
    except (pickle.PicklingError, AttributeError, TypeError, ImportError) as problem:
        yield "picklable", f"{type(problem).__name__}: {problem}"


class ContractViolation(AssertionError):
    """A contract is violated; ``violations`` holds one line per clause, ``clause: what was found``."""

    def __init__(self, violations: Sequence[str], contract: str = "environment") -> None:
        self.violations = tuple(violations)
        super().__init__(
            f"{len(self.violations)} clauses of the {contract} contract are violated:\n"
            + "\n".join(self.violations)
        )
