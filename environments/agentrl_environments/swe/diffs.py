r"""Unified diffs as data: the files that a patch touches, its reverse, and the lines that it changes.

Hunks are read by the line counts in their headers, so that a removed line ``-- x`` (``--- x`` in the patch)
is not mistaken for a file header.

>>> patch = "--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,2 @@\n-old\n+new\n same\n"
>>> paths(patch), parse(reverse(patch))[0].hunks[0].lines
(('x.py',), ('-new\n', '+old\n', ' same\n'))
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import unified_diff

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(.*)", re.DOTALL)
_SWAPPED = {
    "--- ": "+++ ",
    "+++ ": "--- ",
    "new file mode ": "deleted file mode ",
    "deleted file mode ": "new file mode ",
    "old mode ": "new mode ",
    "new mode ": "old mode ",
    "rename from ": "rename to ",
    "rename to ": "rename from ",
}
_ORDER = (
    "diff ",
    "old mode",
    "new mode",
    "new file",
    "deleted file",
    "similarity",
    "rename from",
    "rename to",
    "index",
    "--- ",
    "+++ ",
)
_COPIES = ("copy from", "copy to", "dissimilarity")


@dataclass(frozen=True, slots=True)
class Hunk:
    r"""One hunk of a unified diff: changed lines of a file that are close together, with context.

    ``start`` and ``new_start`` are the numbers, from 1, of its first line before and after the change.
    ``lines`` include their first character (space, ``-``, ``+`` or ``\``) and their newline.
    """

    start: int
    new_start: int
    lines: tuple[str, ...]
    section: str = ""

    @property
    def old(self) -> tuple[str, ...]:
        """The lines before the change. The last line has no newline if the file ends there without one."""
        return _side(self.lines, "-")

    @property
    def new(self) -> tuple[str, ...]:
        """The lines after the change. The last line has no newline if the file ends there without one."""
        return _side(self.lines, "+")


@dataclass(frozen=True, slots=True)
class FileDiff:
    """The changes of one file.

    ``old`` and ``new`` are its paths before and after: ``old`` is empty for a new file, and ``new`` for a
    deleted one. ``header`` holds the lines before the first hunk, without lines that git does not define.
    """

    old: str
    new: str
    header: tuple[str, ...]
    hunks: tuple[Hunk, ...]
    binary: bool = False

    @property
    def plain(self) -> bool:
        """Whether this diff only changes lines of a text file, or creates or deletes the file."""
        special = ("rename ", "copy ", "old mode ", "new mode ")
        return not self.binary and not any(line.startswith(special) for line in self.header)


def parse(patch: str) -> tuple[FileDiff, ...]:
    """Read a unified diff, with or without git's headers.

    Raises:
        ValueError: a hunk is shorter than its header says.
    """
    given = lines(patch if patch.endswith("\n") else patch + "\n")
    files: list[FileDiff] = []
    index = 0
    while index < len(given):
        if not _starts(given, index):
            index += 1
            continue
        end = index + 1
        while (
            end < len(given)
            and not given[end].startswith("@@ -")
            and not _starts(given, end, header=given[index:end])
        ):
            end += 1
        header = given[index:end]
        hunks = []
        while end < len(given) and (found := _HUNK.match(given[end])):
            hunk, end = _hunk(given, end, found)
            hunks.append(hunk)
        files.append(_file(header, tuple(hunks)))
        index = end
    return tuple(files)


def paths(patch: str) -> tuple[str, ...]:
    """Return the paths of the files that a patch touches, old and new names, sorted."""
    return tuple(sorted({path for file in parse(patch) for path in (file.old, file.new) if path}))


def reverse(patch: str) -> str:
    """Return the patch that undoes ``patch``."""
    return "".join(_reversed(file) for file in parse(patch))


def keep(patch: str, wanted: Sequence[str]) -> str:
    """Return the part of a patch that consists of the diffs of files whose paths are all ``wanted``."""
    return "".join(text(file) for file in parse(patch) if {file.old, file.new} - {""} <= set(wanted))


def text(file: FileDiff) -> str:
    """Return a file's diff as text: the inverse of `parse`."""
    body = []
    for hunk in file.hunks:
        old, new = (sum(line[0] in (" ", sign) for line in hunk.lines) for sign in "-+")
        body += [f"@@ -{hunk.start},{old} +{hunk.new_start},{new} @@{hunk.section}\n", *hunk.lines]
    return "".join([*file.header, *body])


def unified(path: str, old: str, new: str) -> str:
    r"""Return the unified diff, in git's form, from the text ``old`` of a file to its text ``new``.

    An empty text means that the file does not exist.

    >>> print(unified("x.py", "a\n", "b\n"), end="")
    diff --git a/x.py b/x.py
    --- a/x.py
    +++ b/x.py
    @@ -1 +1 @@
    -a
    +b
    """
    if old == new:
        return ""
    header = f"diff --git a/{path} b/{path}\n"
    if not old:
        header += "new file mode 100644\n"
    if not new:
        header += "deleted file mode 100644\n"
    before, after = (
        f"{side}/{path}" if content else "/dev/null" for side, content in (("a", old), ("b", new))
    )
    body = unified_diff(lines(old), lines(new), before, after)
    return header + "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in body
    )


def lines(content: str) -> list[str]:
    """Split a text at line feeds only, as diffs do (``splitlines`` also splits at form feeds)."""
    return re.findall(r"[^\n]*\n|[^\n]+$", content)


