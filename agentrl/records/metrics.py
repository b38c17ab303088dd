"""Metrics: what they are called and mean, and where they are written.

A run folder keeps ``metrics.jsonl``, one JSON object per record: ``update``, ``stage``, then numbers in order of name. Two runs of one
recipe on one machine write the same bytes there. What cannot repeat (``time/``, ``machine/``, names that end in ``_s`` or ``_mib``) goes to
``timing.jsonl`` instead. A number that is not finite is written as null. Updates are numbered over all stages of a run.

Other places to write to are *sinks*: values that are opened at the first record and get the same records.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from agentrl.errors import CheckpointError, ConfigError, MissingExtra
from agentrl.records.files import replace, writing

METRICS: Mapping[str, str] = {
    # read off the episodes; means over episodes unless it says otherwise, failed ones never among them
    "rollout/episodes": "episodes that ended by themselves or by a limit",
    "rollout/groups": "groups, one per task",
    "rollout/attempts": "episodes that were started, failed ones included",
    "rollout/failed": "attempts in which the environment, sandbox or policy broke",
    "rollout/success": "share of episodes that solved their task",
    "rollout/return": "sum of the environment's own rewards",
    "rollout/turns": "turns",
    "rollout/tokens": "sampled tokens",
    "rollout/prompt_tokens": "tokens of context that were not sampled",
    "rollout/invalid": "share of turns whose action the environment refused",
    "rollout/entropy": "negative log-probability of sampled tokens, in nats, mean over tokens: an estimate of the policy's entropy",
    "rollout/repetition": "share of turns after the first whose action was said before in the same episode",
    "rollout/clipped": "share of actions that the token limit ended",
    "rollout/truncated": "share of episodes that a limit ended",
    "rollout/context_full": "share of episodes that the context's length ended",
    "rollout/staleness_mean": "updates between the weights that acted and those that learn, mean over actions",
    "rollout/staleness_max": "the same, largest",
    "rollout/logprob_gap": "largest difference, in nats, between the sampler's and the learner's log-probability of a token",
    "reward/return": "sum of the ledger over an episode",
    "reward/*": "sum over an episode of one component of the ledger",
    "credit/advantage_mean": "advantage, mean over action tokens",
    "credit/advantage_std": "advantage, standard deviation over action tokens",
    "credit/zero_variance": "share of groups of two or more whose episodes were all paid the same: nothing to learn from",
    "credit/explained_variance": "share of the variance of the critic's targets that its values explain",
    # measured by the learner
    "learner/loss": "the loss, mean over optimiser steps",
    "learner/value_loss": "the critic's loss, mean over optimiser steps",
    "learner/observation_nll": "negative log-likelihood of the context's tokens, in nats, mean over optimiser steps",
    "learner/grad_norm": "gradient norm before clipping, mean over optimiser steps",
    "learner/lr": "learning rate",
    "learner/tokens": "tokens of the update's batch",
    "learner/action_tokens": "tokens of the batch that were sampled and are trained on",
    "learner/tokens_per_s": "tokens that went through the update per second of wall clock",
    "learner/logprob_gap": "largest difference, in nats, from the sampler's log-probabilities before the first step",
    "learner/*": "a measurement of a loss or regulariser, mean over action tokens",
    "judge/*": "questions to a judge: asked, answered from the cache, failed, late, over the budget; and episodes left unjudged",
    "guidance/*": "what a source did for groups that went badly: groups or episodes it was done for, and what it measured to decide",
    "lagrangian/*": "weight of a component that a constraint gives it; `_return`: what an episode was paid of it before, mean",
    "hypervolume/*": "`weight` of all rewards; `_return`: what an episode was paid of a component before, mean",
    "gate/*": "share of episodes that passed the gate of this component, and all above it",
    "monitor/*": "1 while a monitor sounds",
    "filter/*": "groups or episodes that a filter dropped",
    "scorer/*": "what a model that scores steps learns: `_loss`, `_pairs` it saw, `_accuracy` in telling them apart, `_grad_norm`",
    "sampler/*": "what a sampler that learns believes",
    "eval/*": "an evaluation's result: means over tasks of the panel; `_low` and `_high` are the ends of its 95% interval",
    # cannot repeat: kept apart
    "sandbox/*": "sandboxes since the start of the process: opened, from the pool, failed, retried, reaped, seconds to start (`_s`)",
    "time/*": "wall clock that a part of the update took, in seconds (`_s`)",
    "machine/*": "memory in MiB (`_mib`), processor and device load",
}
"""Every metric's name (``*`` stands for any ending) and meaning."""

