"""The run folder: it is locked by one process, and belongs to the recipe that it was started with.

``recipe.json`` describes the recipe with the names of ``options.public_name``, and states the version of the
description. Descriptions of version 1 are converted to today's names before they are compared (``upgraded``):
a class that moved keeps its name, and classes that were renamed are listed here.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from agentrl.errors import CheckpointError, ConfigError
from agentrl.options import differences, public_name
from agentrl.records.files import replace
from agentrl.types import Json

FORMAT = 2
"""Version of ``recipe.json``. Version 1 named classes by their modules and did not state its version."""

_RENAMED = {
    "agentrl.credit.constant:Constant": "agentrl:ConstantCredit",
    "agentrl.credit.modifiers:Scale": "agentrl:ScaleAdvantages",
    "agentrl.credit.weights:Duration": "agentrl:DurationWeights",
    "agentrl.engines.spec:Local": "agentrl:TorchEngine",
    "agentrl.losses.divergences:Alpha": "agentrl:AlphaDivergence",
    "agentrl.losses.divergences:KeepFrom": "agentrl:Rehearsal",
    "agentrl.rewards.refine:Clip": "agentrl:ClipReward",
    "agentrl.rewards.refine:Delta": "agentrl:DeltaReward",
    "agentrl.rewards.refine:Ensemble": "agentrl:RewardEnsemble",
    "agentrl.rewards.refine:Overlong": "agentrl:OverlongPenalty",
    "agentrl.rewards.similarity:Cosine": "agentrl:CosineSimilarity",
    "agentrl.rewards.similarity:Shown": "agentrl:ObservedStates",
    "agentrl.rewards.similarity:likeness": "agentrl:state_similarity",
    "agentrl.rewards.similarity:trigrams": "agentrl:trigram_similarity",
}
"""Today's name of each class and function that version 1 knew by another name, by the old name."""
_RENAMED_FIELDS = {
    "agentrl:GiGPO": {"place": "state_key"},
    "agentrl:HGPO": {"place": "state_key"},
    "agentrl:Prefixes": {"traces": "solutions"},
}
"""For each class, today's names of the fields that version 1 knew by another name, by the old name."""
_NAME = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_][\w.<>]*)")


@contextmanager
def claimed(folder: Path, described: Json) -> Iterator[bool]:
    """Lock ``folder`` for this process, and check that it belongs to the recipe that ``described`` describes.

    Yields whether the folder is new. It is new until its manifest is written, because a process that was
    killed before then left nothing to resume.

    Raises:
        ConfigError: the folder is in use, is a file, or holds something other than a run.
        CheckpointError: the folder belongs to another recipe, or was written by a later version.
    """
    assert isinstance(described, Mapping), "a recipe is described by its fields"
    recorded = folder / "recipe.json"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"the run folder {folder} is a file; give another --out")
    if folder.exists() and any(folder.iterdir()) and not recorded.exists() and not (folder / "lock").exists():
        raise ConfigError(
            f"the folder {folder} exists and is not a run of agentrl; give another --out, or empty it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as busy:
            raise ConfigError(
                f"another process is using the run folder {folder}; "
                "wait for it, end it, or give another --out"
            ) from busy
        new = not (recorded.exists() and (folder / "manifest.json").exists())
        if new:
            replace(recorded, json.dumps({"format": FORMAT, **described}, indent=1).encode())
        elif changed := changes(recorded, described):
            raise CheckpointError(
                f"the run in {folder} was started with another recipe:\n"
                + "\n".join(f"  - {line}" for line in changed[:12])
                + "\nstart it with the recipe it had, or give another --out"
            )
        yield new


def changes(recorded: Path, described: Json) -> list[str]:
    """Return a line for each difference between a folder's ``recipe.json`` and the description ``described``.

    Raises:
        CheckpointError: the file is damaged, or was written by a later version.
    """
    try:
        before = json.loads(recorded.read_text())
        version = before.pop("format", 1)
    except (ValueError, AttributeError) as problem:
        raise CheckpointError(
            f"{recorded} is damaged ({problem}); restore it from a copy, or give another --out"
        ) from problem
    if version not in range(1, FORMAT + 1):
        raise CheckpointError(
            f"{recorded} has format {version}, and this agentrl reads formats 1 to {FORMAT}; "
            "use the version that wrote it"
        )
    before = upgraded(before) if version == 1 else before
    return list(differences(before, json.loads(json.dumps(described))))


def upgraded(described: Json) -> Json:
    """Return a description of version 1 with today's names.

    >>> upgraded({"class": "agentrl.credit.group:RLOO", "loss": "agentrl.losses.kl:k2", "own": "mine:Reward"})
    {'class': 'agentrl:RLOO', 'loss': 'agentrl:k2', 'own': 'mine:Reward'}
    """
    if isinstance(described, Mapping):
        renamed = _RENAMED_FIELDS.get(str(upgraded(described.get("class"))), {})
        return {renamed.get(key, key): upgraded(value) for key, value in described.items()}
    if isinstance(described, list):
        return [upgraded(value) for value in described]
    if isinstance(described, str) and (found := _NAME.fullmatch(described)):
        return _RENAMED.get(described) or public_name(found[1], found[2])
    return described