def _starts(lines: Sequence[str], index: int, header: Sequence[str] = ()) -> bool:
    """Whether the diff of a file starts at line ``index`` (from 0).

    ``header`` holds the header lines read so far of the diff before it, if its hunks have not begun yet.
    """
    if lines[index].startswith("diff --git "):
        return True
    if not lines[index].startswith("--- ") or not "".join(lines[index + 1 : index + 2]).startswith("+++ "):
        return False
    return not header or any(line.startswith("--- ") for line in header)


def _hunk(lines: Sequence[str], index: int, found: re.Match[str]) -> tuple[Hunk, int]:
    """Return the hunk whose header is line ``index`` (from 0), and the index after the hunk's last line."""
    start, old, new_start, new = (
        int(number) if number is not None else 1 for number in found.group(1, 2, 3, 4)
    )
    index += 1
    first = index
    body: list[str] = []
    while old > 0 or new > 0 or (index < len(lines) and lines[index].startswith("\\")):
        if index == len(lines):
            raise ValueError(f"line {first} of the patch starts a hunk that is {max(old, new)} lines short")
        # Editors strip the space of an empty context line.
        line = lines[index] if lines[index] != "\n" else " \n"
        if line[0] not in " -+\\":
            raise ValueError(f"line {index + 1} of the patch is inside a hunk and starts with {line[0]!r}")
        old -= line[0] in " -"
        new -= line[0] in " +"
        body.append(line)
        index += 1
    return Hunk(start, new_start, tuple(body), found.group(5).rstrip("\n")), index


def _file(header: Sequence[str], hunks: tuple[Hunk, ...]) -> FileDiff:
    """Return the diff of a file, given its header lines and hunks."""
    named = {
        mark: line[len(mark) :].rstrip("\n") for line in header for mark in _SWAPPED if line.startswith(mark)
    }
    binary = any(line.startswith(("GIT binary patch", "Binary files ")) for line in header)
    if found := re.match(r'diff --git "?a/(.*?)"? "?b/(.*?)"?\n', header[0]):
        old, new = found.group(1, 2)
    else:
        old = new = ""
    if "--- " in named:
        old, new = _path(named["--- "]), _path(named["+++ "])
    old, new = named.get("rename from ", old), named.get("rename to ", new)
    if "new file mode " in named:
        old = ""
    if "deleted file mode " in named:
        new = ""
    return FileDiff(
        old,
        new,
        tuple(line for line in header if binary or line.startswith((*_ORDER, *_COPIES))),
        hunks,
        binary,
    )


def _path(name: str) -> str:
    """Return the path that follows ``---`` or ``+++``, or an empty text for ``/dev/null``.

    Some tools write a tab and a date after the path; these are removed.
    """
    name = name.split("\t", 1)[0].strip().strip('"')
    if name == "/dev/null":
        return ""
    return name[2:] if name[:2] in ("a/", "b/") else name


def _side(lines: Sequence[str], sign: str) -> tuple[str, ...]:
    """Return the lines of a hunk before the change (``sign`` is ``-``) or after it (``sign`` is ``+``)."""
    kept: list[str] = []
    before = ""
    for line in lines:
        if line[0] == "\\" and before in (" ", sign):
            kept[-1] = kept[-1].removesuffix("\n")
        elif line[0] in (" ", sign):
            kept.append(line[1:])
        before = line[0]
    return tuple(kept)


def _reversed(file: FileDiff) -> str:
    if file.binary:
        raise ValueError(f"a binary patch of {file.old or file.new} cannot be reversed")
    header = sorted((_swap(line) for line in file.header), key=_rank)
    hunks = tuple(
        Hunk(hunk.new_start, hunk.start, tuple(_flip(hunk.lines)), hunk.section) for hunk in file.hunks
    )
    return text(FileDiff(file.new, file.old, tuple(header), hunks))


def _swap(line: str) -> str:
    """Return what a header line of a patch becomes in the reverse patch."""
    for mark, other in _SWAPPED.items():
        if line.startswith(mark):
            rest = line[len(mark) :]
            sides = {"a/": "b/", "b/": "a/"} if mark in ("--- ", "+++ ") else {}
            return other + sides.get(rest[:2], rest[:2]) + rest[2:]
    if found := re.match(r"index (\w+)\.\.(\w+)(.*)", line, re.DOTALL):
        return f"index {found.group(2)}..{found.group(1)}{found.group(3)}"
    if found := re.match(r"diff --git a/(.*) b/(.*)\n", line):
        return f"diff --git a/{found.group(2)} b/{found.group(1)}\n"
    return line


def _rank(line: str) -> int:
    return next((rank for rank, mark in enumerate(_ORDER) if line.startswith(mark)), len(_ORDER))


def _flip(lines: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a hunk in the reverse direction: added lines become removed ones, and vice versa.

    In each change the removed lines come before the added ones. A "no newline" note stays behind its line.
    """
    removed: list[str] = []
    added: list[str] = []
    last = added
    for line in lines:
        if line[0] == "\\":
            last.append(line)
            continue
        if line[0] == " ":
            yield from removed
            yield from added
            removed, added = [], []
            last = added  # a note after a context line comes directly behind it
            yield line
            continue
        last = removed if line[0] == "+" else added
        last.append(("-" if line[0] == "+" else "+") + line[1:])
    yield from removed
    yield from added