_NAMES = re.compile(
    "|".join(
        "".join(".+" if part == "*" else re.escape(part) for part in re.split(r"(\*)", name))
        for name in METRICS
    )
)
_CANNOT_REPEAT = re.compile(r"(time|machine|sandbox)/.*|.*_(s|mib)")


def check_names(names: Sequence[str]) -> None:
    """Refuse metrics that the table does not explain.

    >>> check_names(["rollout/success", "learner/entropy"])
    >>> check_names(["rollout/succes"])
    Traceback (most recent call last):
    ...
    agentrl.errors.ConfigError: no metric is called 'rollout/succes'; add it to agentrl.records.metrics.METRICS with its unit and meaning
    """
    if unknown := [name for name in names if not _NAMES.fullmatch(name)]:
        raise ConfigError(
            f"no metric is called {', '.join(map(repr, unknown))}; add it to agentrl.records.metrics.METRICS with its unit and meaning"
        )


class Writer(Protocol):
    """An open sink."""

    def write(self, update: int, stage: str, values: Mapping[str, float]) -> None:
        """Take one record."""
        ...

    def close(self) -> None:
        """Flush and let go."""
        ...


class Sink(Protocol):
    """A configured place for metrics besides the run folder's own files: a frozen value."""

    def check(self) -> None:
        """Raise ``MissingExtra`` where its package is not installed; asked before any work."""
        ...

    def open(self, folder: Path, *, first_update: int) -> Writer:
        """Open it for the run in ``folder``; what it has of ``first_update`` and later is to be forgotten where it can forget.

        Raises:
            MissingExtra: its package is not installed.
        """
        ...


class MetricsLog:
    """The metrics of a run, held open: appends, flushes each record, and repairs what a kill left behind.

    Raises:
        CheckpointError: a line that is not the last one is no JSON.
        ConfigError: the folder cannot be written.
    """

    def __init__(self, folder: Path, sinks: Sequence[Sink] = ()) -> None:
        self._folder = folder
        self._sinks = tuple(sinks)
        self._writers: list[Writer] | None = None
        self._first_update = 0
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._files = {name: _Lines(folder / name) for name in ("metrics.jsonl", "timing.jsonl")}

    def write(self, update: int, stage: str, values: Mapping[str, float]) -> None:
        """Append a record.

        Raises:
            ConfigError: a name that ``METRICS`` does not explain, or a full disk.
        """
        check_names(list(values))
        numbers = {name: float(values[name]) for name in sorted(values)}
        timing = {name: value for name, value in numbers.items() if _CANNOT_REPEAT.fullmatch(name)}
        exact = {name: value for name, value in numbers.items() if name not in timing}
        for name, part in (("metrics.jsonl", exact), ("timing.jsonl", timing)):
            if part:
                self._files[name].append({"update": update, "stage": stage} | part)
        if self._writers is None:
            self._writers = [sink.open(self._folder, first_update=self._first_update) for sink in self._sinks]
        for writer in self._writers:
            writer.write(update, stage, numbers)

    def drop_after(self, update: int) -> None:
        """Forget what was recorded of updates later than ``update``, the last one committed (-1: none); before the first ``write``."""
        assert self._writers is None, "drop_after comes before the first write"
        self._first_update = update + 1
        for file in self._files.values():
            file.drop_after(update)

    def records(self) -> list[dict[str, Any]]:  # Any: update is an int, stage text, the rest floats
        """Return the records of ``metrics.jsonl`` so far, without values that were no finite numbers."""
        return [
            {name: value for name, value in record.items() if value is not None}
            for record in read_metrics(self._folder / "metrics.jsonl")
        ]

    def sync(self) -> None:
        """Make all records survive a power cut; a kill alone cannot lose them."""
        for file in self._files.values():
            file.sync()

    def close(self) -> None:
        """Close files and sinks."""
        for file in self._files.values():
            file.close()
        for writer in self._writers or ():
            writer.close()
        self._writers = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(
    path: Path,
) -> list[dict[str, Any]]:  # Any: update is an int, stage text, the rest floats or None
    """Return the records of a ``metrics.jsonl`` or ``timing.jsonl``; a torn last line is left out.

    Raises:
        CheckpointError: another line is no JSON.
    """
    records = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            records.append(json.loads(line))
        except ValueError as problem:
            raise CheckpointError(
                f"line {number} of {path} is no JSON ({problem}); remove the line, or restore the file"
            ) from problem
    return records


