"""Clauses on persistent shells."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from agentrl.sandbox import Sandbox

SOON_S = 5.0
"""Generous deadline, also for a busy machine, of what should happen at once."""


async def shells(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that a shell keeps its state, and that its output arrives byte for byte."""
    async with sandbox.shell(env={"GIVEN": "ä"}) as shell:
        for command, code, output in (
            ("echo $GIVEN; pwd", 0, f"ä\n{sandbox.spec.workdir}\n".encode()),
            ("x='1  2'; f() { echo \"f $1\"; }; alias hey='echo hey'; mkdir -p sub; cd sub", 0, b""),
            ('echo "$x"; f y; hey; pwd', 0, f"1  2\nf y\nhey\n{sandbox.spec.workdir}/sub\n".encode()),
            ("echo out; echo err >&2; echo out", 0, b"out\nerr\nout\n"),
            ("printf 'a\\0\\377\\r\\n\\tb'", 0, b"a\0\xff\r\n\tb"),
            ("false", 1, b""),
            ("echo $?", 0, b"1\n"),
            ("(exit 77)", 77, b""),
            (
                "cat; read y; echo \"[$y]\"; python3 -c 'import sys; print(repr(sys.stdin.read()))'",
                0,
                b"[]\n''\n",
            ),
            ("cat <<'EOF'\n$x 'and \"quotes\nEOF", 0, b"$x 'and \"quotes\n"),
            ("for i in 1 2\ndo\n  echo $i\ndone\n", 0, b"1\n2\n"),
            ("# nothing", 0, b""),
            ("", 0, b""),
            ("printf %s " + "y" * 200_000, 0, b"y" * 200_000),
        ):
            ran = await shell.run(command)
            if (ran.exit_code, ran.output) != (code, output) or ran.restarted or ran.timed_out:
                given = f"{ran.exit_code} and {ran.output[:200]!r}"
                yield f"{command[:60]!r} gives {given} in place of {code} and {output[:200]!r}"
        for command in (
            "echo 'open",
            'echo "open',
            "echo $(open",
            "if true; then",
            "cat <<EOF\nopen",
            ")",
            "a\0b",
        ):
            ran = await shell.run(command, timeout_s=SOON_S)
            if ran.timed_out or (await shell.run('echo "$x"')).output != b"1  2\n":
                yield f"after {command!r} the shell has lost its state"
        ran = await shell.run("echo first; head -c 50000000 /dev/zero; echo last", max_output=1000)
        if ran.output_total != 50_000_011 or ran.output != b"first\n" + bytes(989) + b"last\n":
            kept = f"{len(ran.output)} bytes are kept and output_total is {ran.output_total}"
            yield f"of 50 MB of output, {kept}"
        started = time.monotonic()
        if (ran := await shell.run("sleep 86302 &")).exit_code != 0 or time.monotonic() - started > SOON_S:
            yield "a background job blocks the shell"
        if (await shell.run("sleep 0.1 && echo late & wait $!; echo on")).output.splitlines()[-1:] != [b"on"]:
            yield "a job cannot be waited for"
    if b"86302" in (await sandbox.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline"])).stdout:
        yield "a process that a shell started still runs after the shell was closed"


async def shell_ends(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that deadlines interrupt commands, and that a shell that has ended is replaced in its folder."""
    async with sandbox.shell() as shell, sandbox.shell() as other:
        await shell.run("x=1; cd /usr")
        for command in (
            "sleep 86303",
            "while :; do :; done",
            "sleep 86303 | cat",
            "python3 -c 'import time; time.sleep(99)'",
        ):
            ran = await shell.run(command, timeout_s=0.5)
            if not ran.timed_out or ran.restarted or ran.duration_s > 0.5 + SOON_S:
                yield f"{command!r} at its deadline: {ran}"
            if (ran := await shell.run("echo $x $PWD")).output != b"1 /usr\n":
                yield f"after {command!r} the shell has lost its state: {ran.output!r}"
        ran = await shell.run("trap '' INT TERM; while :; do sleep 86303; done", timeout_s=0.5)
        if not ran.timed_out or ran.duration_s > 0.5 + 2 * SOON_S:
            yield f"a command that ignores the interrupt, at its deadline: {ran}"
        for command, code in {"exit 3": 3, "set -e; (exit 4)": 4, "kill -9 $$": -9, "exec true": 0}.items():
            await shell.run("x=2; cd /usr/bin")
            ran = await shell.run(command)
            if not ran.restarted or ran.exit_code != code or ran.cwd != "/usr/bin":
                yield f"{command!r} gives {ran}, where a new shell in /usr/bin was expected"
            if (ran := await shell.run('echo "$x" $PWD')).output != b" /usr/bin\n":
                yield f"after {command!r}, the new shell prints {ran.output!r}"
        if (ran := await other.run("echo mine")).output != b"mine\n":
            yield "one shell disturbs another"
    if b"86303" in (await sandbox.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline"])).stdout:
        yield "a process of an interrupted command still runs"
