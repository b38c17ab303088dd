"""A reward for coming near the goal: how similar a turn's state is to the goal state.

StateFactory (factored states as rewards; formula from the published code). A state is a list of named things
with attributes, and so is the goal. Both are compared thing by thing and attribute by attribute. The caller
provides the states: from the environment's own facts, from a parser of its text, or from a model that was
asked beforehand.

A similar state does not prove that the task is solved: two things of the goal may match the same thing of the
state, and in a mean one match can make up for another. Pay an ``Outcome`` beside it, and gate this reward
behind it (``agentrl.rewards.gates``).
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
from agentrl.rewards import Reward
from agentrl.types import Json, Ledger, Observation, Trajectory, floats

TextSimilarity = Callable[[str, str], float]
"""Returns how similar two texts are, usually the cosine of their embeddings: 1 if they mean the same."""


@dataclass(frozen=True, slots=True)
class Thing:
    """Something in a state: its name, and its attributes as pairs of name and value."""

    name: str
    attributes: tuple[tuple[str, str], ...] = ()


State = tuple[Thing, ...]


def state_of(things: Mapping[str, Mapping[str, str]]) -> State:
    """Return the state that consists of ``things``.

    >>> state_of({"mug": {"place": "table"}})
    (Thing(name='mug', attributes=(('place', 'table'),)),)
    """
    return tuple(Thing(name, tuple(attributes.items())) for name, attributes in things.items())


def trigram_similarity(one: str, other: str) -> float:
    """Return the cosine of the counts of character triples, in [0, 1].

    The function compares spelling, not meaning, and needs no model.

    >>> round(trigram_similarity("red door", "the red door"), 3), trigram_similarity("Door ", "door")
    (0.74, 1.0)
    >>> trigram_similarity("cat", "dog")
    0.0
    """
    return _cosine(_trigrams(one), _trigrams(other))


@dataclass(frozen=True, slots=True)
class CosineSimilarity:
    """The cosine of two texts' embeddings.

    ``embed`` is called for every pair of texts, so it should cache its results.
    """

    embed: Callable[[str], Sequence[float] | npt.NDArray[np.floating]]

    def __call__(self, one: str, other: str) -> float:
        """Return the cosine of the two embeddings; 0 if an embedding is a zero vector."""
        a, b = (np.asarray(self.embed(text), dtype=np.float64) for text in (one, other))
        length = float(np.linalg.norm(a) * np.linalg.norm(b))
        return float(a @ b) / length if length > 0.0 else 0.0


def state_similarity(state: State, goal: State, alike: TextSimilarity = trigram_similarity) -> float:
    """Return how well a state contains the goal's things, in [0, 1]; 0 if the state or goal is empty.

    The result is the mean, over the goal's things, of the largest similarity of a thing in the state:
    ``alike(names) * mean over the goal's attributes of alike(values)``. An attribute of the goal is compared
    with the attribute whose name is most similar. A thing of the goal without attributes is compared by its
    name alone; a thing of the state without attributes has similarity 0 to a thing of the goal that has some.
    """
    if not state or not goal:
        return 0.0
    return fmean(max(_thing(found, wanted, alike) for found in state) for wanted in goal)


def _thing(found: Thing, wanted: Thing, alike: TextSimilarity) -> float:
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
class ObservedStates:
    """The states of an episode, each read from an observation: before every turn, and after the last."""

    read: Callable[[Observation], State]

    def __call__(self, trajectory: Trajectory) -> Sequence[State]:
        """Return the ``N + 1`` states of an episode with ``N`` turns.

        Raises:
            ConfigError: the trajectory has no final observation.
        """
        if trajectory.final is None:
            raise ConfigError(
                f"the trajectory of task {trajectory.task.id!r} has no final observation, "
                "so its last state is unknown"
            )
        return [
            self.read(observation)
            for observation in (*(turn.observation for turn in trajectory.turns), trajectory.final)
        ]


@dataclass(frozen=True, slots=True)
class StateSimilarity(Reward):
    """Pays each turn the similarity of the state that it reached to the goal of its task.

    The goal is ``task.data[goal]`` and has the form ``{thing: {attribute: value}}``. ``states`` returns the
    states before each turn and after the last, ``N + 1`` of them: ``ObservedStates(read)``, or a function of
    the trajectory.

    By default a turn is paid the level of similarity, so an agent that stays near the goal is paid again and
    again. With ``gain`` a turn is paid the increase instead, so the episode is paid the last level minus the
    first, whatever it did in between (a potential; Ng, Harada & Russell 1999, with a discount of 1).
    """

    states: Callable[[Trajectory], Sequence[State]]
    goal: str = "goal"
    alike: TextSimilarity = trigram_similarity
    gain: bool = False
    name: str = "similarity"
    signals: ClassVar[frozenset[str]] = frozenset()

    @property
    def components(self) -> frozenset[str]:
        """The single component that the reward pays."""
        return frozenset({self.name})

    def __call__(self, trajectory: Trajectory) -> Ledger:
        """Return ``{name: payments}``: each turn's similarity to the goal, or its increase with ``gain``.

        Raises:
            ConfigError: the task has no goal, or the number of states is not the number of turns plus one.
        """
        if not trajectory.turns:
            return {self.name: floats()}
        goal, states = self._goal(trajectory), self.states(trajectory)
        if len(states) != len(trajectory.turns) + 1:
            raise ConfigError(
                "similarity needs the states before each turn and after the last, "
                f"{len(trajectory.turns) + 1} of task {trajectory.task.id!r}; `states` returned {len(states)}"
            )
        levels = np.array([state_similarity(state, goal, self.alike) for state in states])
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
            f"similarity compares with the task's {self.goal!r}: {{thing: {{attribute: value}}}}, not empty; "
            f"task {trajectory.task.id!r} has {found!r} there, its data has the keys "
            f"{', '.join(sorted(trajectory.task.data)) or '(none)'}"
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
