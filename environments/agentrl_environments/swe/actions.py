"""Parses what an agent writes into a call: one call per action, in any of three forms.

Function calls, as in R2E-Gym, SkyRL and OpenHands. Thoughts may precede the call. The closing tag may be
missing, because some engines stop there. One line feed is removed at each end of a parameter:

    I should look at the parser first.
    <function=str_replace_editor>
    <parameter=command>view</parameter>
    <parameter=path>h11/_readers.py</parameter>
    <parameter=view_range>[1, 40]</parameter>
    </function>

One line, for models that are small or taught from demonstrations: a tool or an editor command, then its
arguments in order. An argument with spaces is quoted as in a shell, and may span lines. After ``bash`` comes
the command itself:

    view h11/_readers.py 1 40
    str_replace h11/_readers.py 'if x < 1:' 'if x <= 1:'
    bash python3 -m pytest -q

One fenced block that holds a command, as in mini-swe-agent:

    ```bash
    sed -n 1,40p h11/_readers.py
    ```

The names of R2E-Gym's tools and parameters (``execute_bash``, ``file_editor``, ``finish``, ``cmd``) are
understood, too.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Style = Literal["function", "line", "block"]
"""How an action is written: a function call, a one-line call, or a fenced block."""

PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "bash": ("command",),
    "view": ("path", "start", "end"),
    "create": ("path", "file_text"),
    "str_replace": ("path", "old_str", "new_str"),
    "insert": ("path", "insert_line", "new_str"),
    "undo_edit": ("path",),
    "search": ("search_term", "path"),
    "submit": (),
}
"""Names of the parameters of each tool, in the order in which a one-line call gives them."""
OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "view": ("start", "end"),
    "str_replace": ("new_str",),
    "search": ("path",),
}
EDITOR = ("view", "create", "str_replace", "insert", "undo_edit")
"""Commands of the editor, which is named ``str_replace_editor`` in function calls."""
_ALIASES = {
    "execute_bash": "bash",
    "file_editor": "str_replace_editor",
    "finish": "submit",
    "str_replace_based_edit_tool": "str_replace_editor",
}
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_FUNCTION = re.compile(r"<function=([\w-]+)>(.*?)(?=</function|<function=|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([\w-]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_FENCE = re.compile(r"^```(?:bash|sh|shell|mswea_bash_command)[ \t]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Call:
    """A tool and its arguments. All required arguments are present; optional arguments may be missing."""

    tool: str
    arguments: Mapping[str, str]


class InvalidAction(ValueError):
    """An action that is not a valid call. The message tells the agent why, and what would be valid."""


def parse(text: str, *, bash_only: bool = False) -> Call:
    """Return the call that an action means.

    >>> parse("view setup.py 1 20")
    Call(tool='view', arguments={'path': 'setup.py', 'start': '1', 'end': '20'})
    >>> parse("<function=execute_bash><parameter=cmd>ls</parameter></function>")
    Call(tool='bash', arguments={'command': 'ls'})

    Raises:
        InvalidAction: the text is not a call, is more than one call, or lacks an argument.
    """
    text = _THOUGHT.sub("", text).strip()
    if found := _FUNCTION.findall(text):
        if len(found) > 1:
            raise InvalidAction(
                f"found {len(found)} function calls; make one at a time and wait for its result"
            )
        call = _function(*found[0])
    elif blocks := _FENCE.findall(text):
        if len(blocks) > 1:
            raise InvalidAction(
                f"found {len(blocks)} command blocks; give one at a time and wait for its result"
            )
        call = Call("bash", {"command": blocks[0].strip("\n")})
    else:
        call = _line(text)
    if bash_only and call.tool != "bash":
        raise InvalidAction(f"there is no tool {call.tool!r} here; write one command, in a ```bash block")
    if call.tool == "bash" and ("\0" in call.arguments["command"] or not call.arguments["command"].strip()):
        raise InvalidAction("the command is empty or holds a NUL character")
    return call


def render(call: Call, style: Style) -> str:
    """Return a call as text that `parse` reads back.

    >>> render(Call("str_replace", {"path": "a.py", "old_str": "x = 1", "new_str": "x = 2"}), "line")
    "str_replace a.py 'x = 1' 'x = 2'"
    """
    tool, arguments = call.tool, call.arguments
    if tool == "bash" and style != "function":
        return f"bash {arguments['command']}" if style == "line" else f"```bash\n{arguments['command']}\n```"
    if style == "line":
        return " ".join(
            [tool, *(shlex.quote(arguments[name]) for name in PARAMETERS[tool] if name in arguments)]
        )
    if tool in EDITOR:
        ranged = (
            {"view_range": f"[{arguments['start']}, {arguments.get('end', -1)}]"}
            if "start" in arguments
            else {}
        )
        arguments = {
            "command": tool,
            **{name: arguments[name] for name in arguments if name not in ("start", "end")},
            **ranged,
        }
        tool = "str_replace_editor"
    short = ("command", "path", "insert_line", "view_range", "search_term")
    lines = [
        f"<parameter={name}>{value}</parameter>"
        if name in short and "\n" not in value
        else f"<parameter={name}>\n{value}\n</parameter>"
        for name, value in arguments.items()
    ]
    return "\n".join([f"<function={tool}>", *lines, "</function>"])


def _function(name: str, body: str) -> Call:
    tool = _ALIASES.get(name, name)
    arguments = dict(_PARAMETER.findall(body))
    if "<parameter=" in _PARAMETER.sub("", body):
        raise InvalidAction(f"a parameter of {name!r} is not closed; each needs </parameter>")
    if tool == "bash" and "cmd" in arguments:
        arguments["command"] = arguments.pop("cmd")
    if tool == "submit":
        arguments = {}  # R2E-Gym's finish takes a command and a result; they are ignored
    if tool == "str_replace_editor":
        tool = arguments.pop("command", "").strip()
        if tool not in EDITOR:
            raise InvalidAction(f"the editor has no command {tool!r}; its commands are {', '.join(EDITOR)}")
        if view := arguments.pop("view_range", "").strip("[] \n"):
            arguments |= dict(zip(("start", "end"), map(str.strip, view.split(",")), strict=False))
    return _checked(tool, arguments)


def _line(text: str) -> Call:
    name, _, rest = text.partition(" ") if "\n" not in text.partition(" ")[0] else text.partition("\n")
    if name not in PARAMETERS:
        raise InvalidAction(
            f"no call found; begin with one of {', '.join(PARAMETERS)}, or write <function=...>"
        )
    if name == "bash":
        return _checked(name, {"command": rest})
    try:
        words = shlex.split(rest)
    except ValueError as problem:
        raise InvalidAction(
            f"{name}: {str(problem).lower()}; put arguments with spaces into quotes"
        ) from None
    names = PARAMETERS[name]
    if len(words) > len(names):
        raise InvalidAction(
            f"{name} takes {', '.join(names) or 'no arguments'}, found {len(words)} arguments; "
            "put those with spaces into quotes"
        )
    return _checked(name, dict(zip(names, words, strict=False)))


def _checked(tool: str, arguments: Mapping[str, str]) -> Call:
    if tool not in PARAMETERS:
        raise InvalidAction(
            f"there is no tool {tool!r}; the tools are bash, str_replace_editor, search, submit"
        )
    if unknown := sorted(set(arguments) - set(PARAMETERS[tool])):
        raise InvalidAction(f"{tool} has no parameter {unknown[0]!r}; it takes {', '.join(PARAMETERS[tool])}")
    if missing := [
        name for name in PARAMETERS[tool] if name not in arguments and name not in OPTIONAL.get(tool, ())
    ]:
        raise InvalidAction(f"{tool} needs {missing[0]!r}; it takes {', '.join(PARAMETERS[tool])}")
    for name in ("start", "end", "insert_line"):
        if name in arguments and not re.fullmatch(r"\s*-?\d{1,9}\s*", arguments[name]):
            raise InvalidAction(f"{name!r} must be a whole number, found {arguments[name][:40]!r}")
    return Call(tool, dict(arguments))
