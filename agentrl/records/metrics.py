"""The files and services to which a run's metrics are written; ``metric_names`` lists the metrics.

A run folder holds ``metrics.jsonl`` with one JSON object per record: ``update``, ``stage``, then the numbers,
sorted by name. Two runs of one recipe on one machine write the same bytes to it. Metrics that cannot repeat
(``time/``, ``machine/``, ``sandbox/``, names that end in ``_s`` or ``_mib``) are written to ``timing.jsonl``
instead. A number that is not finite is written as null. Updates are numbered across all stages of a run.

A *sink* is another destination, such as TensorBoard: a value of the recipe that is opened at the first record
and gets the same records.
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

from agentrl.errors import CheckpointError, MissingExtra
from agentrl.records.files import replace, writing
from agentrl.records.metric_names import check_names

_CANNOT_REPEAT = re.compile(r"(time|machine|sandbox)/.*|.*_(s|mib)")


class OpenSink(Protocol):
    """A metric sink that is open for writing."""

    def write(self, update: int, stage: str, values: Mapping[str, float]) -> None:
        """Write one record: the metrics ``values`` of an update, by name."""
        ...

    def close(self) -> None:
        """Flush and close the sink."""
        ...


class MetricSink(Protocol):
    """A destination for metrics besides the files of the run folder, as a frozen value of the recipe."""

    def check(self) -> None:
        """Raise ``MissingExtra`` if the sink's package is not installed; called before any work."""
        ...

    def open(self, folder: Path, *, first_update: int) -> OpenSink:
        """Open the sink for the run in ``folder``.

        Records of ``first_update`` and later updates that the sink already holds are discarded, if the
        service supports that.

        Raises:
            MissingExtra: the sink's package is not installed.
        """
        ...


class MetricsLog:
    """The open metric files and sinks of a run.

    Every record is flushed. If a kill cut the last line of a file short, that line is removed when the file
    is opened.

    Raises:
        ConfigError: the folder cannot be written.
    """

    def __init__(self, folder: Path, sinks: Sequence[MetricSink] = ()) -> None:
        self._folder = folder
        self._sinks = tuple(sinks)
        self._open_sinks: list[OpenSink] | None = None
        self._first_update = 0
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._files = {name: _Lines(folder / name) for name in ("metrics.jsonl", "timing.jsonl")}

    def write(self, update: int, stage: str, values: Mapping[str, float]) -> None:
        """Append the metrics of an update to the files and sinks.

        Raises:
            ConfigError: ``METRICS`` does not list a name, or the disk is full.
        """
        check_names(list(values))
        numbers = {name: float(values[name]) for name in sorted(values)}
        timing = {name: value for name, value in numbers.items() if _CANNOT_REPEAT.fullmatch(name)}
        exact = {name: value for name, value in numbers.items() if name not in timing}
        for name, part in (("metrics.jsonl", exact), ("timing.jsonl", timing)):
            if part:
                self._files[name].append({"update": update, "stage": stage} | part)
        if self._open_sinks is None:
            self._open_sinks = [
                sink.open(self._folder, first_update=self._first_update) for sink in self._sinks
            ]
        for sink in self._open_sinks:
            sink.write(update, stage, numbers)

    def drop_after(self, update: int) -> None:
        """Remove the records of updates later than ``update``, the last one committed (-1: remove all).

        Must be called before the first ``write``.

        Raises:
            CheckpointError: a line other than the last one is not JSON.
        """
        assert self._open_sinks is None, "drop_after must be called before the first write"
        self._first_update = update + 1
        for file in self._files.values():
            file.drop_after(update)

    def records(self) -> list[dict[str, Any]]:  # Any: update is an int, stage text, the rest floats
        """Return the records of ``metrics.jsonl`` so far, without the numbers that were not finite."""
        return [
            {name: value for name, value in record.items() if value is not None}
            for record in read_metrics(self._folder / "metrics.jsonl")
        ]

    def sync(self) -> None:
        """Make all records survive a power cut; they survive a kill of the process even without this call."""
        for file in self._files.values():
            file.sync()

    def close(self) -> None:
        """Close the files and sinks."""
        for file in self._files.values():
            file.close()
        for sink in self._open_sinks or ():
            sink.close()
        self._open_sinks = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(
    path: Path,
) -> list[dict[str, Any]]:  # Any: update is an int, stage text, the rest floats or None
    """Return the records of a ``metrics.jsonl`` or ``timing.jsonl``; an incomplete last line is left out.

    Raises:
        CheckpointError: a line other than the last one is not JSON.
    """
    records = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            records.append(json.loads(line))
        except ValueError as problem:
            raise CheckpointError(
                f"line {number} of {path} is not JSON ({problem}); remove the line, or restore the file"
            ) from problem
    return records


