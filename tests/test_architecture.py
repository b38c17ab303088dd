"""The rules that hold the layers apart, read off the source itself.

``pytest -s`` prints rooms, arrows and depth.
"""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from agentrl import public_names

ROOT = Path(__file__).parent.parent
ROOTS = {
    "agentrl": ROOT / "agentrl",
    "agentrl_environments": ROOT / "environments" / "agentrl_environments",
    "agentrl_sandboxes": ROOT / "sandboxes" / "agentrl_sandboxes",
}
TORCH_ALLOWED = ("agentrl.losses", "agentrl.learner", "agentrl.engines")
PLUGIN_MAY_USE = ("agentrl.errors", "agentrl.types", "agentrl.sandbox", "agentrl.env")
MAX_DEPTH = 8
MAX_ROOMS = 28
MAX_ARROWS = 149
MAX_LINES = 400
MAX_FUNCTION_LINES = 60


@cache
def modules() -> dict[str, Path]:
    found = {}
    for root, folder in ROOTS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((root, *parts))] = path
    return found


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text())


def module_of(dotted: str) -> str | None:
    """Return the longest beginning of a dotted name that is a module of ours."""
    parts = dotted.split(".")
    return next(
        (name for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in modules()), None
    )


def used(parsed: ast.AST) -> Iterator[str]:
    """Yield the dotted names that a source uses of any module.

    Every import statement counts, also those inside functions and for type checkers only. A package that is
    imported under one name is followed to the attributes that are taken from it: after ``import agentrl as
    rl``, ``rl.learner.TorchLearner`` is a use of it.
    """
    bound: dict[str, str] = {}
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
                bound[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import; write the whole name"
            assert node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
                bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(parsed):
        chain: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            chain.insert(0, inner.attr)
            inner = inner.value
        if chain and isinstance(inner, ast.Name) and inner.id in bound:
            yield ".".join((bound[inner.id], *chain))


@cache
def below(name: str) -> frozenset[str]:
    """Return the modules of ours that a module uses, apart from the packages that it lies in."""
    targets = {target for dotted in used(tree(name)) if (target := module_of(dotted)) is not None}
    return frozenset(target for target in targets if target != name and not name.startswith(target + "."))


def depths() -> dict[str, int]:
    order = TopologicalSorter(
        {name: below(name) for name in modules()}
    ).static_order()  # CycleError names the cycle
    found: dict[str, int] = {}
    for name in order:
        found[name] = max((1 + found[target] for target in below(name)), default=0)
    return found


def room(name: str) -> str:
    return ".".join(name.split(".")[:2])


def test_imports_form_no_cycle_and_are_not_deep() -> None:
    found = depths()
    deepest = max(found, key=lambda name: found[name])
    print(f"\ndepth {found[deepest]}, of at most {MAX_DEPTH}: {deepest}")
    assert found[deepest] <= MAX_DEPTH, f"{deepest} is {found[deepest]} imports deep"


def test_the_first_floor_is_a_house_that_one_can_know() -> None:
    ours = [name for name in modules() if name.startswith("agentrl.")]
    arrows = {
        (room(name), room(target))
        for name in ours
        for target in below(name)
        if target.startswith("agentrl.") and room(name) != room(target)
    }
    rooms = {room(name) for name in ours}
    print(f"\n{len(rooms)} rooms, of at most {MAX_ROOMS}; {len(arrows)} arrows, of at most {MAX_ARROWS}")
    assert len(rooms) <= MAX_ROOMS
    assert len(arrows) <= MAX_ARROWS
    TopologicalSorter({start: {end for begin, end in arrows if begin == start} for start in rooms}).prepare()


def test_torch_is_imported_only_where_tokens_are() -> None:
    offenders = [
        name
        for name in modules()
        if not name.startswith(TORCH_ALLOWED)
        and any(
            target.split(".")[0] in {"torch", "transformers", "peft"}
            for target in used(without_type_checking(tree(name)))
        )
    ]
    assert not offenders


def without_type_checking(parsed: ast.Module) -> ast.Module:
    """Return a module without its ``if TYPE_CHECKING`` blocks: what they import is never loaded."""
    kept = [
        node
        for node in parsed.body
        if not (
            isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        )
    ]
    return ast.Module(body=kept, type_ignores=[])


def home_of(dotted: str) -> str:
    """Return a public name with its module: ``agentrl.types.Task`` for ``agentrl.Task``."""
    first, _, rest = dotted.removeprefix("agentrl.").partition(".")
    home = public_names().get(first)
    return dotted if home is None else f"{home}.{first}" + (f".{rest}" if rest else "")


def beyond_the_contract(parsed: ast.Module) -> set[str]:
    """Return what a plug-in uses of agentrl although it is not part of the contract."""
    found = {home_of(dotted) for dotted in used(parsed) if dotted.split(".")[0] == "agentrl"} - {
        "agentrl",
        "agentrl.__version__",
    }
    return {
        dotted for dotted in found if not dotted.startswith(tuple(f"{name}." for name in PLUGIN_MAY_USE))
    } - {*PLUGIN_MAY_USE}


def test_plugins_use_only_the_contract() -> None:
    plugins = [name for name in modules() if name.startswith(("agentrl_environments", "agentrl_sandboxes"))]
    offenders = {
        name: sorted(extra)
        for name in plugins
        if not name.endswith(".cli")  # commands stand on top of everything
        and (extra := beyond_the_contract(tree(name)))
    }
    assert not offenders


@pytest.mark.parametrize(
    "source",
    [
        "from agentrl.learner import Compute",
        "from agentrl import learner",
        "import agentrl.learner.learner",
        "import agentrl\n\n\ndef f():\n    return agentrl.learner.Compute()",
        "import agentrl as rl\n\nx = rl.learner.Compute()",
        "import agentrl as rl\n\nx = rl.Compute()",
        "from agentrl import Recipe",
        "from agentrl import errors, rollout as r",
        "def f():\n    from agentrl.rollout import play",
        "if TYPE_CHECKING:\n    from agentrl.rollout import play",
    ],
)
def test_the_guard_of_plugins_sees_every_way_to_reach_further(source: str) -> None:
    assert beyond_the_contract(ast.parse(source))


def test_the_guard_of_plugins_lets_the_contract_pass() -> None:
    source = "import agentrl\nimport agentrl.types as t\nfrom agentrl.env import EnvSpec\nx = t.Task"
    source += "\nimport agentrl as rl\ny = (rl.Task, rl.EnvSpec, rl.types.Step)"
    assert not beyond_the_contract(ast.parse(source))


@pytest.mark.parametrize("name", sorted(modules()))
def test_modules_and_functions_stay_small(name: str) -> None:
    assert len(modules()[name].read_text().splitlines()) < MAX_LINES
    for node in ast.walk(tree(name)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, (
                f"{name}.{node.name} has {node.end_lineno - node.lineno + 1} lines"
            )


HEAVY = ("torch", "transformers", "ray", "vllm", "docker", "textworld", "pyarrow", "pandas")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import agentrl", (*HEAVY, "numpy", "httpx", "gymnasium", "rich", "typer")),
        ("import agentrl.types, agentrl.env, agentrl.policy, agentrl.rollout, agentrl.plugins", HEAVY),
        ("import agentrl.hosts.worker", (*HEAVY, "gymnasium", "httpx", "rich")),
        ("import agentrl.cli", HEAVY),
        ("import agentrl.testing", ("torch", "transformers", "ray", "vllm")),
        ("import agentrl.credit.gae, agentrl.rewards.outcome, agentrl.samplers.uniform", HEAVY),
        ("import agentrl.learner, agentrl.learner.implicit", ("torch", "transformers")),
        ("import agentrl.recipe, agentrl.recipe.load, agentrl.recipe.check", HEAVY),
        ("import agentrl.losses.groups, agentrl.losses.kl, agentrl.losses.tis, agentrl.losses.epo", HEAVY),
        ("import agentrl.sources, agentrl.sources.hints", ("torch", "transformers")),
        ("import agentrl.gym", (*HEAVY, "agentrl_environments")),
        ("import agentrl_environments.bandit", (*HEAVY, "gymnasium")),
        ("import agentrl_environments.swe, agentrl_environments.textworld", HEAVY),
        (
            "import agentrl_sandboxes.local, agentrl_sandboxes.docker, agentrl_sandboxes.auto",
            (*HEAVY, "kubernetes"),
        ),
    ],
)
def test_what_is_said_to_be_light_is_light_and_silent(statement: str, absent: tuple[str, ...]) -> None:
    loaded = "{name.partition('.')[0] for name in sys.modules}"
    code = f"import sys\n{statement}\nheavy = {set(absent)!r} & {loaded}\nassert not heavy, heavy"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""


