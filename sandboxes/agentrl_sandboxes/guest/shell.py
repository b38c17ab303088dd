"""Persistent shells: an interactive bash that is never typed at by what it runs.

Bash sits on a terminal of its own, for job control and the interrupt key only. What is typed there is one fixed line, which reads the
command from a file and evaluates it; so no quote or heredoc that a command leaves open can swallow anything. Output goes to a pipe, so it
is what was written, byte for byte. When bash is at its prompt again it writes the command's number, exit code, own process id and folder to
another pipe. The pipes and the file are closed to what the command starts; bash's own stderr is ``/dev/null``, so that neither prompts nor
the fixed line under ``set -x`` show.
"""

from __future__ import annotations

import errno
import os
import termios
import time

from agentrl_sandboxes.guest.channels import Channel
from agentrl_sandboxes.guest.light import signal
from agentrl_sandboxes.guest.loop import Capture, Source
from agentrl_sandboxes.guest.processes import NOT_RUN, Command, Process, below, strike

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agentrl_sandboxes.guest.main import Guest

COMMAND, STATUS, STDERR = 20, 21, 22
"""Bash's files, out of the way of those that people open by number."""
BASH = ("bash", "--noprofile", "--norc", "--noediting", "-i")
SETUP = f"""
PS1= PS2= HISTFILE= __code=; set +H +o history
__return() {{ return "$1"; }}
__prompt='__code=${{__code:-$?}}; builtin printf "%s %s %s %s\\0" "$__number" "$__code" "$$" "$PWD" >&{STATUS}'
__number=0 PROMPT_COMMAND=$__prompt
"""
LINE = (
    f"__code= __number=%d; IFS= builtin read -r -d '' -u {COMMAND} __command; %sbuiltin eval \"$__command\""
    f" </dev/null 2>&{STDERR} {COMMAND}<&- {STATUS}>&- {STDERR}>&-; __code=$? PROMPT_COMMAND=$__prompt\n"
)
"""The number, and what sets ``$?`` to what the last command left."""
INTERRUPT = "\x03"
START_S, PATIENCE_S, TRIES = 20.0, 0.5, 7
IDLE_OUTPUT = 1 << 16
"""What is kept of the output between two commands, bytes; the next command's begins with it."""
TICKS = os.sysconf("SC_CLK_TCK")


