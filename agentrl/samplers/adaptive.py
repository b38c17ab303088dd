"""Samplers that learn which tasks teach most: curricula over kinds of tasks, and budgets over tasks.

They learn from a group's *learnability*, the mean of ``|R - mean| / std`` over its members (population
deviation), in effect the mean size of GRPO's advantages. It is 0 if all members got the same return, and
``2 sqrt(p (1 - p))`` for outcomes of 0 and 1 with success rate ``p``.

``state_dict`` holds plain numbers, and a resumed run draws what the uninterrupted run would have drawn.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from agentrl.errors import ConfigError
from agentrl.samplers import Draw, Sampler
from agentrl.samplers.uniform import Uniform
from agentrl.types import Json, ScoredGroup, Task, seed_of

TaskKind = Callable[[Task], str]
"""Maps a task to the name of its kind, such as a family, a difficulty or a data set."""

MAX_EPISODES = 1 << 12
"""Maximum number of episodes of a task within one draw. Samplers that draw tasks in no fixed order number
the episodes of a draw from a multiple of this."""


def learnability(group: ScoredGroup) -> float:
    """Return the mean absolute standard score of a group's returns; 0 if all returns are equal.

    >>> learnability(())
    0.0
    """
    returns_G = np.array([one.rewards_N.sum() for one in group])
    deviation = float(returns_G.std()) if len(returns_G) else 0.0
    return float(np.abs(returns_G - returns_G.mean()).mean()) / deviation if deviation > 1e-9 else 0.0


def softmax(scores: Sequence[float], temperature: float) -> list[float]:
    """Return ``exp(s / temperature)`` for each score ``s``, scaled to add up to 1.

    >>> [round(p, 6) for p in softmax([0.0, 0.4, 0.0], 0.4)]
    [0.211942, 0.576117, 0.211942]
    """
    top = max(scores)
    weights = [math.exp((score - top) / temperature) for score in scores]
    return [weight / sum(weights) for weight in weights]


@dataclass(slots=True)
class SEC(Sampler):
    """A bandit over kinds of tasks: ``Q <- rate * learnability + (1 - rate) Q`` (Chen et al. 2025).

    ``Q`` is the value of a kind. Kinds are drawn with probabilities ``softmax(Q / temperature)``. The default
    rate and temperature are quoted from memory of the paper and not verified. ``floor`` is the minimum
    probability of any kind.
    """

    kind: TaskKind
    rate: float = 0.5
    temperature: float = 0.4
    floor: float = 0.02
    values: dict[str, float] = field(default_factory=dict)

    def draw(
        self, tasks: Sequence[Task], *, draw_index: int, num_groups: int, group_size: int, seed: int
    ) -> list[Draw]:
        """Draw a kind for each group, and a task of that kind."""
        return _by_kind(tasks, self.kind, self.shares, draw_index, num_groups, group_size, seed)

    def shares(self, kinds: Sequence[str]) -> list[float]:
        """Return the probability with which each kind is drawn."""
        if self.floor * len(kinds) >= 1.0:
            raise ConfigError(
                f"{len(kinds)} kinds cannot each have a share of at least {self.floor}; lower the floor"
            )
        found = softmax([self.values.get(kind, 0.0) for kind in kinds], self.temperature)
        return [self.floor + (1.0 - self.floor * len(kinds)) * share for share in found]

    def observe(self, groups: Sequence[ScoredGroup]) -> None:
        """Move the value of each kind that was played towards its mean learnability."""
        for kind, found in _learned(groups, self.kind).items():
            self.values[kind] = self.rate * float(np.mean(found)) + (1.0 - self.rate) * self.values.get(
                kind, 0.0
            )

    def state_dict(self) -> Mapping[str, Json]:
        """Return the value ``Q`` of each kind."""
        return {"values": dict(self.values)}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Restore the value ``Q`` of each kind."""
        self.values = dict(cast("Mapping[str, float]", state["values"]))


