"""Clauses on an environment's spec and its tasks: what can be checked without playing an episode."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping

from agentrl.env import STANDARD_SIGNALS, EnvSpec, panel_hash
from agentrl.errors import ConfigError
from agentrl.testing.contract import Violation, value_violations

LIST_TASKS = """
import json, pickle, sys
sys.path[:] = {path!r}
from agentrl.env import panel_hash
spec = pickle.loads({spec!r})
print()
print(json.dumps({{split: panel_hash(spec.tasks(split)) for split in spec.splits}}))
"""


def spec_violations(spec: EnvSpec) -> Iterator[Violation]:
    """Yield the violated clauses on the spec itself."""
    kind = type(spec)
    yield from value_violations(spec)
    if kind.__module__ == "__main__":
        yield (
            "importable",
            f"{kind.__name__} is defined in the program itself, where no worker can import it; "
            "move it to a module",
        )
    max_turns = getattr(spec, "max_turns", None)
    if not isinstance(max_turns, int) or max_turns < 1:
        yield "max_turns", f"must be a whole number of at least 1, found {max_turns!r}"
    for name in STANDARD_SIGNALS:
        if name not in spec.signals:
            yield "signals", f"the standard signal {name!r} is not declared; start from STANDARD_SIGNALS"
    for name, meaning in spec.signals.items():
        if not meaning.strip():
            yield "signals", f"signal {name!r} has no meaning written beside it"


def panel_violations(spec: EnvSpec, *, elsewhere: bool, deadline_s: float) -> Iterator[Violation]:
    """Yield the violated clauses on splits and tasks.

    If ``elsewhere``, also check that another process lists the same tasks, within ``deadline_s``.
    """
    where: dict[str, str] = {}
    contents: dict[str, str] = {}
    hashes: dict[str, str] = {}
    if not spec.splits:
        yield "splits", "the environment has none"
    spec.prepare(lambda what, done, total: None)
    for split in spec.splits:
        tasks = spec.tasks(split)
        if not tasks:
            yield "tasks", f"split {split!r} is empty"
            continue
        if list(spec.tasks(split)) != list(tasks):
            yield "same tasks", f"split {split!r} lists other tasks, or another order, the second time"
        for task in tasks:
            if (
                not task.id
                or where.setdefault(task.id, split) != split
                or len({task.id for task in tasks}) < len(tasks)
            ):
                yield "task ids", f"{task.id!r} of split {split!r} is empty or not unique"
                break
            try:
                content = json.dumps(task.data, sort_keys=True, allow_nan=False) + repr(task.sandbox)
            except (TypeError, ValueError) as problem:
                yield "task data", f"the data of {task.id!r} is not JSON: {problem}"
                break
            if contents.setdefault(content, split) != split:
                yield (
                    "disjoint splits",
                    f"{task.id!r} of split {split!r} has the same data as a task of split "
                    f"{contents[content]!r}",
                )
                break
        else:
            hashes[split] = panel_hash(tasks)
    if elsewhere:
        yield from _other_process(spec, hashes, deadline_s)
    try:
        spec.tasks("no such split")
    except ConfigError:
        pass
    else:
        yield "unknown split", "tasks('no such split') must raise ConfigError"


def _other_process(spec: EnvSpec, here: Mapping[str, str], deadline_s: float) -> Iterator[Violation]:
    """Check that another process, with another hash seed, lists the same tasks."""
    code = LIST_TASKS.format(path=sys.path, spec=pickle.dumps(spec))
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    try:
        ran = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=deadline_s,
        )
    except subprocess.TimeoutExpired:
        yield "importable", f"another process did not list the tasks within {deadline_s:g} s"
        return
    if ran.returncode != 0:
        yield (
            "importable",
            f"another process cannot list the tasks: {(ran.stderr.strip().splitlines() or ['it died'])[-1]}",
        )
        return
    there = json.loads(ran.stdout.splitlines()[-1])
    for split in here:
        if here[split] != there[split]:
            yield (
                "same tasks",
                f"split {split!r} lists other tasks in another process; is something ordered by hash, time "
                "or chance?",
            )
