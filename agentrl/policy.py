"""Policies: stateless maps from the episode so far to the next action.

A policy keeps nothing between calls that could change an answer (a cache may only make it faster). So any
number of episodes can share one policy, and an episode can be replayed from its turns. Randomness comes with
the call, as a seed that is derived from the run, the task, the sample and the turn: the answer does not
depend on what else is being played.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from agentrl.errors import EngineError
from agentrl.types import Action, Observation, Turn


class Policy(Protocol):
    """Chooses actions."""

    async def act(self, turns: Sequence[Turn], observation: Observation, *, seed: int) -> Action:
        """Return the next action, given the ``turns`` so far and the ``observation`` now.

        All randomness comes from ``seed``.

        Raises:
            EngineError: no action could be produced; the episode ends as failed.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are sampled.

    With ``temperature`` 0 the most likely token is always taken. ``top_k`` 0 and ``top_p`` 1 leave out no
    token.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 16
    """Maximum number of tokens of one action; an action that is cut off there is marked ``clipped``."""


class Engine(Policy, Protocol):
    """A policy whose weights can be replaced while episodes are played."""

    @property
    def version(self) -> int:
        """The version of the weights that act now."""
        ...

    async def load(self, weights: Mapping[str, object], *, version: int) -> None:
        """Replace the weights.

        Actions that have begun finish with the old weights. Cached contexts are discarded, and computed again
        with the new weights.
        """
        ...

    def using(self, sampling: Sampling) -> Policy:
        """Return a view of this engine that samples in another way, for example for an evaluation."""
        ...


@dataclass(frozen=True, slots=True)
class RandomPolicy:
    """Plays admissible actions uniformly at random, except those whose first word is in ``avoid``."""

    avoid: tuple[str, ...] = ()

    async def act(self, turns: Sequence[Turn], observation: Observation, *, seed: int) -> Action:
        """Return a random admissible action; raise ``EngineError`` if the environment lists none."""
        if not observation.actions:
            raise EngineError(
                "random play needs admissible actions, and the observation lists none; switch them on in the "
                "environment"
            )
        wanted = [action for action in observation.actions if action.split(" ", 1)[0] not in self.avoid]
        return Action(random.Random(seed).choice(wanted or list(observation.actions)))


@dataclass(frozen=True, slots=True)
class ExpertPolicy:
    """Follows the environment's own plan, taken from the newest observation that has a plan."""

    async def act(self, turns: Sequence[Turn], observation: Observation, *, seed: int) -> Action:
        """Return the plan's next action; raise ``EngineError`` if there is no plan or it has ended."""
        seen = [turn.observation for turn in turns] + [observation]
        for age, past in enumerate(reversed(seen)):
            if past.plan:
                if age < len(past.plan):
                    return Action(past.plan[age])
                raise EngineError(
                    f"the expert's plan has {len(past.plan)} actions, and the episode has not ended after "
                    "them"
                )
        raise EngineError("expert play needs a plan, and no observation of this episode has one")


@dataclass(frozen=True, slots=True)
class ErringPolicy:
    """Lets the policy ``error`` act on a random ``share`` of the turns, and ``policy`` on all other turns.

    Its episodes demonstrate what to do after a mistake.
    """

    policy: Policy
    error: Policy
    share: float

    async def act(self, turns: Sequence[Turn], observation: Observation, *, seed: int) -> Action:
        """Return the action of ``error`` or of ``policy``; an error that it raises passes unchanged."""
        erring = random.Random(f"{seed}/err").random() < self.share
        return await (self.error if erring else self.policy).act(turns, observation, seed=seed)


@dataclass(frozen=True, slots=True)
class ScriptedPolicy:
    """Plays a list of actions, then repeats the last one. For tests, demonstrations and replays."""

    actions: tuple[str, ...]

    async def act(self, turns: Sequence[Turn], observation: Observation, *, seed: int) -> Action:
        """Return the action of the list for this turn, or the last one if the list has ended."""
        return Action(self.actions[min(len(turns), len(self.actions) - 1)])
