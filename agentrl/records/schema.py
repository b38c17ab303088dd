"""The columns of stored trajectories: their names, types and meaning."""

from __future__ import annotations

import pyarrow as pa

_TEXTS = pa.list_(pa.string())
_MESSAGES = pa.list_(
    pa.struct([("role", pa.string()), ("content", pa.string()), ("images", pa.list_(pa.binary()))])
)
_MAP = pa.map_(pa.string(), pa.float64())
_FLOATS = pa.list_(pa.float32())

SCHEMA = pa.schema(
    [
        # what identifies the row
        ("stage", pa.string()),  # sft, rl, evaluate ...
        ("episode", pa.int32()),  # place of the episode in this file
        # place of its group in the update; -1: a failed attempt that was played again
        ("group_index", pa.int32()),
        ("task", pa.string()),
        ("sample", pa.int32()),
        ("turn", pa.int32()),
        ("num_turns", pa.int32()),
        # the task, on the first row
        ("task_data", pa.string()),  # JSON
        ("task_sandbox", pa.string()),  # JSON
        # the observation
        ("messages", _MESSAGES),
        ("actions", _TEXTS),  # admissible ones
        ("plan", _TEXTS),
        # the action
        ("action", pa.string()),
        ("prompt_tokens", pa.list_(pa.int32())),  # context added since the last action
        ("tokens", pa.list_(pa.int32())),  # sampled
        ("logprobs", _FLOATS),  # nats, one per sampled token
        ("version", pa.int32()),
        ("fresh", pa.bool_()),
        ("clipped", pa.bool_()),
        # what came back
        ("reward", pa.float64()),
        ("info", _MAP),
        ("duration_s", pa.float64()),
        # what was made of it; null where it was not
        ("ledger", _MAP),
        ("advantage", pa.float64()),  # mean over the turn's tokens, for reading
        ("advantages", _FLOATS),
        ("targets", _FLOATS),
        ("values", _FLOATS),
        ("entropies", _FLOATS),
        ("old_logprobs", _FLOATS),
        ("ref_logprobs", _FLOATS),
        ("teacher_logprobs", _FLOATS),
        # how the episode ended; error and final on the last row
        ("success", pa.bool_()),
        ("ended", pa.string()),
        ("error", pa.string()),
        ("final", pa.struct([("messages", _MESSAGES), ("actions", _TEXTS), ("plan", _TEXTS)])),
    ]
)
ARRAYS = (
    "prompt_tokens",
    "tokens",
    "logprobs",
    "advantages",
    "targets",
    "values",
    "entropies",
    "old_logprobs",
    "ref_logprobs",
    "teacher_logprobs",
)
"""Columns that hold one array per row."""
REPEATED = ["stage", "task", "ended", "prompt_tokens.list.element", "tokens.list.element"]
"""Columns that Parquet stores with a dictionary, because their values repeat."""
