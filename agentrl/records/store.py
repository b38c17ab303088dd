"""Trajectories on disk: Parquet, one row per turn, exact enough to be scored, credited and trained on again.

A run keeps ``trajectories/update=000037/part-0.parquet``. Each file is whole or absent, its pages carry
checksums, and what is read back equals what was written. Any Parquet reader opens it. The update is in the
folder's name, not in a column:

```python
pandas.read_parquet("runs/demo/trajectories")  # `update` becomes a categorical
duckdb.sql(
    "select update, avg(success::int) "
    "from read_parquet('runs/demo/trajectories/*/*.parquet', hive_types = {'update': int}) "  # else text
    "where turn = num_turns - 1 group by update order by update"
)
```

``episode`` (its position in the file) and ``turn`` identify a row. ``task`` and ``sample`` identify the
episode in the run; a failed attempt (``group_index`` -1) has the same two as the attempt that replaced it. An
episode without a turn is one row with turn -1. Task data is on an episode's first row, ``error`` and
``final`` are on its last. Text that is not valid Unicode (lone surrogates) is stored with those characters
escaped; all else is exact.

Files carry the version of their format. Every version that was ever written can be read (``READERS``).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from agentrl.errors import CheckpointError
from agentrl.records.files import replace, sync_folder
from agentrl.records.schema import ARRAYS, REPEATED, SCHEMA
from agentrl.types import (
    NEEDS,
    Action,
    Credited,
    End,
    FloatArray,
    Ledger,
    Measured,
    Message,
    Observation,
    SandboxSpec,
    Scored,
    Task,
    Trajectory,
    Turn,
    floats,
    ints,
)

Row = dict[str, Any]  # one Parquet row: values of many types, their names and types given by SCHEMA


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A trajectory as it was stored.

    ``scored`` and ``credited`` are ``None`` if it was not yet paid or credited.
    """

    update: int
    stage: str
    group: int
    trajectory: Trajectory
    scored: Scored | None = None
    credited: Credited | None = None


def trajectory_path(run: Path, update: int, part: int = 0) -> Path:
    """Return where a run keeps the trajectories of an update.

    >>> trajectory_path(Path("runs/demo"), 37).as_posix()
    'runs/demo/trajectories/update=000037/part-0.parquet'
    """
    return run / "trajectories" / f"update={update:06d}" / f"part-{part}.parquet"


def write_trajectories(
    path: Path,
    groups: Sequence[Sequence[Scored | Trajectory]],
    credited: Sequence[Sequence[Credited]] | None = None,
    *,
    update: int,
    stage: str,
    failures: Sequence[Trajectory] = (),
) -> None:
    """Write the trajectories of an update, scored or bare, and its failed attempts; atomically.

    ``credited`` holds the credit of each trajectory, in the order of ``groups``.

    Raises:
        ConfigError: the disk is full or the folder not writable; no file is left behind then.
    """
    rows: list[Row] = []
    episode = 0
    for number, group in enumerate(groups):
        for place, item in enumerate(group):
            credit = credited[number][place] if credited is not None else None
            rows += _rows(item, credit, {"stage": stage, "episode": episode, "group_index": number})
            episode += 1
    for failure in failures:
        rows += _rows(failure, None, {"stage": stage, "episode": episode, "group_index": -1})
        episode += 1
    header = json.dumps({"format": FORMAT, "update": update})
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({"agentrl": header}))
    buffer = pa.BufferOutputStream()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        compression_level=3,
        use_dictionary=REPEATED,
        use_byte_stream_split=[f"{name}.list.element" for name in ARRAYS[2:]],
        write_page_checksum=True,  # without them one flipped byte reads as another number
    )
    replace(path, buffer.getvalue().to_pybytes())


