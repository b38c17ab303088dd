import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from sound import SOUND

from agentrl.errors import ConfigError
from agentrl.options import check_types, describe, differences, override, parse_fields, pretty, spell_type
from agentrl.recipe import Recipe


def double(value: float) -> float:
    return 2 * value


@dataclass(frozen=True)
class Leaf:
    name: str
    size: int = 1
    rate: float = 0.5
    limit: float | None = None
    kind: Literal["small", "large"] = "small"
    words: tuple[str, ...] = ()
    pair: tuple[int, float] = (1, 0.5)
    on: bool = False
    folder: Path = Path()


@dataclass(frozen=True)
class Pair:
    """Two numbers that must agree."""

    low: int = 1
    high: int = 2

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ConfigError(f"low {self.low} is above high {self.high}")


@dataclass(frozen=True)
class Tree:
    leaves: tuple[Leaf, ...] = (Leaf("a"), Leaf("b"))
    leaf: Leaf = field(default_factory=lambda: Leaf("c"))
    table: Mapping[str, float] = field(default_factory=dict)
    pair: Pair = field(default_factory=Pair)
    function: object = double
    other: Leaf | None = None


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("size=3", 3),
        ("size=-3", -3),
        ("rate=1", 1.0),
        ("rate=1e-3", 1e-3),
        ("rate=inf", float("inf")),
        ("limit=none", None),
        ("limit=2.5", 2.5),
        ("kind=large", "large"),
        ("words=('x','y')", ("x", "y")),
        ("words=x", ("x",)),
        ("pair=(2,0.25)", (2, 0.25)),
        ("on=true", True),
        ("on=False", False),
        ("name=12", "12"),
        ("name=a=b", "a=b"),
        ("folder=/tmp", Path("/tmp")),
    ],
)
def test_a_field_is_parsed_by_its_type(assignment, value):
    name = assignment.partition("=")[0]
    found = getattr(override(Leaf("x"), [assignment]), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "assignment",
    ["size=1.5", "size=true", "size=x", "rate=x", "rate=true", "kind=huge", "on=1", "pair=(1,)", "limit=x"],
)
def test_a_value_of_the_wrong_type_is_refused_with_what_was_found(assignment):
    name, _, text = assignment.partition("=")
    with pytest.raises(
        ConfigError, match=f"option '{name}' takes .*; found '{text}'".replace("(", r"\(").replace(")", r"\)")
    ):
        override(Leaf("x"), [assignment])


def test_elements_are_named_by_name_or_place_and_the_rest_stays():
    tree = override(Tree(), ["leaves.b.size=5", "leaves.0.size=4", "leaf.size=6", "table.x=0.5"])
    assert [leaf.size for leaf in tree.leaves] == [4, 5]
    assert tree.leaf.size == 6
    assert tree.table == {"x": 0.5}
    assert Tree() == override(Tree(), [])


def test_fields_that_fit_only_together_are_set_together():
    assert override(Tree(), ["pair.low=5", "pair.high=7"]).pair == Pair(5, 7)
    with pytest.raises(ConfigError, match="low 5 is above high 2"):
        override(Tree(), ["pair.low=5"])


