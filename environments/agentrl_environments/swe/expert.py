"""The expert's plan: the fix as tool calls. It serves demonstrations, and shows that a task can be solved.

Each changed place is viewed and then edited, so that the text which a demonstration replaces has been seen
before. Changes that an editor cannot make (a rename, a mode, a binary file) are made by ``git apply``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentrl_environments.swe import diffs
from agentrl_environments.swe.actions import Call, Style, render
from agentrl_environments.swe.tools import SUBMIT

LOOK = 8
"""Number of lines above and below a place that are viewed before the place is edited."""


def plan(patch: str, files: Mapping[str, str], style: Style) -> tuple[str, ...]:
    r"""Return the actions that make the fix ``patch`` and submit it.

    ``files`` are the texts, by path, of the base's files that the fix touches. ``style`` is the form in which
    actions are written.

    >>> patch = diffs.unified("a.py", "x = 1\n", "x = 2\n")
    >>> plan(patch, {"a.py": "x = 1\n"}, "line")
    ('view a.py 1 9', "str_replace a.py 'x = 1' 'x = 2'", 'submit')
    """
    if style == "block":
        return (render(_apply(patch), style), render(Call("bash", {"command": f"echo {SUBMIT}"}), style))
    calls: list[Call] = []
    for file in diffs.parse(patch):
        try:
            calls += _calls(file, files)
        except ValueError:
            calls.append(_apply(diffs.text(file)))
    return tuple(render(call, style) for call in [*calls, Call("submit", {})])


def _apply(patch: str) -> Call:
    end = "END_OF_PATCH"
    while end in patch:
        end += "_"
    return Call(
        "bash",
        {"command": f"git apply --whitespace=nowarn - <<'{end}'\n{patch.removesuffix(chr(10))}\n{end}"},
    )


def _calls(file: diffs.FileDiff, files: Mapping[str, str]) -> list[Call]:
    """Return the calls that view and make the changes of one file.

    Raises:
        ValueError: the editor cannot make these changes, or ``files`` is not what they were made for.
    """
    if not file.plain:
        raise ValueError("not a change of lines")
    new = "".join(line for hunk in file.hunks for line in hunk.new)
    if not file.old:
        if "new file mode 100755\n" in file.header:
            raise ValueError("an executable file")
        return [Call("create", {"path": file.new, "file_text": new})]
    if not file.new:
        return [Call("bash", {"command": f"git rm -q -- '{file.old}'"})]
    if file.old not in files:
        raise ValueError("not a text file")
    calls: list[Call] = []
    lines = diffs.lines(files[file.old])
    moved = 0
    for hunk in file.hunks:
        place = hunk.start - 1 + moved if hunk.old else hunk.start + moved
        if tuple(lines[place : place + len(hunk.old)]) != hunk.old:
            raise ValueError("made for another file")
        start, end = max(1, place + 1 - LOOK), place + len(hunk.old) + LOOK
        calls.append(Call("view", {"path": file.new, "start": str(start), "end": str(end)}))
        for at, old, put in _changes(hunk, place):
            calls.append(_replace(file.new, lines, at, old, put))
            lines[at : at + old] = put
        moved += len(hunk.new) - len(hunk.old)
    return calls


def _changes(hunk: diffs.Hunk, place: int) -> list[tuple[int, int, list[str]]]:
    """Return each run of changed lines in a hunk: first line, number of removed lines, and added lines.

    Line numbers count from 0, and ``place`` is the hunk's first line. The first line of a run is where the
    run starts once the earlier runs of the hunk have been changed.
    """
    new = list(hunk.new)
    changes: list[tuple[int, int, list[str]]] = []
    at, taken, open_run = place, 0, False
    for line in hunk.lines:
        if line[0] == "\\":
            continue
        if line[0] == " ":
            at, taken, open_run = at + 1, taken + 1, False
            continue
        if not open_run:
            changes.append((at, 0, []))
            open_run = True
        begin, gone, put = changes[-1]
        if line[0] == "-":
            changes[-1] = (begin, gone + 1, put)
        else:
            put.append(new[taken])
            at, taken = at + 1, taken + 1
    return changes


def _replace(path: str, lines: Sequence[str], at: int, count: int, put: Sequence[str]) -> Call:
    """Return the call that replaces ``count`` of the ``lines`` of a file, from index ``at`` on, with ``put``.

    The call quotes as many lines of context as make the replaced text unique in the file.
    """
    whole = "".join(lines)
    contexts = ((above, below) for above in range(len(lines) + 1) for below in sorted({0, above}))
    for before, after in contexts:
        first, last = max(0, at - before), min(len(lines), at + count + after)
        old, new = "".join(lines[first:last]), "".join([*lines[first:at], *put, *lines[at + count : last]])
        if old.endswith("\n") and new.endswith("\n"):
            old, new = old[:-1], new[:-1]
        if old and new and whole.find(old) == whole.rfind(old):
            return Call("str_replace", {"path": path, "old_str": old, "new_str": new})
    raise ValueError("nothing to hold on to")