@dataclass(slots=True)
class DUMP(Sampler):
    """A bandit over kinds of tasks with an optimistic bonus for kinds that were rarely played (DUMP, 2025).

    A kind's score is the mean learnability of its last ``window`` groups plus
    ``sqrt(2 ln(N + 1) / (n + 1))``, where ``n`` groups of the kind and ``N`` of all kinds were played. A kind
    that was never played has the largest bonus.
    """

    kind: TaskKind
    temperature: float = 0.1
    window: int = 300
    recent: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def draw(
        self, tasks: Sequence[Task], *, draw_index: int, num_groups: int, group_size: int, seed: int
    ) -> list[Draw]:
        """Draw a kind for each group, and a task of that kind."""
        return _by_kind(
            tasks,
            self.kind,
            lambda kinds: softmax(self.bounds(kinds), self.temperature),
            draw_index,
            num_groups,
            group_size,
            seed,
        )

    def bounds(self, kinds: Sequence[str]) -> list[float]:
        """Return the score of each kind: its mean learnability plus its bonus."""
        total = sum(self.counts.values())
        means = [float(np.mean(self.recent[kind])) if self.recent.get(kind) else 0.0 for kind in kinds]
        return [
            mean + math.sqrt(2.0 * math.log(total + 1) / (self.counts.get(kind, 0) + 1))
            for kind, mean in zip(kinds, means, strict=True)
        ]

    def observe(self, groups: Sequence[ScoredGroup]) -> None:
        """Count the groups of each kind and remember their learnability."""
        for kind, found in _learned(groups, self.kind).items():
            self.recent[kind] = [*self.recent.get(kind, []), *found][-self.window :]
            self.counts[kind] = self.counts.get(kind, 0) + len(found)

    def state_dict(self) -> Mapping[str, Json]:
        """Return the counts and the learnability of recent groups."""
        return {
            "recent": {kind: list(found) for kind, found in self.recent.items()},
            "counts": dict(self.counts),
        }

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Restore the counts and the learnability of recent groups."""
        self.recent = {
            kind: list(found) for kind, found in cast("Mapping[str, list[float]]", state["recent"]).items()
        }
        self.counts = dict(cast("Mapping[str, int]", state["counts"]))


@dataclass(slots=True)
class SuccessRates(Sampler):
    """A sampler that remembers each task's success rate from when the task was last played."""

    rates: dict[str, float] = field(default_factory=dict, kw_only=True)

    def observe(self, groups: Sequence[ScoredGroup]) -> None:
        """Remember the success rate of each task in ``groups``."""
        for group in groups:
            if group:
                self.rates[group[0].trajectory.task.id] = float(
                    np.mean([one.trajectory.success for one in group])
                )

    def state_dict(self) -> Mapping[str, Json]:
        """Return the success rates."""
        return {"rates": dict(self.rates)}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Restore the success rates."""
        self.rates = dict(cast("Mapping[str, float]", state["rates"]))


@dataclass(slots=True)
class Knapsack(SuccessRates):
    """Draws tasks uniformly and gives more episodes to those that teach most (Li et al. 2025, "Knapsack RL").

    The budget of a draw, ``num_groups * group_size`` episodes, is divided to maximise
    ``sum_i v_i (1 - p_i^N_i - (1 - p_i)^N_i)`` with ``v_i = p_i (1 - p_i)^2``, ``N_i`` the number of episodes
    of task ``i`` and ``p_i`` its success rate when it was last played, else 0.5. The more episodes a task
    has, the less one more adds to the sum, so giving each episode to the task with the largest gain is exact.
    The first ``warm_up`` draws are uniform. A task that never succeeded counts with the rate ``unsolved``, so
    that it is not given up forever. Each task gets at least ``least`` and at most ``most`` episodes. The
    sampler ``order`` draws the tasks.
    """

    least: int = 2
    most: int = 128
    warm_up: int = 5
    unsolved: float = 0.02
    order: Sampler = field(default_factory=Uniform)

    def draw(
        self, tasks: Sequence[Task], *, draw_index: int, num_groups: int, group_size: int, seed: int
    ) -> list[Draw]:
        """Return the draws of ``order``, with the budget of episodes divided among their tasks."""
        draws = self.order.draw(
            tasks, draw_index=draw_index, num_groups=num_groups, group_size=group_size, seed=seed
        )
        first = draw_index * MAX_EPISODES
        if draw_index < self.warm_up:
            return [Draw(draw.task, draw.num_episodes, first) for draw in draws]
        rates = [self.rates.get(draw.task.id, 0.5) for draw in draws]
        sizes = divide_budget(
            [rate or self.unsolved for rate in rates],
            num_groups * group_size,
            least=self.least,
            most=self.most,
        )
        return [Draw(draw.task, size, first) for draw, size in zip(draws, sizes, strict=True)]


def divide_budget(rates: Sequence[float], budget: int, *, least: int = 2, most: int = 128) -> list[int]:
    """Return the number of episodes of each task, from the tasks' success rates.

    The division maximises the sum in ``Knapsack`` exactly: the value of groups with mixed outcomes.

    >>> divide_budget([0.05, 0.3, 0.5, 0.9], 32)
    [12, 11, 7, 2]
    """
    if not least * len(rates) <= budget <= most * len(rates):
        raise ConfigError(
            f"a budget of {budget} episodes does not fit {len(rates)} tasks of {least} to {most} each"
        )
    sizes = [least] * len(rates)
    for _ in range(budget - sum(sizes)):
        gains = [_gain(p, n) if n < most else -1.0 for p, n in zip(rates, sizes, strict=True)]
        sizes[max(range(len(gains)), key=lambda i: (gains[i], -i))] += 1
    return sizes


def _gain(p: float, n: int) -> float:
    """Return what episode ``n + 1`` adds to the sum in ``Knapsack``: ``v (p^n (1 - p) + (1 - p)^n p)``."""
    return p * (1.0 - p) ** 2 * (p**n * (1.0 - p) + (1.0 - p) ** n * p)


@dataclass(slots=True)
class VarianceAware(SuccessRates):
    """Draws tasks partly by the variance of their outcome, ``p (1 - p)``, and partly uniformly.

    Leng et al. 2025, "MMR1". ``p`` is a task's success rate when it was last played, or 0.5 if it was not
    played yet. ``mix`` is the share of probability that is given by the variance.
    """

    mix: float = 0.5

    def draw(
        self, tasks: Sequence[Task], *, draw_index: int, num_groups: int, group_size: int, seed: int
    ) -> list[Draw]:
        """Draw tasks without repeating one within a draw."""
        chance = random.Random(seed_of(seed, "variance", draw_index))
        shares = self.shares([self.rates.get(task.id, 0.5) for task in tasks])
        keys = [
            (chance.random() ** (1.0 / share) if share > 0 else -1.0, i) for i, share in enumerate(shares)
        ]
        chosen = sorted(keys, reverse=True)[:num_groups]
        return [Draw(tasks[i], group_size, draw_index * MAX_EPISODES) for _, i in chosen]

    def shares(self, rates: Sequence[float]) -> list[float]:
        """Return the probability of each task, from the success rates.

        >>> [round(share, 6) for share in VarianceAware().shares([0.0, 0.25, 0.5, 1.0])]
        [0.125, 0.339286, 0.410714, 0.125]
        """
        scores = [rate * (1.0 - rate) for rate in rates]
        uniform = 1.0 / len(rates)
        if not sum(scores):
            return [uniform] * len(rates)
        return [self.mix * score / sum(scores) + (1.0 - self.mix) * uniform for score in scores]


@dataclass(frozen=True, slots=True)
class Phases(Sampler):
    """Draws easy tasks first: from draw ``since`` on, tasks of size at most ``limit`` (QwenLong's phases).

    ``phases`` are pairs ``(since, limit)`` in order; ``size`` returns how hard a task is, on any scale.
    The inner sampler, ``sampler``, draws from the tasks that the phase allows.
    """

    size: Callable[[Task], float]
    phases: tuple[tuple[int, float], ...]
    sampler: Sampler = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        if not self.phases or self.phases[0][0] != 0 or list(self.phases) != sorted(self.phases):
            raise ConfigError(
                f"phases are pairs (since, limit) in rising order, the first since 0; found {self.phases}"
            )

    def draw(
        self, tasks: Sequence[Task], *, draw_index: int, num_groups: int, group_size: int, seed: int
    ) -> list[Draw]:
        """Return draws of the tasks that the phase of this draw allows.

        Raises:
            ConfigError: the phase allows no task.
        """
        limit = [limit for since, limit in self.phases if since <= draw_index][-1]
        allowed = [task for task in tasks if self.size(task) <= limit]
        if not allowed:
            raise ConfigError(
                f"no task has a size of at most {limit:g}; the smallest is {min(map(self.size, tasks)):g}"
            )
        return self.sampler.draw(
            allowed, draw_index=draw_index, num_groups=num_groups, group_size=group_size, seed=seed
        )

    def observe(self, groups: Sequence[ScoredGroup]) -> None:
        """Let the inner sampler learn."""
        self.sampler.observe(groups)

    def state_dict(self) -> Mapping[str, Json]:
        """Return the inner sampler's state."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Restore the inner sampler's state."""
        self.sampler.load_state_dict(state)


def _learned(groups: Sequence[ScoredGroup], kind: TaskKind) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for group in groups:
        if group:
            found.setdefault(kind(group[0].trajectory.task), []).append(learnability(group))
    return found


def _by_kind(
    tasks: Sequence[Task],
    kind: TaskKind,
    shares: Callable[[Sequence[str]], Sequence[float]],
    draw_index: int,
    num_groups: int,
    group_size: int,
    seed: int,
) -> list[Draw]:
    """Draw for each group a kind with its probability in ``shares``, then a task of that kind.

    Tasks of a kind are repeated only after all of them were drawn.
    """
    members: dict[str, list[Task]] = {}
    for task in tasks:
        members.setdefault(kind(task), []).append(task)
    kinds = sorted(members)
    chance = random.Random(seed_of(seed, "kinds", draw_index))
    wanted = chance.choices(kinds, list(shares(kinds)), k=num_groups)
    draws = []
    for one in kinds:
        drawn = chance.sample(members[one], min(wanted.count(one), len(members[one])))
        for number in range(wanted.count(one)):
            first = draw_index * MAX_EPISODES + number // len(drawn) * group_size
            draws.append(Draw(drawn[number % len(drawn)], group_size, first))
    return draws
