"""Every error that agentrl raises, with the hierarchy.

```
AgentRLError
├── ConfigError      (ValueError)     the user can fix it; raised before any work wherever possible
│   ├── UnknownPlugin  (LookupError)  there is no plug-in of that name; the message lists those installed
│   ├── MissingExtra   (ImportError)  a package of an optional extra is not installed
│   ├── ImageMissing                  a sandbox image is not available; its tasks are left out
│   └── CheckpointError               this recipe cannot use a run folder or checkpoint
├── EnvError         (RuntimeError)   an environment, its worker or its shared resource broke
│   └── SharedBroken                  what many episodes share broke: all of them failed, it is replaced
├── SandboxError     (RuntimeError)   sandbox infrastructure broke; never raised for what a command does
├── Unjudged         (RuntimeError)   a judge gave no verdict: the episode is left out, never paid 0
├── EngineError      (RuntimeError)   a policy could not answer
│   ├── ContextFull                   the context has no room for another action: the episode is truncated
│   └── TokenDrift                    stored tokens and rendered context disagree; training would be wrong
├── Diverged         (ArithmeticError) a loss or gradient is not finite: that minibatch made no step
├── Collapsed        (RuntimeError)   a monitor stopped the run because learning went wrong
└── Stalled          (TimeoutError)   a run made no progress within its deadline; the message says why
```

A message says what was wrong, what was found, and how to fix it, in that order. A failed *episode* is data
(``End.FAILED``), not an exception; only a run that cannot continue raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class AgentRLError(Exception):
    """The base class of every error that agentrl raises on purpose."""


class ConfigError(AgentRLError, ValueError):
    """A mistake in a recipe, option or input file that its owner can fix."""


class UnknownPlugin(ConfigError, LookupError):
    """No plug-in is registered under the name that was asked for."""


class MissingExtra(ConfigError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class ImageMissing(ConfigError):
    """The root file system that a task asks for cannot be pulled, imported or built."""


class CheckpointError(ConfigError):
    """A run folder or checkpoint is unreadable, or belongs to another recipe."""


class EnvError(AgentRLError, RuntimeError):
    """An environment broke. Its episode ends as ``End.FAILED`` and is played again."""


class SharedBroken(EnvError):
    """Raised by an environment if the resource that its episodes share broke.

    Every episode that used the resource fails, and the resource is opened again.
    """


class SandboxError(AgentRLError, RuntimeError):
    """Sandbox infrastructure broke. A command that fails does not raise it, but returns an ``ExecResult``."""


class Unjudged(AgentRLError, RuntimeError):
    """A judge failed, missed its deadline, or gave an answer that cannot be parsed."""


class EngineError(AgentRLError, RuntimeError):
    """A policy could not produce an action."""


class ContextFull(EngineError):
    """The context has no room for another action. The episode ends as truncated, and is counted as such."""


class TokenDrift(EngineError):
    """The tokens stored for an episode are not a prefix of its rendered context."""


class Diverged(AgentRLError, ArithmeticError):
    """A loss or gradient is not a finite number.

    Its minibatch made no optimiser step; earlier minibatches of the update did.
    """


class Collapsed(AgentRLError, RuntimeError):
    """A monitor stopped the run; the message says what went wrong with learning."""


class Stalled(AgentRLError, TimeoutError):
    """The run made no progress for longer than its deadline; the message says why."""


@contextmanager
def boundary(error: type[AgentRLError], what: str) -> Iterator[None]:
    """Raise an exception that leaves the block again as ``error``, with a message that begins with ``what``.

    Errors of agentrl pass unchanged. So do ``KeyboardInterrupt`` and cancellation, which are not
    subclasses of ``Exception``.

    >>> with boundary(EnvError, "step of 'maze'"):
    ...     1 / 0
    Traceback (most recent call last):
    ...
    agentrl.errors.EnvError: step of 'maze' raised ZeroDivisionError: division by zero
    """
    try:
        yield
    except AgentRLError:
        raise
    except Exception as problem:
        raise error(f"{what} raised {type(problem).__name__}: {problem}") from problem
