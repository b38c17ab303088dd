"""Persistent shells: an interactive bash whose input cannot be disturbed by the commands that it runs.

Bash has a terminal of its own, used only for job control and the interrupt key. The only text typed there is
one fixed line, which reads the command from a file and evaluates it, so an open quote or heredoc in a command
cannot swallow later input. Output goes to a pipe, so it arrives byte for byte as it was written. When bash is
at its prompt again, it writes the command's number, its exit code, bash's process id and the current folder
to another pipe. The commands inherit neither these pipes nor the file. Bash's own stderr is ``/dev/null``,
which hides prompts, and the fixed line under ``set -x``.
"""

from __future__ import annotations

import errno
import os
import termios
import time

from agentrl_sandboxes.guest.commands import NOT_RUN, Command, RunningCommand
from agentrl_sandboxes.guest.light import signal
from agentrl_sandboxes.guest.loop import Capture, PipeReader
from agentrl_sandboxes.guest.processes import descendants, signal_all
from agentrl_sandboxes.guest.server import Guest, Operation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

COMMAND, STATUS, STDERR = 20, 21, 22
"""Bash's file descriptors of the command's file, the pipe for its reports, and the pipe for output.

They are higher than the numbers that scripts usually open."""
BASH = ("bash", "--noprofile", "--norc", "--noediting", "-i")
SETUP = f"""
PS1= PS2= HISTFILE= __code=; set +H +o history
__return() {{ return "$1"; }}
__prompt='__code=${{__code:-$?}}; builtin printf "%s %s %s %s\\0" \
"$__number" "$__code" "$$" "$PWD" >&{STATUS}'
__number=0 PROMPT_COMMAND=$__prompt
"""
LINE = (
    f"__code= __number=%d; IFS= builtin read -r -d '' -u {COMMAND} __command; %sbuiltin eval \"$__command\""
    f" </dev/null 2>&{STDERR} {COMMAND}<&- {STATUS}>&- {STDERR}>&-; __code=$? PROMPT_COMMAND=$__prompt\n"
)
"""The fixed line that is typed for each command. It is filled in with the command's number, and with what
sets ``$?`` to the last command's exit code."""
INTERRUPT = "\x03"
START_S, PATIENCE_S, TRIES = 20.0, 0.5, 7
IDLE_OUTPUT = 1 << 16
"""Number of bytes kept of the output between two commands; the next command's output begins with them."""
TICKS = os.sysconf("SC_CLK_TCK")


