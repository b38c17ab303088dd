"""agentrl: multi-turn environments in, trained agents out.

``import agentrl as rl`` gives the public names: ``rl.Recipe``, ``rl.Task``, ``rl.GRPO`` ... They are listed
once, in ``__init__.pyi``, where type checkers and editors find them. Importing the package loads none of
them: each is loaded from its module when it is first used.

To read the code, begin with ``types``, ``rollout`` and ``train``.
"""

__version__ = "0.1.0"

_homes: dict[str, str] = {}


def __getattr__(name: str) -> object:
    """Return the object with the public name ``name``, and import the module that defines it if needed."""
    if name.startswith("_") or name not in public_names():
        raise AttributeError(f"module 'agentrl' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_homes[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *public_names()})


def public_names() -> dict[str, str]:
    """Return the module from which each public name is loaded, by name, as ``__init__.pyi`` lists them."""
    if not _homes:
        import ast
        from pathlib import Path

        for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text()).body:
            if isinstance(node, ast.ImportFrom):
                _homes.update({alias.name: str(node.module) for alias in node.names})
    return _homes
