"""agentrl: multi-turn environments in, trained agents out.

Reading order: ``types``, ``rollout``, ``train``. Importing this package imports no torch, no engine and no
environment.
"""

__version__ = "0.1.0"
