"""The house rules that hold the layers apart, read off the source itself."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOTS = {"agentrl": ROOT / "agentrl", "agentrl_environments": ROOT / "environments" / "agentrl_environments"}
ROOTS["agentrl_sandboxes"] = ROOT / "sandboxes" / "agentrl_sandboxes"
TORCH_ALLOWED = (
    "agentrl.learner.model",
    "agentrl.learner.batch",
    "agentrl.losses",
    "agentrl.learner",
    "agentrl.learner.checkpoint",
    "agentrl.engines",
)
PLUGIN_MAY_IMPORT = {
    "agentrl.errors",
    "agentrl.types",
    "agentrl.sandbox",
    "agentrl.env",
    "agentrl.env.gym_text",
}
MAX_DEPTH = 8


@cache
def modules() -> dict[str, Path]:
    found = {}
    for root, folder in ROOTS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((root, *parts))] = path
    return found


def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text())


def imports(name: str, *, top_level_only: bool = False) -> Iterator[str]:
    parsed = tree(name)
    nodes = parsed.body if top_level_only else ast.walk(parsed)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively; write the whole name"
            assert node.module
            yield node.module
            yield from (
                f"{node.module}.{alias.name}"
                for alias in node.names
                if f"{node.module}.{alias.name}" in modules()
            )


@cache
def below(name: str) -> frozenset[str]:
    targets = {
        target for target in imports(name, top_level_only=True) if target in modules() and target != name
    }
    return frozenset(target for target in targets if not name.startswith(target + "."))


def depths() -> dict[str, int]:
    order = TopologicalSorter(
        {name: below(name) for name in modules()}
    ).static_order()  # CycleError names the cycle
    found: dict[str, int] = {}
    for name in order:
        found[name] = max((1 + found[target] for target in below(name)), default=0)
    return found


def test_imports_form_no_cycle_and_are_not_deep() -> None:
    found = depths()
    deepest = max(found, key=lambda name: found[name])
    assert found[deepest] <= MAX_DEPTH, f"{deepest} is {found[deepest]} imports deep"


def test_torch_is_imported_only_where_tokens_are() -> None:
    offenders = [
        name
        for name in modules()
        if not name.startswith(TORCH_ALLOWED)
        and any(target.split(".")[0] in {"torch", "transformers", "peft"} for target in imports(name))
    ]
    assert not offenders


def test_plugins_import_only_the_contract() -> None:
    plugins = [name for name in modules() if name.startswith(("agentrl_environments", "agentrl_sandboxes"))]
    offenders = {
        name: sorted(extra)
        for name in plugins
        if not name.endswith(".cli")  # commands stand on top of all
        and (
            extra := {target for target in imports(name) if target.split(".")[0] == "agentrl"}
            - PLUGIN_MAY_IMPORT
            - {"agentrl"}
        )
    }
    assert not offenders


@pytest.mark.parametrize("name", sorted(modules()))
def test_modules_and_functions_stay_small(name: str) -> None:
    assert len(modules()[name].read_text().splitlines()) < 400
    for node in ast.walk(tree(name)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, (
                f"{name}.{node.name} has {node.end_lineno - node.lineno + 1} lines"
            )


def test_importing_agentrl_is_light_and_silent() -> None:
    code = (
        "import sys, agentrl, agentrl.types, agentrl.env, agentrl.policy, agentrl.rollout, agentrl.plugins\n"
        "heavy = {'torch', 'transformers', 'ray', 'vllm', 'docker', 'textworld', 'pyarrow', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_every_module_says_what_it_is_for() -> None:
    assert not [
        name
        for name in modules()
        if modules()[name].read_text().strip() and not ast.get_docstring(tree(name))
    ]


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
