"""The ``brief`` observation: what a player can see, rendered from the engine's facts in few tokens.

``kitchen ; exits east , west (closed portal) ; see chest (locked) , apple on plate ; have red key``

Rooms and things appear under the names that commands use. Things that the compiled game would not show (in a
closed box, in another room) are left out. Lists are sorted, so equal states have equal texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

DIRECTIONS = ("north", "south", "east", "west")
_VISIBLE = frozenset(
    [
        "open",
        "closed",
        "locked",
        "raw",
        "fried",
        "roasted",
        "grilled",
        "burned",
        "uncut",
        "chopped",
        "sliced",
        "diced",
    ]
)
"""Predicates of a single thing that a player sees by looking at the thing, such as ``open``."""


class Fact(Protocol):
    """A proposition of the engine about things, such as ``in(key, box)``."""

    @property
    def name(self) -> str:
        """The predicate, such as ``in``."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Ids of the predicate's arguments, such as ``k_0``."""
        ...


class Scene:
    """The facts of one state, indexed for rendering.

    ``labels`` maps the ids of things to the names under which commands refer to them.
    """

    def __init__(self, facts: Iterable[Fact], labels: Mapping[str, str]) -> None:
        self.labels = labels
        self.free: set[tuple[str, str]] = set()
        self.ways: dict[str, dict[str, str]] = {}  # room -> direction -> next room
        self.doors: dict[tuple[str, str], str] = {}
        self.marks: dict[str, list[str]] = {}
        # room, container, supporter or inventory -> (thing, relation)
        self.holds: dict[str, list[tuple[str, str]]] = {}
        self.here = ""
        for fact in facts:
            name, ids = fact.name, fact.names
            if name == "free" and len(ids) == 2:
                self.free.add((ids[0], ids[1]))
            elif name.endswith("_of") and name[:-3] in DIRECTIONS:
                self.ways.setdefault(ids[1], {})[name[:-3]] = ids[0]
            elif name == "link":
                self.doors[ids[0], ids[2]] = ids[1]
            elif name == "at" and ids[0] == "P":
                self.here = ids[1]
            elif name in ("at", "in", "on") and len(ids) == 2:
                self.holds.setdefault(ids[1], []).append((ids[0], name))
            elif name in _VISIBLE and len(ids) == 1:
                self.marks.setdefault(ids[0], []).append(name)

    def render(self) -> str:
        """Return the ``brief`` observation of the state."""
        parts = [self.labels.get(self.here, self.here)]
        parts += _part("exits", self._exits())
        parts += _part("see", sorted(self._things(self.here)))
        parts += _part("have", sorted(self._thing(thing, "") for thing, _ in self.holds.get("I", ())))
        return " ; ".join(parts)

    def _exits(self) -> list[str]:
        exits = []
        for direction, room in sorted(self.ways.get(self.here, {}).items()):
            door = self.doors.get((self.here, room))
            if door:
                exits.append(f"{direction} ({' '.join(self.marks.get(door, []))} {self.labels[door]})")
            elif (self.here, room) in self.free:
                exits.append(direction)
        return exits

    def _things(self, place: str) -> Iterable[str]:
        """Yield the texts of all things that are at, in or on ``place``.

        Things in or on these follow, and so on, except those in closed or locked things.
        """
        for thing, relation in self.holds.get(place, ()):
            yield self._thing(thing, "" if relation == "at" else f" {relation} {self.labels[place]}")
            if not {"closed", "locked"} & set(self.marks.get(thing, ())):
                yield from self._things(thing)

    def _thing(self, thing: str, where: str) -> str:
        marks = " ".join(sorted(self.marks.get(thing, ())))
        return f"{self.labels[thing]}{where} ({marks})" if marks else f"{self.labels[thing]}{where}"


def structure_key(facts: Iterable[Fact], labels: Mapping[str, str], plan: Sequence[str]) -> str:
    """Return a content hash of a game that ignores the names of rooms.

    Two games with the same key are the same problem.

    The name of a room is decoration (no command contains it). Rooms are therefore numbered breadth first from
    the player's room, directions in alphabetical order; all other things keep the name that commands use. The
    hash covers the sorted facts and the plan, but neither seeds nor the order in which the game was built.
    """
    facts = list(facts)
    scene = Scene(facts, labels)
    order = [scene.here]
    for room in order:  # the loop appends to the list it iterates over
        order += [to for _, to in sorted(scene.ways.get(room, {}).items()) if to not in order]
    names = {**labels, **{room: f"room {number}" for number, room in enumerate(order)}}
    lines = sorted(
        f"{fact.name}({', '.join(names.get(thing) or thing for thing in fact.names)})" for fact in facts
    )
    return hashlib.sha256(json.dumps([lines, list(plan)]).encode()).hexdigest()


def _part(title: str, items: Sequence[str]) -> list[str]:
    return [f"{title} {' , '.join(items)}"] if items else []
