"""Conformance suites: one function per contract checks any implementation of it."""

from agentrl.testing.abuse import check_abuse
from agentrl.testing.contract import ContractViolation
from agentrl.testing.engine import check_engine
from agentrl.testing.env import check_env
from agentrl.testing.sandbox import check_sandbox

__all__ = ["ContractViolation", "check_abuse", "check_engine", "check_env", "check_sandbox"]