class BashSession:
    """A bash that is started again when a command ends it.

    ``ready`` is called after every start: with ``None``, or with the reason why bash did not start.
    """

    def __init__(self, guest: Guest, cwd: str, env: Mapping[str, str]) -> None:
        self.guest, self.loop, self.cwd, self.env = guest, guest.loop, cwd or guest.workdir, env
        self.run: RunInShell | None = None
        self.next: RunInShell | None = None
        self.process: RunningCommand | None = None
        self.number, self.code, self.bash = 0, 0, 0
        self.capture = Capture(IDLE_OUTPUT)
        self.closed: Callable[[], object] | None = None

    def start(self, ready: Callable[[OSError | None], object]) -> None:
        """Start bash, in the folder where the previous one was."""
        self.ready: Callable[[OSError | None], object] | None = ready
        self.number, self.code, self.status = 0, 0, bytearray()
        self.master, self.terminal = os.openpty()  # both stay open, or the terminal would hang up
        status, to_status = os.pipe()
        output, to_output = os.pipe()
        self.command = os.memfd_create("command")
        null = os.open(os.devnull, os.O_WRONLY)
        self.sane = termios.tcgetattr(self.terminal)
        self.sane[3] &= ~termios.ECHO
        self.output = PipeReader(self.loop, output, self.take)
        self.readers = [
            PipeReader(self.loop, self.master, len),
            PipeReader(self.loop, status, self.at_prompt),
            self.output,
        ]
        files = {1: to_output, 2: null, COMMAND: self.command, STATUS: to_status, STDERR: to_output}
        try:
            command = Command(BASH, self.cwd, self.env, files, terminal=os.ttyname(self.terminal))
            self.process = process = RunningCommand(self.guest, command, self.ended, whole=True)
        except OSError:
            self.forget()
            raise
        finally:
            for fd in (to_status, to_output, null):
                os.close(fd)
        self.type(SETUP)
        self.loop.after(START_S, lambda: process.kill() if self.ready and process is self.process else None)

    def type(self, line: str) -> None:
        """Type a line at the terminal, after restoring the terminal's settings."""
        termios.tcsetattr(self.master, termios.TCSANOW, self.sane)
        os.write(self.master, line.encode())

    def begin(self, run: RunInShell) -> None:
        """Run a command, after starting bash again if it has ended."""
        if self.run:  # a cancelled command, whose bash is about to end
            run.restarted, self.next = True, run
            return
        self.run = run
        if self.process is None:
            run.restarted = True
            self.revive(lambda problem: self.refuse(problem) if problem else self.enter(run))
        else:
            self.enter(run)

    def enter(self, run: RunInShell) -> None:
        """Pass the command to bash."""
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

    def interrupt(self, run: RunInShell) -> None:
        """At the deadline, press the interrupt key; then kill what ignores it; at last kill bash itself."""
        if self.run is not run or not self.process:
            return
        run.timed_out = True
        run.tries += 1
        if run.tries == 1:
            self.type(INTERRUPT)
        elif run.tries == TRIES:
            self.process.kill()
            return
        else:  # after each kill bash continues with the command's next statement
            signal_all(descendants([self.process.pid], run.tick) - {self.bash}, signal.SIGKILL)
        self.loop.after(PATIENCE_S if run.tries == 1 else PATIENCE_S / 5, lambda: self.interrupt(run))

    def take(self, data: bytes) -> None:
        """Keep output, for the running command or for the next one."""
        self.capture.add(data)

    def at_prompt(self, data: bytes) -> None:
        """Handle bash's report that it is at its prompt.

        If an interrupt arrives after the command has ended, bash may report twice.
        """
        # while bash is being killed, a job that is stopped first may bring it back to its prompt
        if not self.process or self.process.killing:
            return
        self.status += data
        *reports, self.status = self.status.split(b"\0")
        for report in reports:
            number, code, pid, cwd = report.split(b" ", 3)
            if int(number) == self.number:
                self.code, self.bash, self.cwd = int(code), int(pid), os.fsdecode(bytes(cwd))
                if self.ready:
                    ready, self.ready = self.ready, None
                    ready(None)
                elif self.run:
                    self.answer(self.code)

    def answer(self, code: int) -> None:
        """Send the result of the command that ran."""
        self.output.drain()
        run, self.run = self.run, None
        capture, self.capture = self.capture, Capture(IDLE_OUTPUT)
        if run:
            run.answer(code, self.cwd, capture)
        following, self.next = self.next, None
        if following:
            self.begin(following)

    def ended(self, code: int) -> None:
        """Handle the end of bash: during a command, between two commands, or because the shell was closed."""
        self.process = None
        self.output.drain()
        self.forget()
        if self.closed:
            self.answer(code)
            self.closed()
        elif self.ready:
            output = self.capture.kept().decode(errors="replace").strip()
            ready, self.ready = self.ready, None
            ready(OSError(errno.EIO, output or f"bash ended with exit code {code}"))
        elif self.run:
            run = self.run
            run.restarted = True
            self.revive(lambda problem: self.answer(code))

    def refuse(self, problem: OSError) -> None:
        """Answer that bash cannot be started, for example because the limit on processes is reached."""
        self.capture.add(f"bash: cannot start: {problem.strerror}\n".encode())
        self.answer(NOT_RUN)

    def revive(self, ready: Callable[[OSError | None], object]) -> None:
        """Start bash again: in the folder where it was, else in ``workdir``, else in ``/``."""
        self.cwd = next(
            path for path in (self.cwd, self.guest.workdir, "/") if os.access(path, os.X_OK) or path == "/"
        )
        try:
            self.start(ready)
        except OSError as problem:
            ready(problem)

    def forget(self) -> None:
        """Close the file descriptors of the bash that has ended."""
        os.close(self.command)
        os.close(self.terminal)
        for reader in self.readers:
            reader.close()

    def close(self, closed: Callable[[], object]) -> None:
        """Kill bash and all that it started, then call ``closed``."""
        self.closed = closed
        if self.process:
            self.process.kill()
        else:
            closed()


class OpenShell(Operation):
    """Open a shell."""

    def open(self, cwd: str, env: dict[str, str]) -> None:
        """Start bash."""
        os.stat(cwd or self.guest.workdir)
        self.shell = BashSession(self.guest, cwd, env)
        self.shell.start(self.ready)

    def ready(self, problem: OSError | None) -> None:
        """Send the shell's number, or why bash did not start."""
        if problem:
            self.fail(problem)
        else:
            self.guest.shells[self.number] = self.shell
            self.finish(shell=self.number)

    def cancel(self) -> None:
        """Close the shell, whose number was not sent yet."""
        self.shell.close(lambda: None)


class CloseShell(Operation):
    """Close a shell."""

    def open(self, shell: int) -> None:
        """Kill the shell, and answer when it is gone."""
        known = self.guest.shells.pop(shell, None)
        if known:
            known.close(lambda: self.finish(done=True))
        else:
            self.finish(done=True)


class RunInShell(Operation):
    """Run a command in a shell; its text is the request's data."""

    restarted = timed_out = False
    tries, tick, started = 0, 0, 0.0

    def open(self, shell: int, timeout_s: float, max_output: int) -> None:
        """Prepare to receive the command's text."""
        self.shell = self.guest.shells[shell]
        self.timeout_s, self.max_output, self.text = timeout_s, max_output, bytearray()

    def data(self, body: bytes) -> None:
        """Receive a part of the command's text."""
        self.text += body
        self.credit(len(body))

    def end(self) -> None:
        """Run the command: its text is complete."""
        try:
            self.shell.begin(self)
        except OSError as problem:
            self.fail(problem)

    def cancel(self) -> None:
        """Kill the shell if it runs this command, as its state is then unknown; else drop the command."""
        if self.shell.next is self:
            self.shell.next = None
        elif self.shell.run is self and self.shell.process:
            self.shell.process.kill()

    def answer(self, code: int, cwd: str, capture: Capture) -> None:
        """Send the output and the result."""
        if self.number in self.guest.channels:
            self.send(capture.kept())
        self.finish(
            code=code, cwd=cwd, total=capture.total, timed_out=self.timed_out, restarted=self.restarted
        )
