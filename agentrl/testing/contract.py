"""The error that every conformance suite raises."""

from __future__ import annotations

from collections.abc import Sequence

Violation = tuple[str, str]
"""The name of a clause, and how it is violated."""


class ContractViolation(AssertionError):
    """A contract is violated; ``violations`` holds one line per clause, ``clause: what was found``."""

    def __init__(self, violations: Sequence[str], contract: str = "environment") -> None:
        self.violations = tuple(violations)
        super().__init__(
            f"{len(self.violations)} clauses of the {contract} contract are violated:\n"
            + "\n".join(self.violations)
        )