def read_trajectories(path: Path, *, verify: bool = True) -> list[Stored]:
    """Read back one file, in the order it was written. ``verify`` checks every page against its checksum.

    Raises:
        CheckpointError: the file is missing, torn, altered, or not a trajectory file of ours.
    """
    try:
        table = pq.ParquetFile(path, page_checksum_verification=verify).read()
        header = json.loads((table.schema.metadata or {}).get(b"agentrl", b"{}"))
    except FileNotFoundError as problem:
        raise CheckpointError(
            f"no trajectory file at {path}; check the run folder and the update"
        ) from problem
    except (
        OSError,
        ValueError,
        pa.ArrowException,
    ) as problem:  # a flipped byte may also break the text of the header
        raise CheckpointError(
            f"the trajectory file {path} is torn or altered ({problem}); delete it, or restore it from a "
            "copy: the others can be read"
        ) from problem
    read = READERS.get(header.get("format"))
    if read is None or "update" not in header:
        raise CheckpointError(
            f"{path} is not a trajectory file of a known version (format {header.get('format')}; agentrl "
            f"reads {', '.join(map(str, READERS))}); read it with the version that wrote it"
        )
    if not table.schema.equals(SCHEMA):
        raise CheckpointError(f"{path} does not have the columns of its format; restore it from a copy")
    return read(table, header["update"])


def _read_1(table: pa.Table, update: int) -> list[Stored]:
    """Return the episodes of a file of format 1."""
    rows = table.drop_columns(list(ARRAYS)).to_pylist()
    for name in ARRAYS:  # as arrays, not as lists of numbers: ten times faster
        for row, scalar in zip(rows, table.column(name), strict=True):
            row[name] = scalar.values.to_numpy(zero_copy_only=False) if scalar.is_valid else None
    return [_stored(list(episode), update) for _, episode in groupby(rows, key=lambda row: row["episode"])]


READERS: Mapping[int, Callable[[pa.Table, int], list[Stored]]] = {1: _read_1}
"""For each format, the function that reads a file's table; a format that was ever written stays readable."""
FORMAT = max(READERS)
"""Version of the format in which files are written."""


def iter_trajectories(run: Path, *, verify: bool = True) -> Iterator[Stored]:
    """Read back a whole run, update after update."""
    for path in sorted((run / "trajectories").glob("update=*/part-*.parquet")):
        yield from read_trajectories(path, verify=verify)


def drop_trajectories_after(run: Path, update: int) -> None:
    """Remove what a killed run stored of updates later than ``update``; they are played again."""
    folder = run / "trajectories"
    late = [
        path
        for path in folder.glob("update=*")
        if (found := re.fullmatch(r"update=(\d+)", path.name)) and int(found[1]) > update
    ]
    for path in late:
        shutil.rmtree(path)
    if late:
        sync_folder(folder)


def _rows(item: Scored | Trajectory, credit: Credited | None, keys: Row) -> list[Row]:
    """Return the rows of one episode."""
    scored = item if isinstance(item, Scored) else None
    trajectory = item.trajectory if isinstance(item, Scored) else item
    num_turns = len(trajectory.turns)
    keys = keys | {
        "task": _text(trajectory.task.id),
        "sample": trajectory.sample,
        "num_turns": num_turns,
        "success": trajectory.success,
        "ended": str(trajectory.end),
        "error": "",
    }
    per_token = _per_token(scored, credit)
    start, rows = 0, []
    for number, turn in enumerate(trajectory.turns):
        end = start + len(turn.action.tokens)
        row = (
            keys
            | _turn_row(turn)
            | {name: array[start:end] for name, array in per_token.items()}
            | {"turn": number}
        )
        if scored is not None:
            row["ledger"] = [(name, float(paid[number])) for name, paid in scored.ledger.items()]
        if credit is not None and end > start:
            row["advantage"] = float(np.mean(credit.advantages_T[start:end], dtype=np.float64))
        rows.append(row)
        start = end
    if not rows:
        rows.append(
            keys
            | per_token
            | {"turn": -1, "ledger": None if scored is None else [(name, 0.0) for name in scored.ledger]}
        )
    rows[0]["task_data"] = json.dumps(trajectory.task.data, default=list)
    rows[0]["task_sandbox"] = (
        None if trajectory.task.sandbox is None else json.dumps(asdict(trajectory.task.sandbox))
    )
    rows[-1]["error"] = _text(trajectory.error)
    rows[-1]["final"] = None if trajectory.final is None else _observation_row(trajectory.final)
    return rows


