import ast
import itertools
import shutil
import subprocess

import pytest
import toy
from agentrl_environments.swe.synth.candidates import COMBINED, Candidate
from agentrl_environments.swe.synth.mutate import candidates, combinations
from agentrl_environments.swe.synth.packages import Tree

from agentrl.errors import ConfigError

pytest.importorskip("libcst", reason="making tasks needs libcst")


def of(body: str) -> Tree:
    return toy.tree({"toy/calc.py": body.encode()})


def made(kind: str, body: str) -> set[str]:
    """Return the bodies that a kind makes of a function's."""
    text = "def f(x, y, g):\n" + "".join(f"    {line}\n" for line in body.split("\n"))
    found = candidates(of(text), seed=0, kinds=(kind,), per_function=99)
    return {
        "\n".join(line[4:] for line in one.apply({"toy/calc.py": text})["toy/calc.py"].splitlines()[1:])
        for one in found
    }


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("change_operator", "return x + y", {"return x - y"}),
        ("change_operator", "return x in y", {"return x not in y"}),
        ("change_operator", "return x and y", {"return x or y"}),
        ("change_operator", "return '%s' % x", set()),
        ("swap_operands", "return x - y", {"return y - x"}),
        ("swap_operands", "return x < y", {"return y < x"}),
        ("swap_operands", "return x - (y + 1)", {"return (y + 1) - x", "return x - (1 + y)"}),
        ("change_constant", "return x[1]", {"return x[2]", "return x[0]"}),
        ("change_constant", "return g(True)", {"return g(False)"}),
        ("off_by_one", "return x < y", {"return x <= y"}),
        ("off_by_one", "return x[y:]", {"return x[y + 1:]"}),
        ("off_by_one", "return range(x)", {"return range(x - 1)"}),
        (
            "invert_condition",
            "if x:\n    return 1\nelse:\n    return 2",
            {"if x:\n    return 2\nelse:\n    return 1"},
        ),
        ("invert_condition", "if(x):\n    y()", {"if not (x):\n    y()"}),
        ("invert_condition", "return x if y else g", {"return g if y else x"}),
        ("remove_conditional", "if x:\n    y()\nreturn y", {"return y", "y()\nreturn y"}),
        ("remove_loop", "for a in x:\n    g(a)\nreturn y", {"return y"}),
        ("remove_assignment", "x = 1\nreturn x", {"return x"}),
        ("remove_call", "g(x)\nreturn x", {"return x"}),
        ("remove_call", "g(x)", {"pass"}),
        ("remove_wrapper", "with g:\n    y()", {"y()"}),
        ("remove_wrapper", "return list(x)", {"return x"}),
        ("break_chain", "return g(x).strip()", {"return g(x)"}),
        ("break_chain", "return x or y", {"return x", "return y"}),
        ("change_return", "return x, y", {"return y, x"}),
        ("change_return", "return x == y", {"return not (x == y)"}),
        ("change_return", "return x", {"return None"}),
        ("shuffle_lines", "x()\ny()\nreturn 1", {"y()\nx()\nreturn 1"}),
        ("change_exception", "raise ValueError(x)", {"pass", "raise TypeError(x)"}),
        ("change_arguments", "return g(x, y)", {"return g(y, x)"}),
        ("change_arguments", "return g(x, key=y)", {"return g(x)"}),
        ("change_loop", "for a in x:\n    break", {"for a in x:\n    continue"}),
        ("remove_body", '"""Doc."""\nx()\nreturn y', {'"""Doc."""\nraise NotImplementedError'}),
    ],
)
def test_each_kind_makes_its_bugs_and_no_others(kind: str, body: str, expected: set[str]) -> None:
    assert made(kind, body) == expected


def test_bases_and_methods_of_classes_are_taken_away() -> None:
    text = "class A(B, C):\n    def f(self):\n        return 1\n\n    def g(self):\n        return 2\n"
    bases = {
        one.apply({"toy/calc.py": text})["toy/calc.py"].splitlines()[0]
        for one in candidates(of(text), seed=0, kinds=("change_bases",))
    }
    assert bases == {"class A(C):", "class A(B):"}
    methods = [
        one.apply({"toy/calc.py": text})["toy/calc.py"]
        for one in candidates(of(text), seed=0, kinds=("remove_method",))
    ]
    assert sorted("def f" in text for text in methods) == [False, True]


def texts(tree: Tree) -> dict[str, str]:
    return {path: tree.files[path].decode() for path in tree.modules}


