"""A package skeleton for a new environment, which passes the conformance suite as it is."""

from __future__ import annotations

import keyword
import re
import string
import sys
from importlib.resources import files
from pathlib import Path

from agentrl.errors import ConfigError
from agentrl.plugins import environments

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
TEMPLATES = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    "{module}.py": "environment.py.txt",
    "tests/test_{module}.py": "test_environment.py.txt",
}


def new_environment(name: str, folder: Path) -> Path:
    """Write a package called ``name`` into ``folder / name`` and return that path.

    The package holds a module, its test, ``pyproject.toml`` and a README.

    Raises:
        ConfigError: the name is not valid for a package and module, or the name or folder is already in use.
    """
    module = name.replace("-", "_")
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"an environment's name is lower-case words joined by '-', such as 'word-chain'; found {name!r}"
        )
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or module in ("agentrl", "tests"):
        raise ConfigError(f"{name!r} would hide Python's or agentrl's own {module!r}; choose another name")
    if name in environments():
        raise ConfigError(f"an environment named {name!r} is already installed; choose another name")
    root = folder / name
    if root.exists():
        raise ConfigError(f"{root} already exists; choose another name or folder")
    words = {"name": name, "module": module, "Class": "".join(word.capitalize() for word in name.split("-"))}
    for path, template in TEMPLATES.items():
        file = root / path.format(module=module)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(render(template, words))
    return root


def render(template: str, words: dict[str, str]) -> str:
    """Return the template with its ``$name`` placeholders replaced by ``words``."""
    return string.Template((files("agentrl") / "templates" / template).read_text()).substitute(words)