def _per_token(scored: Scored | None, credit: Credited | None) -> dict[str, FloatArray]:
    """Return every array with one number per action token, ``[T]``, that exists, by its column."""
    arrays: dict[str, FloatArray | None] = {}
    if scored is not None:
        arrays |= {need: scored.measured.get(need) for need in NEEDS}
    if credit is not None:
        arrays |= {"advantages": credit.advantages_T, "targets": credit.targets_T}
    return {name: array for name, array in arrays.items() if array is not None}


def _turn_row(turn: Turn) -> Row:
    action = turn.action
    return _observation_row(turn.observation) | {
        "action": _text(action.text),
        "prompt_tokens": action.prompt,
        "tokens": action.tokens,
        "logprobs": action.logprobs,
        "version": action.version,
        "fresh": action.fresh,
        "clipped": action.clipped,
        "reward": float(turn.reward),
        "info": [(_text(name), float(value)) for name, value in turn.info.items()],
        "duration_s": turn.duration_s,
    }


def _observation_row(observation: Observation) -> Row:
    return {
        "messages": [
            {"role": m.role, "content": _text(m.content), "images": list(m.images)}
            for m in observation.messages
        ],
        "actions": [_text(action) for action in observation.actions],
        "plan": [_text(action) for action in observation.plan],
    }


def _text(text: str) -> str:
    """Return ``text`` with the characters that UTF-8 cannot hold escaped."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _sandbox(stored: dict[str, Any]) -> SandboxSpec:
    return SandboxSpec(**stored | {"writable": tuple(stored["writable"])})


def _stored(rows: list[Row], update: int) -> Stored:
    """Return the episode that ``rows`` describe."""
    first, last = rows[0], rows[-1]
    turns = tuple(_turn(row) for row in rows if row["turn"] >= 0)
    sandbox = None if first["task_sandbox"] is None else _sandbox(json.loads(first["task_sandbox"]))
    trajectory = Trajectory(
        task=Task(first["task"], json.loads(first["task_data"]), sandbox),
        turns=turns,
        end=End(last["ended"]),
        sample=first["sample"],
        error=last["error"],
        final=None if last["final"] is None else _observation(last["final"]),
    )
    scored = credited = None
    if first["ledger"] is not None:
        measured = Measured(**{need: _joined(rows, need) for need in NEEDS})
        scored = Scored(trajectory, _ledger(rows, turns), measured)
    if (advantages := _joined(rows, "advantages")) is not None:
        credited = Credited(advantages, _joined(rows, "targets"))
    return Stored(update, first["stage"], first["group_index"], trajectory, scored, credited)


def _ledger(rows: list[Row], turns: tuple[Turn, ...]) -> Ledger:
    paid = [dict(row["ledger"]) for row in rows]
    return {name: floats([row[name] for row in paid] if turns else ()) for name in paid[0]}


def _joined(rows: list[Row], column: str) -> FloatArray | None:
    """Return the episode's numbers in ``column``, one per action token, ``[T]``; ``None`` if not stored."""
    if rows[0][column] is None:
        return None
    return floats(np.concatenate([row[column] for row in rows]))


def _turn(row: Row) -> Turn:
    action = Action(
        text=row["action"],
        prompt=ints(row["prompt_tokens"]),
        tokens=ints(row["tokens"]),
        logprobs=floats(row["logprobs"]),
        version=row["version"],
        fresh=row["fresh"],
        clipped=row["clipped"],
    )
    return Turn(_observation(row), action, row["reward"], dict(row["info"]), row["duration_s"])


def _observation(row: Mapping[str, Any]) -> Observation:  # a struct out of Parquet
    messages = tuple(Message(m["role"], m["content"], tuple(m["images"])) for m in row["messages"])
    return Observation(messages, tuple(row["actions"]), tuple(row["plan"]))
