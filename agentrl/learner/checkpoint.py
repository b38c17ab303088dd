"""Checkpoints: complete or absent, verified when read, with a model folder that ``transformers`` can load.

```
000038/
  model/                a Hugging Face folder: config, weights (adapters merged), tokenizer
  learner.safetensors   value head, optimiser moments, reference weights; with adapters also the trained
                        weights, because the model folder holds them merged
  beside-*.safetensors  the same for each model that learns beside the policy
  learner.json          counts, and the run's own state (``extra``)
  MANIFEST.json         size and SHA-256 of every file
```

A checkpoint is written under a temporary name, synced to the disk and renamed, so a reader sees all of it or
nothing, whenever the writer is killed. Files are compared with the manifest before they are read, so a torn
or altered file is an error, not a wrong number.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from agentrl.errors import CheckpointError, ConfigError
from agentrl.learner.contract import Learner
from agentrl.records.files import sync_folder, writing
from agentrl.types import Json

FORMAT = 1
_MANIFEST = "MANIFEST.json"


def save(
    folder: Path,
    learner: Learner,
    tokenizer: PreTrainedTokenizerBase,
    extra: Mapping[str, Json],
    beside: Mapping[str, Learner] | None = None,
) -> None:
    """Write a checkpoint to ``folder``, which must not exist.

    ``extra`` is the run's own state, which ``restore`` returns; ``beside`` holds the models that learn beside
    the policy, by name.

    Raises:
        ConfigError: the disk is full or not writable; nothing is left of the checkpoint, and earlier ones are
            unchanged.
        CheckpointError: ``folder`` exists.
    """
    if folder.exists():
        raise CheckpointError(
            f"the checkpoint {folder} exists already, and checkpoints are never overwritten; "
            "remove it or give another name"
        )
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a writer that was killed
    try:
        with saving(folder):
            temporary.mkdir(parents=True)
            _write_files(temporary, learner, tokenizer, extra, beside or {})
            temporary.rename(folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def restore(folder: Path, learner: Learner, beside: Mapping[str, Learner] | None = None) -> dict[str, Json]:
    """Load the saved state into ``learner`` and the models of ``beside``.

    Returns the ``extra`` that was given to ``save``. To resume within a stage, call ``Learner.start`` first.

    Raises:
        CheckpointError: there is no checkpoint, or it is incomplete, altered, of a later version or of
            another model.
    """
    verify(folder)
    state = json.loads((folder / "learner.json").read_text())
    tensors = load_file(folder / "learner.safetensors")
    if not state["merged"]:
        tensors |= {
            f"model.{name}": weight
            for name, weight in read_weights(folder / "model").items()
            if name in learner.trained_names
        }
    try:
        learner.load_state_dict(tensors, state["numbers"])
        for name, other in (beside or {}).items():
            if name not in state["beside"]:
                raise ConfigError(f"it holds no state of {name!r}, which learns beside the policy")
            other.load_state_dict(load_file(folder / f"beside-{name}.safetensors"), state["beside"][name])
    except CheckpointError:
        raise
    except ConfigError as problem:
        raise CheckpointError(f"the checkpoint {folder} does not fit this recipe: {problem}") from problem
    return cast("dict[str, Json]", state["extra"])


def verify(folder: Path) -> None:
    """Compare every file of a checkpoint with its manifest.

    Raises:
        CheckpointError: a file is missing or altered, or ``folder`` is not a checkpoint; the message names
            the file and the remedy.
    """
    manifest_path = folder / _MANIFEST
    if not manifest_path.is_file():
        found = f"holds no {_MANIFEST}" if folder.is_dir() else "does not exist"
        raise CheckpointError(
            f"no checkpoint of agentrl at {folder}: the folder {found}; "
            "give a folder below a run's checkpoints/"
        )
    try:
        manifest = json.loads(manifest_path.read_text())
        version, files = manifest["format"], manifest["files"]
    except (ValueError, KeyError, TypeError) as problem:
        raise CheckpointError(f"the manifest of checkpoint {folder} is unreadable; {_MEND}") from problem
    if version != FORMAT:
        raise CheckpointError(
            f"the checkpoint {folder} has format {version}, and this agentrl reads format {FORMAT}; "
            "use the version that wrote it"
        )
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"the checkpoint {folder} lacks {name}; {_MEND}")
        if path.stat().st_size != entry["size"] or _digest(path) != entry["sha256"]:
            raise CheckpointError(f"{name} in the checkpoint {folder} is torn or was altered; {_MEND}")


def newest(checkpoints: Path, say: Callable[[str], None]) -> Path | None:
    """Return the newest intact checkpoint in a folder of checkpoints, or ``None`` if there is no checkpoint.

    Damaged checkpoints that are newer than it are renamed to ``torn-*``; ``say`` receives a line about each.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    found = sorted(checkpoints.glob("[0-9]*"), reverse=True)
    for place, path in enumerate(found):
        try:
            verify(path)
        except CheckpointError as torn:
            if path == found[-1]:
                raise
            say(f"resuming from an earlier checkpoint: {torn}")
            continue
        for newer in found[:place]:
            aside = checkpoints / f"torn-{newer.name}"
            shutil.rmtree(aside, ignore_errors=True)
            newer.rename(aside)
        return path
    return None


def tidy(checkpoints: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, and the incomplete ones that a killed process left."""
    for old in sorted(checkpoints.glob("[0-9]*"))[:-keep]:
        old.rename(checkpoints / f".{old.name}.old")  # hidden first, because a removal is not atomic
    for left in checkpoints.glob(".[0-9]*"):
        shutil.rmtree(left)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights in a Hugging Face model folder, by name."""
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    return weights


_MEND = "remove this checkpoint and resume from the one before it"


def _write_files(
    folder: Path,
    learner: Learner,
    tokenizer: PreTrainedTokenizerBase,
    extra: Mapping[str, Json],
    beside: Mapping[str, Learner],
) -> None:
    weights = learner.weights()
    tensors, numbers = learner.state_dict()
    merged = any(name.removeprefix("model.") not in weights for name in tensors if name.startswith("model."))
    if not merged:  # the model folder holds them already
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("model.")}
    tokenizer.save_pretrained(folder / "model")
    learner.save_model(folder / "model")
    _save(tensors, folder / "learner.safetensors")
    numbers_beside: dict[str, Json] = {}
    for name, other in beside.items():
        tensors, numbers_beside[name] = other.state_dict()
        _save(tensors, folder / f"beside-{name}.safetensors")
    state = {"numbers": numbers, "merged": merged, "extra": extra, "beside": numbers_beside}
    (folder / "learner.json").write_text(json.dumps(state, indent=1))
    files = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    manifest = {name: {"size": path.stat().st_size, "sha256": _digest(path)} for name, path in files.items()}
    (folder / _MANIFEST).write_text(json.dumps({"format": FORMAT, "files": manifest}, indent=1))
    for path in [*files.values(), folder / _MANIFEST]:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for inner in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync_folder(inner)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Raise errors of the disk in the block as ``files.writing`` does, with ``folder`` in the message.

    This includes errors of ``safetensors`` and ``tokenizers``, which report a full disk as a general
    exception whose text holds the number of the error.
    """
    with writing(folder):
        try:
            yield
        except (OSError, ConfigError):
            raise
        except Exception as problem:
            code = re.search(r"\(os error (\d+)\)", str(problem))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from problem