def test_the_last_of_two_values_for_one_field_wins():
    assert override(Tree(), ["leaf.size=5", "leaf.size=7"]).leaf.size == 7


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("leafs.size=1", "Tree has no field 'leafs'; it has leaves, leaf, .*did you mean 'leaf'"),
        ("leaf.sise=1", "Leaf has no field 'sise'.*did you mean 'size'"),
        ("leaves.c.size=1", "no element 'c'; found a, b"),
        ("leaves.a=1", "no element 'a'"),
        ("leaves.2.size=1", "no element '2'"),
        ("function.x=1", "function has no fields; set it in the recipe file"),
        ("table.x.y=1", "a mapping takes one name, as in table.x="),
        ("other.size=1", "NoneType has no fields"),
        ("size", "write it as path=value"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_is_there(assignment, message):
    with pytest.raises(ConfigError, match=message):
        override(Tree(), [assignment])


def test_wrong_types_are_found_at_any_depth():
    tree = Tree(leaves=(Leaf("a", size="3"), Leaf("b", kind="huge")), leaf=Leaf(7, words=("x", 1)))
    found = list(check_types(tree))
    assert found[0] == "leaves.a.size must be int; found '3' (str)"
    assert found[1] == "leaves.b.kind must be one of 'small', 'large'; found 'huge' (str)"
    assert found[2] == "leaf.name must be str; found 7 (int)"
    assert found[3].startswith("leaf.words must be")
    assert len(found) == 4
    assert list(check_types(Tree())) == []


def test_descriptions_name_classes_and_functions_and_are_equal_where_values_are():
    described = describe(Tree())
    assert described["function"] == f"{__name__}:double"
    assert described["leaf"]["class"] == f"{__name__}:Leaf"
    assert describe(Tree()) == described
    assert list(differences(described, described)) == []
    assert describe(functools.partial(double, value=3)) == {
        "partial": f"{__name__}:double",
        "args": [],
        "value": 3,
    }
    assert describe({"b": 1, "a": {2, 1}}) == {"a": ["1", "2"], "b": 1}


def test_differences_are_listed_by_path():
    new = override(Tree(), ["leaves.b.size=5", "leaf.rate=0.1"])
    assert list(differences(describe(Tree()), describe(new))) == [
        "leaf.rate: 0.5 -> 0.1",
        "leaves.b.size: 1 -> 5",
    ]
    longer = describe(Tree(leaves=()))
    assert [line.partition(":")[0] for line in differences(describe(Tree()), longer)] == ["leaves"]


def test_options_of_a_class_are_parsed_before_it_is_made():
    assert parse_fields(Leaf, ["size=3", "kind=large"], "leaf") == {"size": 3, "kind": "large"}
    with pytest.raises(ConfigError, match=r"leaf has no option 'sise'.*did you mean 'size'"):
        parse_fields(Leaf, ["sise=3"], "leaf")
    with pytest.raises(ConfigError, match="'leaf: size' takes int; found 'x'"):
        parse_fields(Leaf, ["size=x"], "leaf")
    assert spell_type(Leaf, "limit") == "float or none"


def test_a_value_is_shown_for_a_person_without_addresses():
    shown = pretty(Tree(table={"x": 0.5}))
    assert "function: double" in shown.splitlines()[-2]
    assert "  pair: Pair(low=1, high=2)" in shown.splitlines()
    assert " at 0x" not in shown
    assert "  table: {'x': 0.5}" in shown


@dataclass(frozen=True)
class Times:
    factor: int

    def of(self, value: int) -> int:
        return self.factor * value


@dataclass(frozen=True)
class Foreign:
    """Like a dataclass of a package that imports a type only for type checkers."""

    task: "NotImportedHere | None" = None  # noqa: F821
    size: int = 3


def test_a_type_that_is_imported_for_checkers_only_stops_nothing():
    assert list(check_types(Foreign())) == []
    assert override(Foreign(), ["size=5"]) == Foreign(size=5)
    assert list(check_types(Foreign(size="five")))


class Mood(enum.Enum):
    CALM = 1
    WILD = 2


@pytest.mark.parametrize(
    ("one", "other"),
    [(Mood.CALM, Mood.WILD), (b"a", b"b"), (np.int64(3), np.int64(4)), (Times(2).of, Times(3).of)],
)
def test_what_differs_is_described_differently(one, other):
    assert describe(one) != describe(other)


def test_a_type_that_only_type_checkers_import_does_not_hide_the_others() -> None:
    """``Recipe.renderer`` names a class of transformers, which a recipe does not load."""
    assert spell_type(Recipe, "name") == "str"
    assert spell_type(Recipe, "seed") == "int"
    (problem,) = check_types(replace(SOUND, name=3))
    assert problem == "name must be str; found 3 (int)"