def all_of(tree: Tree, seed: int = 0) -> list[Candidate]:
    return list(candidates(tree, seed=seed))


def test_every_candidate_compiles_means_something_else_and_is_there_once() -> None:
    tree = toy.tree()
    found = all_of(tree)
    original = ast.dump(ast.parse(toy.CALC))
    assert len(found) > 40
    assert len({one.id for one in found}) == len(found)
    for one in found:
        (text,) = one.apply(texts(tree)).values()
        assert ast.dump(ast.parse(text)) != original
        assert one.kind != COMBINED
        assert len(one.edits) == 1


def test_docstrings_annotations_and_imports_are_left_alone() -> None:
    for one in all_of(toy.tree()):
        (text,) = one.apply({"toy/calc.py": toy.CALC}).values()
        assert "from __future__ import annotations" in text
        assert ast.get_docstring(ast.parse(text)) == "Sums."


def test_the_seed_alone_decides_the_order() -> None:
    first = [one.id for one in all_of(toy.tree())]
    assert first == [one.id for one in all_of(toy.tree())]
    other = [one.id for one in all_of(toy.tree(), seed=1)]
    assert first != other
    assert set(first[:3]) != set(other[:3])


def test_kinds_take_turns() -> None:
    kinds = [one.kind for one in itertools.islice(candidates(toy.tree(), seed=0), 8)]
    assert len(set(kinds)) == 8


def test_long_functions_do_not_fill_the_set() -> None:
    body = "def f(x):\n" + "".join(f"    x = g(x, {number})\n" for number in range(50)) + "    return x\n"
    found = list(candidates(of(body), seed=0, kinds=("remove_assignment",), per_function=3))
    assert len(found) == 3


@pytest.mark.skipif(shutil.which("git") is None, reason="applies patches with git")
def test_the_fix_takes_the_bug_back(tmp_path) -> None:
    tree = toy.tree()
    singles = all_of(tree)
    for one in [*singles[::7], *itertools.islice(combinations(singles, seed=0), 3)]:
        file = tmp_path / "toy" / "calc.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(one.apply(texts(tree))["toy/calc.py"])
        assert file.read_text() != toy.CALC
        subprocess.run(["git", "apply", "-"], input=one.fix(texts(tree)).encode(), cwd=tmp_path, check=True)
        assert file.read_text() == toy.CALC


def test_combined_bugs_are_in_different_functions_and_hold_all_their_parts() -> None:
    tree = toy.tree()
    singles = {one.id: one for one in all_of(tree)}
    found = list(combinations(list(singles.values()), seed=0))
    assert found
    for one in found:
        assert one.kind == COMBINED
        assert len(one.edits) == len(set(one.functions)) >= 2
        (text,) = one.apply(texts(tree)).values()
        ast.parse(text)


def test_complexity_counts_decisions() -> None:
    from agentrl_environments.swe.synth.sites import complexity

    function = ast.parse(
        "def f(x):\n  for y in x:\n    if y and x or y:\n      return 1\n"
        "  try:\n    pass\n  except ValueError:\n    pass"
    )
    assert complexity(function) == 6


def test_an_unknown_kind_is_a_mistake_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no kind of bug is named spelling; choose from change_operator"):
        next(iter(candidates(toy.tree(), seed=0, kinds=("spelling",))))


@pytest.mark.parametrize("function", ["clamp", "total", "Stack.pop", "Stack.push", "nowhere", ""])
def test_the_places_of_one_function_are_those_of_the_whole_module_in_it(function: str) -> None:
    from agentrl_environments.swe.synth.kinds import KINDS
    from agentrl_environments.swe.synth.sites import find, find_in

    name = f"toy/calc.py::{function}"
    wanted = [
        site.candidate() for site in find("toy/calc.py", toy.CALC, tuple(KINDS)) if site.function == name
    ]
    found = [site.candidate() for site in find_in("toy/calc.py", toy.CALC, name, tuple(KINDS))]
    assert found == wanted
    assert bool(found) == (function not in ("nowhere", ""))


def test_a_function_inside_a_function_and_one_below_a_condition_are_found() -> None:
    from agentrl_environments.swe.synth.sites import find_in

    text = "if x:\n    def f(a):\n        b = 1\n        def g(c):\n"
    text += "            nonlocal b\n            b = c + 2\n        return g\n"
    (site, *_) = find_in("m.py", text, "m.py::f.g", ("change_operator",))
    one = site.candidate()
    assert one is not None
    assert one.apply({"m.py": text})["m.py"] == text.replace("c + 2", "c - 2")
