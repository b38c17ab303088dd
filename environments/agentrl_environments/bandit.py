"""A conversational multi-armed bandit: pull arms, read what they paid, end on the best one.

Which arm pays well is hidden and differs from task to task, and a pull gives information only about the arm
that was pulled. There is nothing to memorise: a policy scores above chance only by trying arms and acting on
what it read. The vocabulary is a dozen words and an action is one letter, so a tiny model learns the game
from scratch in a minute.

With the default options a random policy ends on the best arm in 0.33 of the episodes, the best policy that
sees only the last observation in 0.82, and Bayes-optimal play (dynamic programming over what each arm paid)
in 0.953. No policy does better, because what an arm pays is a matter of luck.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from agentrl.env import STANDARD_SIGNALS, Env, EnvSpec
from agentrl.errors import ConfigError
from agentrl.sandbox import Sandbox
from agentrl.types import Observation, Step, Task, seed_of

NAMES = "abcdefgh"
SIZES = {"train": 512, "valid": 64, "test": 256}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandit(EnvSpec):
    """A bandit with ``arms`` arms, one of which is pulled on each turn.

    The best arm pays with probability ``good``, and every other arm with probability ``bad``.
    """

    signals: ClassVar = {
        **STANDARD_SIGNALS,
        "payout": "1 where the pull paid, else 0",
        "regret": "payout probability of the best arm minus that of the pulled arm; "
        "an invalid action counts as an arm with payout probability 0",
    }

    arms: int = 3
    good: float = 0.9
    bad: float = 0.1
    max_turns: int = 6
    """Number of pulls in an episode. The episode succeeds if the last pull is of the best arm."""

    def __post_init__(self) -> None:
        if not 2 <= self.arms <= len(NAMES):
            raise ConfigError(f"arms must be from 2 to {len(NAMES)}, found {self.arms}")
        if not 0 <= self.bad < self.good <= 1:
            raise ConfigError(
                f"payout probabilities must satisfy 0 <= bad < good <= 1, "
                f"found bad {self.bad} and good {self.good}"
            )
        if self.max_turns < 1:
            raise ConfigError(f"max_turns must be at least 1, found {self.max_turns}")

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the split's tasks. Every arm is the best one equally often (up to rounding)."""
        if split not in SIZES:
            raise ConfigError(f"bandit has no split {split!r}; it has {', '.join(SIZES)}")
        return [
            Task(
                f"bandit-{split}-{index}",
                {"best": index % self.arms, "luck": seed_of("bandit", split, index)},
            )
            for index in range(SIZES[split])
        ]

    @asynccontextmanager
    async def open(self, task: Task, sandbox: Sandbox | None, shared: object) -> AsyncIterator[Env]:
        """Open one episode of a task."""
        yield _Pulls(self, best=task.data["best"], luck=task.data["luck"])


@dataclass(slots=True)
class _Pulls:
    """One episode. What the n-th pull of an arm pays does not depend on how often other arms were pulled."""

    spec: Bandit
    best: int
    luck: int
    turn: int = 0
    counts: Counter[int] = field(default_factory=Counter)

    async def reset(self) -> Observation:
        return self._show("pull an arm")

    async def step(self, action: str) -> Step:
        self.turn += 1
        arm = NAMES[: self.spec.arms].find(action.strip()) if len(action.strip()) == 1 else -1
        chance = 0.0 if arm < 0 else self.spec.good if arm == self.best else self.spec.bad
        self.counts[arm] += 1
        paid = random.Random(seed_of(self.luck, arm, self.counts[arm])).random() < chance
        over = self.turn >= self.spec.max_turns
        info = {
            "success": float(over and arm == self.best),
            "valid": float(arm >= 0),
            "payout": float(paid),
            "regret": self.spec.good - chance,
        }
        result = "no such arm" if arm < 0 else f"{NAMES[arm]} paid {'gold' if paid else 'nothing'}"
        return Step(self._show(result), float(paid), terminated=over, info=info)

    def _show(self, result: str) -> Observation:
        arms = tuple(NAMES[: self.spec.arms])
        left = max(self.spec.max_turns - self.turn, 0)
        names = "" if self.turn else f"arms {' '.join(arms)} . "
        # The result comes last, next to the action that follows it: that order is the easiest to learn from.
        text = f"{names}{left} pulls left . {result}"
        return Observation.text(text, actions=arms, plan=(NAMES[self.best],) * left)
