"""Replacements for expensive standard modules, taken directly from the interpreter's C modules.

Importing ``json``, ``signal`` and ``collections`` (and with them ``re``, ``enum`` and ``functools``) would
take a quarter of the processor time of a sandbox's start, and almost two megabytes of every idle sandbox.
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
    except ImportError:  # a Python other than CPython
        import signal
        from collections import deque
        from json.encoder import encode_basestring_ascii
        from json.scanner import make_scanner

__all__ = ["deque", "dumps", "loads", "signal"]


class _ScannerOptions:
    """The attributes that ``make_scanner`` reads; these values make it read standard JSON."""

    strict, memo = False, {}  # type: ignore[var-annotated]
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float
    parse_object = parse_array = parse_string = None


def loads(text: str) -> Any:
    """Parse JSON."""
    return make_scanner(_ScannerOptions)(text, 0)[0]  # type: ignore[arg-type]  # it only reads the attributes


def dumps(value: object) -> str:
    """Return strings, numbers, booleans, ``None``, and lists and dictionaries of these, as JSON."""
    if isinstance(value, str):
        return encode_basestring_ascii(value)
    if isinstance(value, dict):
        pairs = (f"{encode_basestring_ascii(key)}: {dumps(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(dumps, value)) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)
