"""The agent's tools in its sandbox: a shell, an editor, a search.

Whatever an agent does is answered with a text; only a broken sandbox raises an error. Long results lose their
middle, because the beginning shows what ran and the end shows how it ended; a note says how much is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from agentrl.sandbox import Sandbox, Shell
from agentrl_environments.swe import diffs
from agentrl_environments.swe.actions import Call

SUBMIT = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
"""First line of the output of a command that submits, if commands are the only tool (mini-swe-agent)."""
MAX_FILE = 4 << 20
"""Maximum size of a file that the editor opens, in bytes."""
MAX_FILES = 100
"""Maximum number of files that a search may find; a search that finds more is refused."""
CONTEXT = 4
"""Number of lines that are shown before and after the lines of an edit."""
QUIET = {"PAGER": "cat", "GIT_PAGER": "cat", "TERM": "dumb"}
"""Environment variables of the agent's commands; they keep programs from waiting for a key."""


@dataclass(frozen=True, slots=True)
class Result:
    """A tool's answer. ``ran`` says whether the tool did what was asked.

    A command that ended by itself ran, whatever its exit code; a command that was stopped did not.
    """

    text: str
    ran: bool = True
    timed_out: bool = False
    submitted: bool = False


class _Refusal(Exception):
    """A tool cannot do what was asked; the message tells the agent why."""