class _Lines:
    """A file of JSON lines, open for appending. An incomplete last line is removed on opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_file() and (kept := path.read_bytes()) and not kept.endswith(b"\n"):
            with path.open("r+b") as file:  # a kill in the middle of a line
                file.truncate(kept.rfind(b"\n") + 1)
        self._file = self._open()

    def _open(self) -> FileIO:
        with writing(self.path):
            return self.path.open("ab", buffering=0)  # unbuffered, so that a kill loses no appended record

    def append(self, record: Mapping[str, object]) -> None:
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        line = json.dumps(finite, allow_nan=False).encode() + b"\n"
        with writing(self.path):
            while line:  # a nearly full disk accepts only a part of the line
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
        """Raise ``MissingExtra`` if tensorboardX is not installed."""
        _require("tensorboardX", "the TensorBoard sink", "train")

    def open(self, folder: Path, *, first_update: int) -> OpenSink:
        """Open a new event file; records of ``first_update`` and later in older files are hidden."""
        self.check()
        from tensorboardX import SummaryWriter

        # The package's own file names count whole seconds, so a quick resume would overwrite the file.
        suffix = f".{time.time_ns()}"
        return _OpenTensorBoard(
            SummaryWriter(str(folder / "tensorboard"), purge_step=first_update, filename_suffix=suffix)
        )


@dataclass(frozen=True, slots=True)
class _OpenTensorBoard:
    events: Any  # tensorboardX has no types

    def write(self, update: int, stage: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.events.add_scalar(name, value, update)
        self.events.flush()

    def close(self) -> None:
        self.events.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class WandB:
    """Weights & Biases. A resumed run keeps its identifier: the run folder's name and a hash of its path."""

    project: str
    entity: str | None = None
    mode: str = "online"
    """``online``, or ``offline`` to keep the records in the run folder."""

    def check(self) -> None:
        """Raise ``MissingExtra`` if wandb is not installed."""
        _require("wandb", "the Weights & Biases sink", "wandb")

    def open(self, folder: Path, *, first_update: int) -> OpenSink:
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
        return _OpenWandB(run)


@dataclass(frozen=True, slots=True)
class _OpenWandB:
    run: Any  # wandb is an optional package

    def write(self, update: int, stage: str, values: Mapping[str, float]) -> None:
        self.run.log({"stage": stage, **values}, step=update)

    def close(self) -> None:
        self.run.finish()


@dataclass(frozen=True, slots=True, kw_only=True)
class MLflow:
    """MLflow. A resumed run continues the same MLflow run, whose identifier is in the file ``mlflow_run``."""

    experiment: str
    tracking_uri: str = ""
    """Address of an MLflow server; if it is empty, MLflow's default is used."""

    def check(self) -> None:
        """Raise ``MissingExtra`` if mlflow is not installed."""
        _require("mlflow", "the MLflow sink", "mlflow")

    def open(self, folder: Path, *, first_update: int) -> OpenSink:
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
        return _OpenMLflow(client, note.read_text())


@dataclass(frozen=True, slots=True)
class _OpenMLflow:
    client: Any  # mlflow is an optional package
    run: str

    def write(self, update: int, stage: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run, name, value, step=update)

    def close(self) -> None:
        self.client.set_terminated(self.run)


def _identifier(folder: Path) -> str:
    """Return an identifier that stays the same when a run is resumed and differs between run folders."""
    return f"{folder.name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"


def _require(package: str, what: str, extra: str) -> None:
    """Raise ``MissingExtra`` if ``package`` is not installed; does not import it."""
    try:
        found = importlib.util.find_spec(package)
    except ValueError:  # its entry in sys.modules is None
        found = None
    if found is None:
        raise MissingExtra(f"{what} needs {package}; pip install '.[{extra}]'")
