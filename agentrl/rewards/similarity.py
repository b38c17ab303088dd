"""Pay for coming near: how alike the state that a turn reached is to the goal's, thing by thing and attribute by attribute.

StateFactory (factored states as rewards; formula from the published code). A state is a list of named things with attributes, and so is
the goal. Where states come from is the caller's: an environment's own facts, a parser of its text, a model that was asked beforehand.

A similar state is no proof that the task is solved: two goals may find their likeness in the same thing, and a mean lets one goal make up
for another. Pay an ``Outcome`` beside it, and gate this behind it (``agentrl.rewards.gates``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from agentrl.errors import ConfigError
from agentrl.types import Json, Ledger, Observation, Trajectory, floats

Alike = Callable[[str, str], float]
"""How alike two texts are, usually the cosine of their embeddings: 1 where they mean the same."""


@dataclass(frozen=True, slots=True)
class Thing:
    """Something in a state: its name, and attributes by their names."""

    name: str
    attributes: tuple[tuple[str, str], ...] = ()


State = tuple[Thing, ...]


def state_of(things: Mapping[str, Mapping[str, str]]) -> State:
    """Return the state with these things.

    >>> state_of({"mug": {"place": "table"}})
    (Thing(name='mug', attributes=(('place', 'table'),)),)
    """
    return tuple(Thing(name, tuple(attributes.items())) for name, attributes in things.items())


def trigrams(one: str, other: str) -> float:
    """Return the cosine of the counts of three letters in a row, in [0, 1]: spelling, not meaning. Needs no model.

    >>> round(trigrams("red door", "the red door"), 3), trigrams("Door ", "door"), trigrams("cat", "dog")
    (0.74, 1.0, 0.0)
    """
    return _cosine(_trigrams(one), _trigrams(other))


@dataclass(frozen=True, slots=True)
class Cosine:
    """The cosine of what ``embed`` makes of two texts. It is called for every pair: let it remember."""

    embed: Callable[[str], Sequence[float] | npt.NDArray[np.floating]]

    def __call__(self, one: str, other: str) -> float:
        """Return the cosine; 0 for a text without any direction."""
        a, b = (np.asarray(self.embed(text), dtype=np.float64) for text in (one, other))
        length = float(np.linalg.norm(a) * np.linalg.norm(b))
        return float(a @ b) / length if length > 0.0 else 0.0


def likeness(state: State, goal: State, alike: Alike = trigrams) -> float:
    """Return the mean over the goal's things of the best likeness that a thing of the state has to them; 0 where a side is empty.

    ``alike(names) * mean over the goal's attributes of alike(values)``, the attribute compared being the one whose name is most alike. A
    goal without attributes asks for the name alone; a thing without attributes has nothing that a goal with some asks for.
    """
    if not state or not goal:
        return 0.0
    return fmean(max(_thing(found, wanted, alike) for found in state) for wanted in goal)


def _thing(found: Thing, wanted: Thing, alike: Alike) -> float:
    named = alike(wanted.name, found.name)
    if not wanted.attributes:
        return named
    if not found.attributes:
        return 0.0
    values = []
    for key, value in wanted.attributes:
        _, nearest = max(found.attributes, key=lambda attribute: alike(key, attribute[0]))
        values.append(alike(value, nearest))
    return named * fmean(values)


@dataclass(frozen=True, slots=True)
class Shown:
    """The states of an episode, each read off what was shown: before every turn, and after the last."""

    read: Callable[[Observation], State]

    def __call__(self, trajectory: Trajectory) -> Sequence[State]:
        """Return ``N + 1`` states.

        Raises:
            ConfigError: nobody kept what the last turn led to.
        """
        if trajectory.final is None:
            raise ConfigError(
                f"task {trajectory.task.id!r}: the trajectory has no final observation, so nobody knows its last state"
            )
        return [
            self.read(observation)
            for observation in (*(turn.observation for turn in trajectory.turns), trajectory.final)
        ]


@dataclass(frozen=True, slots=True)
class StateSimilarity:
    """Pay each turn the likeness of the state that it reached to the goal of its task, ``task.data[goal]``.

    ``states`` gives the state before each turn and after the last, ``N + 1`` of them: ``Shown(read)``, or a function of the trajectory.
    The goal is ``{thing: {attribute: value}}``.

    A likeness is a level: who dawdles near the goal is paid it again and again. ``gain`` pays what each turn added instead, so the episode
    is paid the last likeness less the first, whatever the way (a potential; Ng, Harada & Russell 1999, with a discount of 1).
    """

    states: Callable[[Trajectory], Sequence[State]]
    goal: str = "goal"
    alike: Alike = trigrams
    gain: bool = False
    name: str = "similarity"
    signals: ClassVar[frozenset[str]] = frozenset()

    @property
    def components(self) -> frozenset[str]:
        """The one component."""
        return frozenset({self.name})

    def __call__(self, trajectory: Trajectory) -> Ledger:
        """Return ``{name: likeness per turn}``.

        Raises:
            ConfigError: the task has no goal, or there is not one state more than turns.
        """
        if not trajectory.turns:
            return {self.name: floats()}
        goal, states = self._goal(trajectory), self.states(trajectory)
        if len(states) != len(trajectory.turns) + 1:
            raise ConfigError(
                f"similarity needs the state before each turn and after the last: {len(trajectory.turns) + 1} of task "
                f"{trajectory.task.id!r}; `states` gave {len(states)}"
            )
        levels = np.array([likeness(state, goal, self.alike) for state in states])
        return {self.name: floats(np.diff(levels) if self.gain else levels[1:])}

    def _goal(self, trajectory: Trajectory) -> State:
        found: Json = trajectory.task.data.get(self.goal)
        if (
            isinstance(found, Mapping)
            and found
            and all(isinstance(attributes, Mapping) for attributes in found.values())
        ):
            return tuple(
                Thing(name, tuple((key, str(value)) for key, value in attributes.items()))
                for name, attributes in found.items()
                if isinstance(attributes, Mapping)
            )
        raise ConfigError(
            f"similarity compares with the task's {self.goal!r}, {{thing: {{attribute: value}}}} with at least one thing; task "
            f"{trajectory.task.id!r} has {found!r} there; its data has {', '.join(sorted(trajectory.task.data)) or 'nothing'}"
        )


@lru_cache(maxsize=65_536)
def _trigrams(text: str) -> Mapping[str, int]:
    padded = f"  {' '.join(text.lower().split())} "
    return Counter(padded[start : start + 3] for start in range(len(padded) - 2))


def _cosine(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    if one == other:
        return 1.0
    dot = sum(count * other.get(gram, 0) for gram, count in one.items())
    squares = (sum(count * count for count in counts.values()) for counts in (one, other))
    return float(dot / np.sqrt(np.prod([float(square) for square in squares])))
