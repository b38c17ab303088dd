"""Gymnasium environments in agentrl: discrete actions get names, and the state is rendered as text.

``GymText`` is a spec for any such environment. ``GymEpisode`` is one episode, for a spec with its own tasks.

    taxi = GymText(
        env_id="Taxi-v4",
        actions=("south", "north", "east", "west", "pickup", "dropoff"),
        render=render_taxi,                 # (gymnasium environment, its observation) -> text
        max_turns=40,
    )

Use it only for environments with quick steps, because they run on the event loop. Plug-ins may import this
module.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any  # Any: observations and keyword arguments of a gymnasium environment are untyped

import gymnasium

from agentrl.env import Env, EnvSpec
from agentrl.errors import ConfigError
from agentrl.sandbox import Sandbox
from agentrl.types import Observation, Step, Task, seed_of

GymEnv = gymnasium.Env[Any, Any]
Measure = Callable[[GymEnv, float, bool], Mapping[str, float]]
"""A function that is called as ``measure(environment, reward, terminated)`` after a step, and returns its
signals, which must include ``success``."""


def won_if_paid(env: GymEnv, reward: float, terminated: bool) -> Mapping[str, float]:
    """Measure success as termination with a positive reward, as gymnasium's text environments do."""
    return {"success": float(terminated and reward > 0)}


def no_plan(env: GymEnv) -> tuple[str, ...]:
    """Return an empty plan, for environments without an expert."""
    return ()


@dataclass(slots=True)
class GymEpisode:
    """One episode of a gymnasium environment with discrete actions, as an ``Env``.

    ``actions`` names the discrete actions, in order. Any other text is refused and does not step the
    environment. ``measure`` returns the signals of every turn; a refused action is measured with reward 0.
    """

    env: GymEnv
    seed: int
    actions: tuple[str, ...]
    render: Callable[[GymEnv, Any], str]
    plan: Callable[[GymEnv], tuple[str, ...]] = no_plan
    measure: Measure = won_if_paid
    state: Any = None

    async def reset(self) -> Observation:
        """Start the episode with its seed and return the first observation."""
        self.state, _ = self.env.reset(seed=self.seed)
        return self._show("")

    async def step(self, action: str) -> Step:
        """Play the action whose name is ``action``; refuse any other text."""
        name = action.strip().casefold()
        if name not in self.actions:
            return Step(
                self._show("unknown action . "), info={**self.measure(self.env, 0.0, False), "valid": 0.0}
            )
        self.state, reward, terminated, truncated, _ = self.env.step(self.actions.index(name))
        info = {**self.measure(self.env, float(reward), bool(terminated)), "valid": 1.0}
        return Step(self._show(""), float(reward), bool(terminated), bool(truncated), info)

    def _show(self, said: str) -> Observation:
        return Observation.text(
            said + self.render(self.env, self.state), actions=self.actions, plan=self.plan(self.env)
        )


@dataclass(frozen=True, kw_only=True)
class GymText(EnvSpec):
    """A gymnasium environment rendered as text. Its tasks are seeds, different ones in each split.

    ``render`` must be a function of a module, so that the spec can be pickled.
    """

    env_id: str
    actions: tuple[str, ...]
    render: Callable[[GymEnv, Any], str]
    plan: Callable[[GymEnv], tuple[str, ...]] = no_plan
    max_turns: int = 100
    num_tasks: int = 256
    """Number of tasks in each split."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of ``gymnasium.make``."""

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the split's tasks, each of which is a seed."""
        if split not in self.splits:
            raise ConfigError(f"{self.env_id} has no split {split!r}; it has {', '.join(self.splits)}")
        seeds = [seed_of(self.env_id, split, index) % 2**31 for index in range(self.num_tasks)]
        return [Task(f"{self.env_id}-{split}-{index}", {"seed": seed}) for index, seed in enumerate(seeds)]

    @asynccontextmanager
    async def open(self, task: Task, sandbox: Sandbox | None, shared: object) -> AsyncIterator[Env]:
        """Open one episode of ``task``; it needs no sandbox and shares nothing."""
        env = gymnasium.make(self.env_id, disable_env_checker=True, **self.options)
        try:
            num_actions = getattr(env.action_space, "n", None)
            if num_actions != len(self.actions):
                raise ConfigError(
                    f"{self.env_id} has {num_actions} discrete actions, and {len(self.actions)} words name "
                    "them; the numbers must match"
                )
            yield GymEpisode(env, int(str(task.data["seed"])), self.actions, self.render, self.plan)
        finally:
            env.close()
