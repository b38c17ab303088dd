"""What an agent writes, and the call that it means: one call in each action, in any of three forms.

Function calls, as R2E-Gym, SkyRL and OpenHands have them. Thoughts may stand before; the closing tag may be missing, for some engines stop
there. A parameter loses one line feed at each end:

    I should look at the parser first.
    <function=str_replace_editor>
    <parameter=command>view</parameter>
    <parameter=path>h11/_readers.py</parameter>
    <parameter=view_range>[1, 40]</parameter>
    </function>

One line, for models that are small or taught from demonstrations: a tool or a command of the editor, then its arguments in order, quoted
as in a shell where they hold spaces (a quoted argument may span lines). What follows ``bash`` is the command itself:

    view h11/_readers.py 1 40
    str_replace h11/_readers.py 'if x < 1:' 'if x <= 1:'
    bash python3 -m pytest -q

One fenced block, as mini-swe-agent has it, which is a command:

    ```bash
    sed -n 1,40p h11/_readers.py
    ```

Names of R2E-Gym's tools (``execute_bash``, ``file_editor``, ``finish``, ``cmd``) mean ours.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Style = Literal["function", "line", "block"]
"""The forms, in the order above."""

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
"""Parameters of each tool, in the order of the one-line form."""
OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "view": ("start", "end"),
    "str_replace": ("new_str",),
    "search": ("path",),
}
EDITOR = ("view", "create", "str_replace", "insert", "undo_edit")
"""Commands of ``str_replace_editor``."""
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
    """A tool and its arguments, complete; those that may be left out are missing or there."""

    tool: str
    arguments: Mapping[str, str]


class Refused(ValueError):
    """An action that is no call; the message tells the agent why, and what would be one."""


def parse(text: str, *, bash_only: bool = False) -> Call:
    """Return the call that an action means.

    >>> parse("view setup.py 1 20")
    Call(tool='view', arguments={'path': 'setup.py', 'start': '1', 'end': '20'})
    >>> parse("<function=execute_bash><parameter=cmd>ls</parameter></function>")
    Call(tool='bash', arguments={'command': 'ls'})

    Raises:
        Refused: it is no call, or more than one, or lacks an argument.
    """
    text = _THOUGHT.sub("", text).strip()
    if found := _FUNCTION.findall(text):
        if len(found) > 1:
            raise Refused(f"found {len(found)} function calls; make one at a time and wait for its result")
        call = _function(*found[0])
    elif blocks := _FENCE.findall(text):
        if len(blocks) > 1:
            raise Refused(f"found {len(blocks)} command blocks; give one at a time and wait for its result")
        call = Call("bash", {"command": blocks[0].strip("\n")})
    else:
        call = _line(text)
    if bash_only and call.tool != "bash":
        raise Refused(f"there is no tool {call.tool!r} here; write one command, in a ```bash block")
    if call.tool == "bash" and ("\0" in call.arguments["command"] or not call.arguments["command"].strip()):
        raise Refused("the command is empty or holds a NUL character")
    return call


def render(call: Call, style: Style) -> str:
    """Return a call as text that `parse` reads back.

    >>> render(Call("str_replace", {"path": "a.py", "old_str": "x = 1", "new_str": "x = 2"}), "line")
    "str_replace a.py 'x = 1' 'x = 2'"
    """
    tool, given = call.tool, call.arguments
    if tool == "bash" and style != "function":
        return f"bash {given['command']}" if style == "line" else f"```bash\n{given['command']}\n```"
    if style == "line":
        return " ".join([tool, *(shlex.quote(given[name]) for name in PARAMETERS[tool] if name in given)])
    if tool in EDITOR:
        ranged = {"view_range": f"[{given['start']}, {given.get('end', -1)}]"} if "start" in given else {}
        given = {
            "command": tool,
            **{name: given[name] for name in given if name not in ("start", "end")},
            **ranged,
        }
        tool = "str_replace_editor"
    short = ("command", "path", "insert_line", "view_range", "search_term")
    lines = [
        f"<parameter={name}>{value}</parameter>"
        if name in short and "\n" not in value
        else f"<parameter={name}>\n{value}\n</parameter>"
        for name, value in given.items()
    ]
    return "\n".join([f"<function={tool}>", *lines, "</function>"])


def _function(name: str, body: str) -> Call:
    tool = _ALIASES.get(name, name)
    given = dict(_PARAMETER.findall(body))
    if "<parameter=" in _PARAMETER.sub("", body):
        raise Refused(f"a parameter of {name!r} is not closed; each needs </parameter>")
    if tool == "bash" and "cmd" in given:
        given["command"] = given.pop("cmd")
    if tool == "submit":
        given = {}  # R2E-Gym's finish has a command and a result
    if tool == "str_replace_editor":
        tool = given.pop("command", "").strip()
        if tool not in EDITOR:
            raise Refused(f"the editor has no command {tool!r}; its commands are {', '.join(EDITOR)}")
        if view := given.pop("view_range", "").strip("[] \n"):
            given |= dict(zip(("start", "end"), map(str.strip, view.split(",")), strict=False))
    return _checked(tool, given)


def _line(text: str) -> Call:
    name, _, rest = text.partition(" ") if "\n" not in text.partition(" ")[0] else text.partition("\n")
    if name not in PARAMETERS:
        raise Refused(f"no call found; begin with one of {', '.join(PARAMETERS)}, or write <function=...>")
    if name == "bash":
        return _checked(name, {"command": rest})
    try:
        words = shlex.split(rest)
    except ValueError as problem:
        raise Refused(f"{name}: {str(problem).lower()}; put arguments with spaces into quotes") from None
    names = PARAMETERS[name]
    if len(words) > len(names):
        raise Refused(
            f"{name} takes {', '.join(names) or 'no arguments'}, found {len(words)} arguments; put those with spaces into quotes"
        )
    return _checked(name, dict(zip(names, words, strict=False)))


def _checked(tool: str, given: Mapping[str, str]) -> Call:
    if tool not in PARAMETERS:
        raise Refused(f"there is no tool {tool!r}; the tools are bash, str_replace_editor, search, submit")
    if unknown := sorted(set(given) - set(PARAMETERS[tool])):
        raise Refused(f"{tool} has no parameter {unknown[0]!r}; it takes {', '.join(PARAMETERS[tool])}")
    if missing := [
        name for name in PARAMETERS[tool] if name not in given and name not in OPTIONAL.get(tool, ())
    ]:
        raise Refused(f"{tool} needs {missing[0]!r}; it takes {', '.join(PARAMETERS[tool])}")
    for name in ("start", "end", "insert_line"):
        if name in given and not re.fullmatch(r"\s*-?\d{1,9}\s*", given[name]):
            raise Refused(f"{name!r} must be a whole number, found {given[name][:40]!r}")
    return Call(tool, dict(given))