class _Lines:
    """A file of JSON lines that is open for appending."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_file() and (kept := path.read_bytes()) and not kept.endswith(b"\n"):
            with path.open("r+b") as file:  # a kill in the middle of a line
                file.truncate(kept.rfind(b"\n") + 1)
        self._file = self._open()

    def _open(self) -> FileIO:
        with writing(self.path):
            return self.path.open(
                "ab", buffering=0
            )  # a record that was returned from is with the system: a kill cannot lose it

    def append(self, record: Mapping[str, object]) -> None:
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        line = json.dumps(finite, allow_nan=False).encode() + b"\n"
        with writing(self.path):
            while line:  # a disk that is nearly full takes a part
                line = line[self._file.write(line) :]

    def drop_after(self, update: int) -> None:
        records = read_metrics(self.path)
        kept = [record for record in records if record["update"] <= update]
        if len(kept) < len(records):
            self.close()
            replace(self.path, b"".join(json.dumps(record).encode() + b"\n" for record in kept))
            self._file = self._open()

    def sync(self) -> None:
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class TensorBoard:
    """Event files in ``<run>/tensorboard``, written without TensorBoard or torch."""

    def check(self) -> None:
        """Raise ``MissingExtra`` without tensorboardX."""
        _require("tensorboardX", "the TensorBoard sink", "train")

    def open(self, folder: Path, *, first_update: int) -> Writer:
        """Open the event file; records of ``first_update`` and later in older files are hidden."""
        self.check()
        from tensorboardX import SummaryWriter

        suffix = f".{time.time_ns()}"  # its own names tell apart seconds only: a quick resume would overwrite the file
        return _TensorBoardWriter(
            SummaryWriter(str(folder / "tensorboard"), purge_step=first_update, filename_suffix=suffix)
        )


@dataclass(frozen=True, slots=True)
class _TensorBoardWriter:
    events: Any  # tensorboardX has no types

    def write(self, update: int, stage: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.events.add_scalar(name, value, update)
        self.events.flush()

    def close(self) -> None:
        self.events.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class WandB:
    """Weights & Biases. A resumed run goes on under the same identifier, which is the run folder's name and a hash of its place."""

    project: str
    entity: str | None = None
    mode: str = "online"
    """``online``, or ``offline`` to keep the records in the run folder."""

    def check(self) -> None:
        """Raise ``MissingExtra`` without wandb."""
        _require("wandb", "the Weights & Biases sink", "wandb")

    def open(self, folder: Path, *, first_update: int) -> Writer:
        """Start or resume the run."""
        self.check()
        import wandb

        run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            dir=str(folder),
            name=folder.name,
            id=_identifier(folder),
            resume="allow",
        )
        return _WandBWriter(run)


@dataclass(frozen=True, slots=True)
class _WandBWriter:
    run: Any  # wandb is an optional package

    def write(self, update: int, stage: str, values: Mapping[str, float]) -> None:
        self.run.log({"stage": stage, **values}, step=update)

    def close(self) -> None:
        self.run.finish()


@dataclass(frozen=True, slots=True, kw_only=True)
class MLflow:
    """MLflow. A resumed run goes on in the same MLflow run, whose identifier the run folder keeps in ``mlflow_run``."""

    experiment: str
    tracking_uri: str = ""
    """A server; empty for MLflow's own default."""

    def check(self) -> None:
        """Raise ``MissingExtra`` without mlflow."""
        _require("mlflow", "the MLflow sink", "mlflow")

    def open(self, folder: Path, *, first_update: int) -> Writer:
        """Start or resume the run."""
        self.check()
        from mlflow import MlflowClient

        client = MlflowClient(self.tracking_uri or None)
        note = folder / "mlflow_run"
        if not note.exists():
            experiment = client.get_experiment_by_name(self.experiment)
            number = (
                client.create_experiment(self.experiment) if experiment is None else experiment.experiment_id
            )
            replace(note, client.create_run(number, run_name=folder.name).info.run_id.encode())
        return _MLflowWriter(client, note.read_text())


@dataclass(frozen=True, slots=True)
class _MLflowWriter:
    client: Any  # mlflow is an optional package
    run: str

    def write(self, update: int, stage: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run, name, value, step=update)

    def close(self) -> None:
        self.client.set_terminated(self.run)


def _identifier(folder: Path) -> str:
    """Return what names a run folder for good: the same after a resume, another in another place."""
    return f"{folder.name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"


def _require(package: str, what: str, extra: str) -> None:
    """Raise ``MissingExtra`` where ``package`` cannot be imported; does not import it."""
    try:
        found = importlib.util.find_spec(package)
    except ValueError:  # marked as absent in sys.modules
        found = None
    if found is None:
        raise MissingExtra(f"{what} needs {package}; pip install '.[{extra}]'")