def test_every_module_says_what_it_is_for() -> None:
    assert not [
        name
        for name in modules()
        if modules()[name].read_text().strip() and not ast.get_docstring(tree(name))
    ]


def test_a_class_name_stands_for_one_thing() -> None:
    places = defaultdict(list)
    for name in modules():
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_what_a_run_folder_names_is_unique_within_its_package() -> None:
    """``options.public_name`` leaves the module out, so one name must not stand for two functions."""
    places = defaultdict(list)
    for name in modules():
        outside = ("agentrl.commands", "agentrl.cli", "agentrl.testing")
        if not name.startswith("agentrl.") or name.startswith(outside):
            continue  # no recipe holds commands, suites or the functions of plug-ins
        for node in tree(name).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                places[name.partition(".")[0], node.name].append(name)
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_the_core_declares_what_it_asks_of_its_parts_instead_of_probing() -> None:
    """``hasattr``, ``getattr`` with a default and runtime protocols are for objects of other packages."""
    foreign = {
        "agentrl.engines.forward": "models of transformers differ by architecture",
        "agentrl.engines.local": "models of transformers differ by architecture",
        "agentrl.learner.forward": "models of transformers differ by architecture",
        "agentrl.learner.learner": "layers of peft",
        "agentrl.learner.model": "models of transformers differ by architecture",
        "agentrl.env.gym_text": "spaces of gymnasium",
        "agentrl.hosts.process": "an error's class by its name",
        "agentrl.options": "any dataclass or function is described",
        "agentrl.plugins": "any module is searched for an attribute",
        "agentrl.recipe.load": "any file is searched for a recipe",
        "agentrl.recipe.check": "an environment may have forgotten its max_turns",
        "agentrl.commands.doctor": "what the operating system offers",
    }
    offenders = defaultdict(list)
    for name in modules():
        if not name.startswith("agentrl.") or name.startswith("agentrl.testing"):
            continue
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.Name) and node.id == "runtime_checkable":
                offenders[name].append("runtime_checkable")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                probes = node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3)
                if probes:
                    offenders[name].append(f"line {node.lineno}")
    assert not {name: found for name, found in offenders.items() if name not in foreign}
    assert set(foreign) <= set(offenders), "a module is listed here that probes nothing any more"


def test_nothing_in_the_core_asks_for_an_algorithm_by_name() -> None:
    offenders = []
    for name in modules():
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.Compare) and name.startswith("agentrl."):
                names = [
                    operand.id for operand in (node.left, *node.comparators) if isinstance(operand, ast.Name)
                ]
                if {"algorithm", "adv_estimator", "loss_type", "algo"} & set(names):
                    offenders.append(name)
    assert not offenders


def test_tests_import_helpers_from_helpers() -> None:
    offenders = [
        (path.name, dotted)
        for path in sorted((ROOT / "tests").glob("*.py"))
        for dotted in used(ast.parse(path.read_text()))
        if dotted.startswith("test_")
    ]
    assert not offenders