class Tools:
    """The tools of one episode.

    If ``shell`` is ``None``, every command runs in a new shell, and there are no other tools. ``setup`` runs
    first in every new shell; ``env`` is the environment of commands that run in a new shell.
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
        """Make a call, and return the answer of its tool.

        Raises:
            SandboxError: the sandbox broke.
        """
        try:
            if call.tool == "bash":
                run = self._in_new_shell if self._shell is None else self._in_shell
                return await run(call.arguments["command"])
            if call.tool == "submit":
                return Result("", submitted=True)
            tools = {
                "view": self._view,
                "create": self._create,
                "str_replace": self._replace,
                "insert": self._insert,
                "undo_edit": self._undo,
                "search": self._search,
            }
            return Result(clip(await tools[call.tool](call.arguments), self._max_output))
        except _Refusal as refusal:
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
        parts = [text] if text else []
        parts += [f"[{note}]" for note in notes]
        return Result("\n".join(parts) or "[no output]", ran=not done.timed_out, timed_out=done.timed_out)

    async def _in_new_shell(self, command: str) -> Result:
        argv = ["bash", "-c", f"exec 2>&1\n{self._setup}\n{command}\n"]
        done = await self._sandbox.exec(
            argv, env=self._env, timeout_s=self._command_s, max_output=4 * self._max_output
        )
        output = _text(done.stdout)
        first_line = output.lstrip().partition("\n")[0].strip()
        if not done.timed_out and done.exit_code == 0 and first_line == SUBMIT:
            return Result("", submitted=True)
        code = f"stopped after {self._command_s:g} s" if done.timed_out else str(done.exit_code)
        shown = clip(output, self._max_output, done.stdout_total - len(done.stdout)).rstrip("\n")
        return Result(
            f"<returncode>{code}</returncode>\n<output>\n{shown}\n</output>",
            ran=not done.timed_out,
            timed_out=done.timed_out,
        )

    async def _view(self, arguments: Mapping[str, str]) -> str:
        path = self._path(arguments["path"])
        try:
            text = await self._read(path)
        except IsADirectoryError:
            return await self._listing(path)
        lines = diffs.lines(text)
        start, end = int(arguments.get("start", 1)), int(arguments.get("end", -1))
        end = len(lines) if end == -1 else end
        if not 1 <= start <= max(len(lines), 1) or end < start:
            raise _Refusal(
                f"lines {start} to {end} do not exist: {arguments['path']} has {len(lines)} lines, from 1; "
                "an end of -1 is the last"
            )
        return _numbered(lines, start, min(end, len(lines))) or "[the file is empty]"

    async def _listing(self, path: str) -> str:
        depth = ("-mindepth", "1", "-maxdepth", "2")
        visible = ("-not", "-path", "*/.*", "-not", "-name", "__pycache__")
        argv = ["find", path, *depth, *visible, "-printf", "%P%y\\n"]  # the path, and one letter for the type
        found = await self._sandbox.exec(argv, timeout_s=self._command_s)
        lines = _text(found.stdout).splitlines()
        names = sorted(line[:-1] + ("/" if line.endswith("d") else "") for line in lines)
        return "\n".join(names) or "[the folder is empty]"

    async def _create(self, arguments: Mapping[str, str]) -> str:
        path = self._path(arguments["path"])
        if await self._exists(path):
            raise _Refusal(f"{arguments['path']} exists already; change it with str_replace or insert")
        await self._write(path, None, arguments["file_text"])
        return f"created {arguments['path']}"

    async def _exists(self, path: str) -> bool:
        try:
            await self._sandbox.read(path, max_bytes=1)
        except (FileNotFoundError, NotADirectoryError):  # the latter is reported when the file is written
            return False
        except OSError:  # a folder, a longer file, or one that cannot be read
            return True
        return True

    async def _replace(self, arguments: Mapping[str, str]) -> str:
        path, old, new = self._path(arguments["path"]), arguments["old_str"], arguments.get("new_str", "")
        text = await self._read(path)
        if not old or old == new:
            raise _Refusal(
                "old_str is empty" if not old else "old_str and new_str are the same; nothing would change"
            )
        if text.find(old) == -1 or text.find(old) != text.rfind(old):
            # The lookahead also finds places that overlap, which str.count would miss.
            places = re.finditer(f"(?={re.escape(old)})", text)
            at = [text.count("\n", 0, found.start()) + 1 for found in places]
            if at:
                where = (
                    f"is there {len(at)} times, in lines {', '.join(map(str, at[:20]))}; add lines around it"
                )
            else:
                where = "is not there, verbatim"
            raise _Refusal(
                f"nothing was replaced: old_str must be in {arguments['path']} exactly once, and {where}"
            )
        before, _, after = text.partition(old)
        return await self._edited(
            arguments["path"], text, before + new + after, before.count("\n") + 1, new.count("\n") + 1
        )

    async def _insert(self, arguments: Mapping[str, str]) -> str:
        text = await self._read(self._path(arguments["path"]))
        new, line = arguments["new_str"], int(arguments["insert_line"])
        lines = diffs.lines(text)
        if not 0 <= line <= len(lines):
            raise _Refusal(
                f"insert_line is {line}; {arguments['path']} has {len(lines)} lines, "
                "and 0 inserts before the first"
            )
        before = "".join(lines[:line])
        if before and not before.endswith("\n"):
            before += "\n"
        edited = before + new.removesuffix("\n") + "\n" + "".join(lines[line:])
        return await self._edited(arguments["path"], text, edited, line + 1, new.count("\n") + 1)

    async def _undo(self, arguments: Mapping[str, str]) -> str:
        path = self._path(arguments["path"])
        if not self._before.get(path):
            raise _Refusal(f"no edit of {arguments['path']} is left to undo")
        await self._put(path, self._before[path][-1])
        self._before[path].pop()
        return f"the last edit of {arguments['path']} was undone"

    async def _search(self, arguments: Mapping[str, str]) -> str:
        term, where = arguments["search_term"], arguments.get("path", ".")
        if not term or "\n" in term or "\0" in term + where:
            raise _Refusal("search_term must be a part of one line, and not empty")
        argv = ["grep", "-rnHIF", "--exclude-dir=.git", "--exclude-dir=__pycache__", "-e", term, "--", where]
        found = await self._sandbox.exec(argv, timeout_s=self._command_s, max_output=1 << 22)
        if found.timed_out or (found.exit_code > 1 and not found.stdout):
            raise _Refusal(
                "search failed: "
                f"{'it took too long' if found.timed_out else _text(found.stderr).strip()[:200]}"
            )
        places = [
            (line.split(":", 2), line.removeprefix("./"))
            for line in _text(found.stdout).splitlines()
            if line.count(":") >= 2
        ]
        files = {parts[0] for parts, _ in places}
        if len(files) > MAX_FILES:
            raise _Refusal(
                f"{term!r} is in {len(files)} files; narrow it to a folder, or search for more of the line"
            )
        ordered = sorted(
            places, key=lambda place: (place[0][0], int(place[0][1]) if place[0][1].isdigit() else 0)
        )
        return "\n".join(line for _, line in ordered) or f"{term!r} is in no file of {where}"

    async def _edited(self, name: str, old: str, new: str, line: int, count: int) -> str:
        """Write an edited file, and return its text from line ``line`` on (``count`` lines) with context.

        ``old`` and ``new`` are the file's texts before and after the edit.
        """
        await self._write(self._path(name), old, new)
        lines = diffs.lines(new)
        start, end = max(1, line - CONTEXT), min(len(lines), line + count - 1 + CONTEXT)
        return f"edited {name}; lines {start} to {end} are now:\n{_numbered(lines, start, end)}"

    async def _read(self, path: str) -> str:
        """Return the content of a text file.

        Raises:
            IsADirectoryError: the path is a folder.
        """
        try:
            data = await self._sandbox.read(path, max_bytes=MAX_FILE)
            return data.decode()
        except UnicodeDecodeError:
            raise _Refusal(f"{path} is not a text file in UTF-8") from None
        except IsADirectoryError:
            raise
        except OSError as problem:
            raise _Refusal(f"cannot read {path}: {problem.strerror or problem}") from problem

    async def _write(self, path: str, old: str | None, new: str) -> None:
        await self._put(path, new.encode("utf-8", "surrogateescape"))
        if old is not None:
            self._before.setdefault(path, []).append(old.encode())

    async def _put(self, path: str, data: bytes) -> None:
        try:
            await self._sandbox.write(path, data)
        except OSError as problem:
            raise _Refusal(f"cannot write {path}: {problem.strerror or problem}") from problem

    def _path(self, name: str) -> str:
        if "\0" in name or not name.strip():
            raise _Refusal("the path is empty or holds a NUL character")
        return str(PurePosixPath(self._folder, name.strip()))


def clip(text: str, limit: int, lost: int = 0) -> str:
    r"""Return a text with at most ``limit`` of its characters: the middle of a longer text is left out.

    A note in its place says how many characters are left out. The note also counts ``lost`` characters that
    were already missing from the middle of the given text.

    >>> clip("abcdefgh", 4)
    'ab\n[4 characters are left out]\ngh'
    """
    if len(text) <= limit and not lost:
        return text
    head, tail = min(limit, len(text)) // 2, (min(limit, len(text)) + 1) // 2
    note = f"[{len(text) - head - tail + lost} characters are left out]"
    return f"{text[:head]}\n{note}\n{text[len(text) - tail :]}"


def _text(data: bytes) -> str:
    return data.decode(errors="replace").replace("\0", "\\0")


def _numbered(lines: list[str], start: int, end: int) -> str:
    return "\n".join(
        f"{number:6}\t{lines[number - 1].removesuffix(chr(10))}" for number in range(start, end + 1)
    )