class Shell:
    """A bash that is started anew when a command ends it. ``ready`` is called after every start, with what went wrong if something did."""

    def __init__(self, guest: Guest, cwd: str, env: Mapping[str, str]) -> None:
        self.guest, self.loop, self.cwd, self.env = guest, guest.loop, cwd or guest.workdir, env
        self.run: Run | None = None
        self.next: Run | None = None
        self.process: Process | None = None
        self.number, self.code, self.bash = 0, 0, 0
        self.capture = Capture(IDLE_OUTPUT)
        self.closed: Callable[[], object] | None = None

    def start(self, ready: Callable[[OSError | None], object]) -> None:
        """Start bash, in the folder where the last one was."""
        self.ready: Callable[[OSError | None], object] | None = ready
        self.number, self.code, self.said = 0, 0, bytearray()
        self.master, self.terminal = os.openpty()  # both held open, or the terminal would hang up
        status, to_status = os.pipe()
        output, to_output = os.pipe()
        self.command = os.memfd_create("command")
        null = os.open(os.devnull, os.O_WRONLY)
        self.sane = termios.tcgetattr(self.terminal)
        self.sane[3] &= ~termios.ECHO
        self.sources = [
            Source(self.loop, self.master, len),
            Source(self.loop, status, self.told),
            Source(self.loop, output, self.take),
        ]
        files = {1: to_output, 2: null, COMMAND: self.command, STATUS: to_status, STDERR: to_output}
        try:
            command = Command(BASH, self.cwd, self.env, files, terminal=os.ttyname(self.terminal))
            self.process = process = Process(self.guest, command, self.ended, whole=True)
        except OSError:
            self.forget()
            raise
        finally:
            for fd in (to_status, to_output, null):
                os.close(fd)
        self.type(SETUP)
        self.loop.after(START_S, lambda: process.kill() if self.ready and process is self.process else None)

    def type(self, line: str) -> None:
        """Type at the terminal, whatever its last user did to it."""
        termios.tcsetattr(self.master, termios.TCSANOW, self.sane)
        os.write(self.master, line.encode())

    def begin(self, run: Run) -> None:
        """Run a command, after a new start if bash is gone."""
        if self.run:  # nobody waits for that one any more, and its bash is about to end
            run.restarted, self.next = True, run
            return
        self.run = run
        if self.process is None:
            run.restarted = True
            self.revive(lambda problem: self.refuse(problem) if problem else self.enter(run))
        else:
            self.enter(run)

    def enter(self, run: Run) -> None:
        """Hand the command to bash."""
        idle, self.capture = self.capture, Capture(run.max_output)
        self.capture.add(idle.kept())
        run.started = time.monotonic()
        run.tick = int(time.clock_gettime(time.CLOCK_BOOTTIME) * TICKS) - 1
        os.ftruncate(self.command, 0)
        os.pwrite(self.command, bytes(run.text) + b"\0", 0)
        os.lseek(self.command, 0, os.SEEK_SET)
        self.number += 1
        self.type(LINE % (self.number, f"__return {self.code} || " if self.code else ""))
        self.loop.after(run.timeout_s, lambda: self.interrupt(run))

    def interrupt(self, run: Run) -> None:
        """Press the interrupt key at the deadline; kill what does not heed it, and bash itself if even then it does not come back."""
        if self.run is not run or not self.process:
            return
        run.timed_out = True
        run.tries += 1
        if run.tries == 1:
            self.type(INTERRUPT)
        elif run.tries == TRIES:
            self.process.kill()
            return
        else:  # what the command started, one statement after the other
            strike(below([self.process.pid], run.tick) - {self.bash}, signal.SIGKILL)
        self.loop.after(PATIENCE_S if run.tries == 1 else PATIENCE_S / 5, lambda: self.interrupt(run))

    def take(self, data: bytes) -> None:
        """Keep output for the command that runs, or for the next."""
        self.capture.add(data)

    def told(self, data: bytes) -> None:
        """Hear that bash is at its prompt. After an interrupt that came too late it may say so twice."""
        if (
            not self.process or self.process.killing
        ):  # a job that was stopped first, to be killed, may bring it to its prompt once more
            return
        self.said += data
        *said, self.said = self.said.split(b"\0")
        for line in said:
            number, code, pid, cwd = line.split(b" ", 3)
            if int(number) == self.number:
                self.code, self.bash, self.cwd = int(code), int(pid), os.fsdecode(bytes(cwd))
                if self.ready:
                    ready, self.ready = self.ready, None
                    ready(None)
                elif self.run:
                    self.answer(self.code)

    def answer(self, code: int) -> None:
        """Answer the command that ran."""
        self.sources[2].drain()
        run, self.run = self.run, None
        capture, self.capture = self.capture, Capture(IDLE_OUTPUT)
        if run:
            run.answer(code, self.cwd, capture)
        following, self.next = self.next, None
        if following:
            self.begin(following)

    def ended(self, code: int) -> None:
        """Hear that bash is gone: by a command, or in between, or because the shell was closed."""
        self.process = None
        self.sources[2].drain()
        self.forget()
        if self.closed:
            self.answer(code)
            self.closed()
        elif self.ready:
            reason = (
                self.capture.kept().decode(errors="replace").strip() or f"bash ended with exit code {code}"
            )
            ready, self.ready = self.ready, None
            ready(OSError(errno.EIO, reason))
        elif self.run:
            run = self.run
            run.restarted = True
            self.revive(lambda problem: self.answer(code))

    def refuse(self, problem: OSError) -> None:
        """Answer that there is no bash to run it, as when what was left in the background takes every process there may be."""
        self.capture.add(f"bash: cannot start: {problem.strerror}\n".encode())
        self.answer(NOT_RUN)

    def revive(self, ready: Callable[[OSError | None], object]) -> None:
        """Start bash again, where it was, if that is still there."""
        self.cwd = next(
            path for path in (self.cwd, self.guest.workdir, "/") if os.access(path, os.X_OK) or path == "/"
        )
        try:
            self.start(ready)
        except OSError as problem:
            ready(problem)

    def forget(self) -> None:
        """Close what belonged to the bash that is gone."""
        os.close(self.command)
        os.close(self.terminal)
        for source in self.sources:
            source.close()

    def close(self, closed: Callable[[], object]) -> None:
        """Kill it and all it started."""
        self.closed = closed
        if self.process:
            self.process.kill()
        else:
            closed()


class OpenShell(Channel):
    """The start of a shell."""

    def open(self, cwd: str, env: dict[str, str]) -> None:
        """Start it."""
        os.stat(cwd or self.guest.workdir)
        self.shell = Shell(self.guest, cwd, env)
        self.shell.start(self.ready)

    def ready(self, problem: OSError | None) -> None:
        """Answer."""
        if problem:
            self.fail(problem)
        else:
            self.guest.shells[self.number] = self.shell
            self.finish(shell=self.number)

    def cancel(self) -> None:
        """Close it before anybody knows it."""
        self.shell.close(lambda: None)


class CloseShell(Channel):
    """The end of a shell."""

    def open(self, shell: int) -> None:
        """End it."""
        known = self.guest.shells.pop(shell, None)
        if known:
            known.close(lambda: self.finish(done=True))
        else:
            self.finish(done=True)


class Run(Channel):
    """A command in a shell."""

    restarted = timed_out = False
    tries, tick, started = 0, 0, 0.0

    def open(self, shell: int, timeout_s: float, max_output: int) -> None:
        """Wait for the text."""
        self.shell = self.guest.shells[shell]
        self.timeout_s, self.max_output, self.text = timeout_s, max_output, bytearray()

    def data(self, body: bytes) -> None:
        """Take in more of the text."""
        self.text += body
        self.credit(len(body))

    def end(self) -> None:
        """Begin: this was the whole text."""
        try:
            self.shell.begin(self)
        except OSError as problem:
            self.fail(problem)

    def cancel(self) -> None:
        """Kill the shell: nobody can tell any more what state it is in."""
        if self.shell.next is self:
            self.shell.next = None
        elif self.shell.run is self and self.shell.process:
            self.shell.process.kill()

    def answer(self, code: int, cwd: str, capture: Capture) -> None:
        """Answer."""
        if self.number in self.guest.channels:
            self.send(capture.kept())
        self.finish(
            code=code, cwd=cwd, total=capture.total, timed_out=self.timed_out, restarted=self.restarted
        )
