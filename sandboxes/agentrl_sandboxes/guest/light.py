"""What the guest takes straight from the interpreter's own C modules, because the modules around them are dear.

Importing ``json``, ``signal`` and ``collections`` (and ``re``, ``enum`` and ``functools`` with them) would take a quarter of a start's
processor time, and nearly two megabytes of every idle sandbox.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections import deque
    from json.encoder import encode_basestring_ascii
    from json.scanner import make_scanner
    from typing import Any  # what JSON holds
else:
    try:
        import _signal as signal
        from _collections import deque
        from _json import encode_basestring_ascii, make_scanner
    except ImportError:  # another Python than CPython
        import signal
        from collections import deque
        from json.encoder import encode_basestring_ascii
        from json.scanner import make_scanner

__all__ = ["deque", "dumps", "loads", "signal"]


class _Plain:
    """What the scanner wants to know: JSON as it is."""

    strict, memo = False, {}  # type: ignore[var-annotated]
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float
    parse_object = parse_array = parse_string = None


def loads(text: str) -> Any:
    """Read JSON."""
    return make_scanner(_Plain)(text, 0)[0]  # type: ignore[arg-type]  # it only looks at the attributes


def dumps(value: object) -> str:
    """Write texts, numbers, truths, nothing, and lists and dictionaries of these, as JSON."""
    if isinstance(value, str):
        return encode_basestring_ascii(value)
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(f"{encode_basestring_ascii(key)}: {dumps(item)}" for key, item in value.items())
            + "}"
        )
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(dumps, value)) + "]"
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or isinstance(value, bool)
        else repr(value)
    )
