"""The agent's tools, at work in its sandbox: a shell, an editor, a search.

Whatever an agent does is answered with a text; only a sandbox that breaks raises. Long results lose their middle, and say how much: the
beginning tells what ran and the end how it went.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from agentrl.sandbox import Sandbox, Shell
from agentrl_environments.swe.actions import Call

SUBMIT = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
"""What a command's output begins with where commands are all there is (as mini-swe-agent has it)."""
MAX_FILE = 4 << 20
"""Longest file that the editor opens, in bytes."""
MAX_FILES = 100
"""A search that finds more files than this must be narrowed."""
CONTEXT = 4
"""Lines shown before and after an edit."""
QUIET = {"PAGER": "cat", "GIT_PAGER": "cat", "TERM": "dumb"}
"""Environment of the agent's commands: nothing waits for a key."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a tool answers. ``ran``: it did what was asked; a command that ends with any exit code ran, one that was stopped did not."""

    text: str
    ran: bool = True
    timed_out: bool = False
    submitted: bool = False


class _No(Exception):
    """The tool cannot do what was asked; the message says why."""


class Tools:
    """The tools of one episode. ``shell`` is ``None`` where every command gets a shell of its own, and there are no other tools.

    ``setup`` is run first in every shell that is new; ``env`` is for those of single commands.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        shell: Shell | None,
        *,
        env: Mapping[str, str],
        setup: str,
        command_s: float,
        max_output: int,
    ) -> None:
        self._sandbox, self._shell, self._folder = sandbox, shell, sandbox.spec.workdir
        self._env, self._setup, self._fresh = env, setup, True
        self._command_s, self._max_output = command_s, max_output
        self._before: dict[str, list[bytes]] = {}
        self._cwd = self._folder

    async def run(self, call: Call) -> Result:
        """Make a call.

        Raises:
            SandboxError: the sandbox broke.
        """
        try:
            if call.tool == "bash":
                return await (self._in_shell if self._shell else self._alone)(call.arguments["command"])
            if call.tool == "submit":
                return Result("", submitted=True)
            do = {
                "view": self._view,
                "create": self._create,
                "str_replace": self._replace,
                "insert": self._insert,
            }
            do |= {"undo_edit": self._undo, "search": self._search}
            return Result(clip(await do[call.tool](call.arguments), self._max_output))
        except _No as refusal:
            return Result(str(refusal), ran=False)

    async def _in_shell(self, command: str) -> Result:
        assert self._shell is not None
        if self._fresh and self._setup:
            await self._shell.run(self._setup, timeout_s=self._command_s)
        done = await self._shell.run(command, timeout_s=self._command_s, max_output=4 * self._max_output)
        self._fresh = done.restarted
        notes = []
        if done.timed_out:
            notes.append(f"stopped after {self._command_s:g} s")
        elif done.exit_code != 0:
            notes.append(f"exit code {done.exit_code}")
        if done.restarted:
            notes.append("the shell ended; a new one was started, without the old one's variables")
        if done.cwd != self._cwd:
            notes.append(f"now in {done.cwd}")
            self._cwd = done.cwd
        text = clip(_text(done.output), self._max_output, done.output_total - len(done.output)).rstrip("\n")
        told = "\n".join([text] * bool(text) + [f"[{note}]" for note in notes])
        return Result(told or "[no output]", ran=not done.timed_out, timed_out=done.timed_out)

    async def _alone(self, command: str) -> Result:
        argv = ["bash", "-c", f"exec 2>&1\n{self._setup}\n{command}\n"]
        done = await self._sandbox.exec(
            argv, env=self._env, timeout_s=self._command_s, max_output=4 * self._max_output
        )
        output = _text(done.stdout)
        if (
            not done.timed_out
            and done.exit_code == 0
            and output.lstrip().partition("\n")[0].strip() == SUBMIT
        ):
            return Result("", submitted=True)
        code = f"stopped after {self._command_s:g} s" if done.timed_out else str(done.exit_code)
        shown = clip(output, self._max_output, done.stdout_total - len(done.stdout)).rstrip("\n")
        return Result(
            f"<returncode>{code}</returncode>\n<output>\n{shown}\n</output>",
            not done.timed_out,
            done.timed_out,
        )

    async def _view(self, given: Mapping[str, str]) -> str:
        path = self._path(given["path"])
        try:
            text = await self._read(path)
        except IsADirectoryError:
            return await self._listing(path)
        lines = _lines(text)
        start, end = int(given.get("start", 1)), int(given.get("end", -1))
        end = len(lines) if end == -1 else end
        if not 1 <= start <= max(len(lines), 1) or end < start:
            raise _No(
                f"lines {start} to {end} do not exist: {given['path']} has {len(lines)} lines, from 1; an end of -1 is the last"
            )
        return _numbered(lines, start, min(end, len(lines))) or "[the file is empty]"

    async def _listing(self, path: str) -> str:
        argv = [
            "find",
            path,
            "-mindepth",
            "1",
            "-maxdepth",
            "2",
            "-not",
            "-path",
            "*/.*",
            "-not",
            "-name",
            "__pycache__",
            "-printf",
            "%P%y\\n",
        ]
        found = await self._sandbox.exec(argv, timeout_s=self._command_s)
        names = sorted(line[:-1] + "/" * line.endswith("d") for line in _text(found.stdout).splitlines())
        return "\n".join(names) or "[the folder is empty]"

    async def _create(self, given: Mapping[str, str]) -> str:
        path = self._path(given["path"])
        try:
            await self._sandbox.read(path, max_bytes=1)
        except (FileNotFoundError, NotADirectoryError):
            pass  # the second one is told when it is written
        except OSError as problem:
            raise _No(f"{given['path']} exists already; change it with str_replace or insert") from problem
        else:
            raise _No(f"{given['path']} exists already; change it with str_replace or insert")
        await self._write(path, None, given["file_text"])
        return f"created {given['path']}"

    async def _replace(self, given: Mapping[str, str]) -> str:
        path, old, new = self._path(given["path"]), given["old_str"], given.get("new_str", "")
        text = await self._read(path)
        if not old or old == new:
            raise _No(
                "old_str is empty" if not old else "old_str and new_str are the same; nothing would change"
            )
        if text.find(old) == -1 or text.find(old) != text.rfind(
            old
        ):  # str.count would miss places that overlap
            at = [
                text.count("\n", 0, found.start()) + 1 for found in re.finditer(f"(?={re.escape(old)})", text)
            ]
            where = (
                f"is there {len(at)} times, in lines {', '.join(map(str, at[:20]))}; add lines around it"
                if at
                else "is not there, verbatim"
            )
            raise _No(f"nothing was replaced: old_str must be in {given['path']} exactly once, and {where}")
        before, _, after = text.partition(old)
        return await self._edited(
            given["path"], text, before + new + after, before.count("\n") + 1, new.count("\n") + 1
        )

    async def _insert(self, given: Mapping[str, str]) -> str:
        text, new, line = (
            await self._read(self._path(given["path"])),
            given["new_str"],
            int(given["insert_line"]),
        )
        lines = _lines(text)
        if not 0 <= line <= len(lines):
            raise _No(
                f"insert_line is {line}; {given['path']} has {len(lines)} lines, and 0 inserts before the first"
            )
        before = "".join(lines[:line])
        if before and not before.endswith("\n"):
            before += "\n"
        return await self._edited(
            given["path"],
            text,
            before + new.removesuffix("\n") + "\n" + "".join(lines[line:]),
            line + 1,
            new.count("\n") + 1,
        )

    async def _undo(self, given: Mapping[str, str]) -> str:
        path = self._path(given["path"])
        if not self._before.get(path):
            raise _No(f"no edit of {given['path']} is left to undo")
        await self._put(path, self._before[path][-1])
        self._before[path].pop()
        return f"the last edit of {given['path']} was undone"

    async def _search(self, given: Mapping[str, str]) -> str:
        term, where = given["search_term"], given.get("path", ".")
        if not term or "\n" in term or "\0" in term + where:
            raise _No("search_term must be a part of one line, and not empty")
        argv = ["grep", "-rnHIF", "--exclude-dir=.git", "--exclude-dir=__pycache__", "-e", term, "--", where]
        found = await self._sandbox.exec(argv, timeout_s=self._command_s, max_output=1 << 22)
        if found.timed_out or (found.exit_code > 1 and not found.stdout):
            raise _No(
                f"search failed: {'it took too long' if found.timed_out else _text(found.stderr).strip()[:200]}"
            )
        places = [
            (line.split(":", 2), line.removeprefix("./"))
            for line in _text(found.stdout).splitlines()
            if line.count(":") >= 2
        ]
        files = {parts[0] for parts, _ in places}
        if len(files) > MAX_FILES:
            raise _No(
                f"{term!r} is in {len(files)} files; narrow it to a folder, or search for more of the line"
            )
        ordered = sorted(
            places, key=lambda place: (place[0][0], int(place[0][1]) if place[0][1].isdigit() else 0)
        )
        return "\n".join(line for _, line in ordered) or f"{term!r} is in no file of {where}"

    async def _edited(self, name: str, old: str, new: str, line: int, count: int) -> str:
        await self._write(self._path(name), old, new)
        lines = _lines(new)
        start, end = max(1, line - CONTEXT), min(len(lines), line + count - 1 + CONTEXT)
        return f"edited {name}; lines {start} to {end} are now:\n{_numbered(lines, start, end)}"

    async def _read(self, path: str) -> str:
        """Return a text file; ``IsADirectoryError`` passes to who can list it."""
        try:
            data = await self._sandbox.read(path, max_bytes=MAX_FILE)
            return data.decode()
        except UnicodeDecodeError:
            raise _No(f"{path} is not a text file in UTF-8") from None
        except IsADirectoryError:
            raise
        except OSError as problem:
            raise _No(f"cannot read {path}: {problem.strerror or problem}") from problem

    async def _write(self, path: str, old: str | None, new: str) -> None:
        await self._put(path, new.encode("utf-8", "surrogateescape"))
        if old is not None:
            self._before.setdefault(path, []).append(old.encode())

    async def _put(self, path: str, data: bytes) -> None:
        try:
            await self._sandbox.write(path, data)
        except OSError as problem:
            raise _No(f"cannot write {path}: {problem.strerror or problem}") from problem

    def _path(self, name: str) -> str:
        if "\0" in name or not name.strip():
            raise _No("the path is empty or holds a NUL character")
        return str(PurePosixPath(self._folder, name.strip()))


def clip(text: str, limit: int, lost: int = 0) -> str:
    r"""Return a text of at most ``limit`` characters and a note: its first and last half; ``lost`` were cut from its middle before.

    >>> clip("abcdefgh", 4)
    'ab\n[4 characters are left out]\ngh'
    """
    if len(text) <= limit and not lost:
        return text
    head, tail = min(limit, len(text)) // 2, (min(limit, len(text)) + 1) // 2
    return f"{text[:head]}\n[{len(text) - head - tail + lost} characters are left out]\n{text[len(text) - tail :]}"


def _text(data: bytes) -> str:
    return data.decode(errors="replace").replace("\0", "\\0")


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+$", text)


def _numbered(lines: list[str], start: int, end: int) -> str:
    return "\n".join(
        f"{number:6}\t{lines[number - 1].removesuffix(chr(10))}" for number in range(start, end + 1)
    )
