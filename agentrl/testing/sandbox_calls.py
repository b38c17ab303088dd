"""Clauses on the calls of an open sandbox. Each is a function that yields how its clause is not kept."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import closing

from agentrl.sandbox import Sandbox
from agentrl.testing.sandbox_files import (
    EVERY_BYTE,
    MIB,
    archive_escapes,
    archives,
    file_contents,
    file_errors,
)
from agentrl.testing.sandbox_shells import SOON_S, shell_ends, shells

REACH = """
import fcntl, socket, struct, sys
SIOCGIFFLAGS, IFF_UP = 0x8913, 1
def attempt(what, family, address):
    try:
        with socket.socket(family) as tried:
            tried.settimeout(2)
            tried.connect(address)
        print(what)
    except OSError:
        pass
attempt("the host's loopback", socket.AF_INET, ("127.0.0.1", int(sys.argv[1])))
attempt("the host's abstract sockets", socket.AF_UNIX, "\\0" + sys.argv[2])
attempt("the outside", socket.AF_INET, ("192.0.2.1", 80))
for line in open("/proc/net/dev").readlines()[2:]:
    name = line.split(":")[0].strip()
    flags = fcntl.ioctl(socket.socket(), SIOCGIFFLAGS, struct.pack("16s16x", name.encode()))
    if name != "lo" and struct.unpack("16xH14x", flags)[0] & IFF_UP:
        print("interface", name)
"""
DAEMON = (
    "python3 -c 'import os, sys; os.fork() and os._exit(0); os.setsid(); "
    'os.execvp("sleep", ["sleep", sys.argv[1]])\''
)
"""A shell command that starts ``sleep`` as a daemon: a double fork, in a new session."""
SERVE = """
import socket
server = socket.create_server(("127.0.0.1", 8123))
while True:
    connection, _ = server.accept()
    got = b""
    while data := connection.recv(65536):
        got += data
    connection.sendall(got[::-1])
    connection.close()
"""


async def exec_results(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that whatever a command does is returned as a result and never raised."""
    for script, code in {"exit 0": 0, "exit 7": 7, "kill -15 $$": -15, "kill -9 $$": -9}.items():
        if (ran := await sandbox.exec(["sh", "-c", script])).exit_code != code:
            yield f"{script!r} has exit code {ran.exit_code} in place of {code}"
    await sandbox.write("plain.txt", b"no program")
    for argv, code in {
        ("no-such-program",): 127,
        ("/no/such/program",): 127,
        ("./plain.txt",): 126,
        ("/",): 126,
    }.items():
        ran = await sandbox.exec(argv)
        if ran.exit_code != code or not ran.stderr:
            found = f"exit code {ran.exit_code} and stderr {ran.stderr!r}"
            yield f"{argv[0]!r} has {found} in place of {code} and the reason"
    for words in (("a\0b",), ("x" * 300_000,), ("y" * 1000,) * 6000, ("\ud83d",)):
        if (ran := await sandbox.exec(["true", *words])).exit_code != 126 or not ran.stderr:
            what = f"a command that cannot be run, with {len(words)} words such as {words[0][:9]!r},"
            yield f"{what} has exit code {ran.exit_code} in place of 126"
    if (ran := await sandbox.exec(["true"], cwd="/no/such/folder")).exit_code != 126:
        yield f"a cwd that does not exist has exit code {ran.exit_code} in place of 126"


async def exec_arguments(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that arguments, environment, folder and input arrive as they were given."""
    words = ["a b", "", "'\"$x`", "🦊 狐狸", "\n", "-n"]
    ran = await sandbox.exec(["printf", "%s|", *words])
    if ran.stdout != "".join(f"{word}|" for word in words).encode():
        yield f"arguments arrive as {ran.stdout!r}"
    ran = await sandbox.exec(
        ["sh", "-c", "echo $PWD; echo $GIVEN; echo $PATH; cat"], env={"GIVEN": "ä ö"}, stdin=EVERY_BYTE
    )
    where, given, path, rest = ran.stdout.split(b"\n", 3)
    if where.decode() != sandbox.spec.workdir:
        yield f"a command starts in {where!r} in place of workdir"
    if given.decode() != "ä ö" or b"/usr/bin" not in path:
        yield f"env arrives as {given!r}, with PATH={path!r}"
    if rest != EVERY_BYTE or ran.stderr:
        yield f"stdin arrives as {rest[:40]!r}"
    if (ran := await sandbox.exec(["pwd"], cwd="/usr")).stdout != b"/usr\n":
        yield f"with cwd='/usr', pwd prints {ran.stdout!r}"
    if (ran := await sandbox.exec(["touch", "writable"])).exit_code != 0:
        yield f"workdir is not writable: {ran.stderr!r}"
    if (ran := await sandbox.exec(["wc", "-c"], stdin=bytes(20 * MIB))).stdout.strip() != str(
        20 * MIB
    ).encode():
        yield f"of 20 MiB on stdin, {ran.stdout!r} bytes arrive"
    if (ran := await sandbox.exec(["true"], stdin=bytes(20 * MIB))).exit_code != 0:
        yield f"input that a command does not read gives exit code {ran.exit_code}"


async def exec_output(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that output arrives as written; of a long one the beginning, the end and the length arrive."""
    await sandbox.write("bytes", EVERY_BYTE)
    ran = await sandbox.exec(["sh", "-c", "cat bytes; cat bytes bytes >&2"])
    if (ran.stdout, ran.stderr) != (EVERY_BYTE, 2 * EVERY_BYTE) or ran.truncated:
        yield "bytes of stdout or stderr are changed, mixed or missing"
    started = time.monotonic()
    ran = await sandbox.exec(
        ["sh", "-c", "echo first; head -c 50000000 /dev/zero; echo last"], max_output=1000
    )
    if ran.stdout_total != 50_000_011 or not ran.truncated:
        yield f"of 50 MB of output, stdout_total is {ran.stdout_total}"
    if ran.stdout != b"first\n" + bytes(494 + 495) + b"last\n":
        yield f"of 50 MB of output, {len(ran.stdout)} bytes are kept, not the first and the last 500"
    if time.monotonic() - started > 30:
        yield f"50 MB of output took {time.monotonic() - started:.0f} s"
    ran = await sandbox.exec(["sh", "-c", "printf 0123456789"], max_output=10)
    if ran.stdout != b"0123456789" or ran.truncated:
        yield "output of exactly max_output bytes is cut"
    ran = await sandbox.exec(["sh", "-c", "sleep 20 & echo said"])
    if ran.stdout != b"said\n" or ran.duration_s > SOON_S or ran.timed_out:
        yield f"a background job that holds the output open kept its command for {ran.duration_s:.1f} s"


async def exec_deadline(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that a deadline kills all processes of its command, and none of other commands."""
    await sandbox.exec(["sh", "-c", "sleep 86300 >/dev/null 2>&1 & exit 0"])
    tree = (
        f"{DAEMON} 86301; (sh -c 'sleep 86301 & sleep 86301' &) ; "
        "sleep 86301 & trap '' TERM INT HUP; sleep 86301"
    )
    beside = asyncio.create_task(sandbox.exec(["sh", "-c", "sleep 2; echo beside"]))
    ran = await sandbox.exec(["sh", "-c", f"echo begun; {tree}"], timeout_s=1.0)
    if not ran.timed_out or ran.exit_code != -9 or ran.stdout != b"begun\n":
        found = f"exit code {ran.exit_code}, timed_out={ran.timed_out} and output {ran.stdout!r}"
        yield f"a command that missed its deadline has {found}"
    if ran.duration_s > 1 + SOON_S:
        yield f"a deadline of 1 s was enforced after {ran.duration_s:.1f} s"
    if ran.num_killed < 5:
        yield f"num_killed is {ran.num_killed}, of a command with at least 5 processes"
    left = (await sandbox.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline"])).stdout
    if b"86301" in left:
        yield "daemons that the command started still run after the deadline"
    if b"86300" not in left:
        yield "the deadline of one command killed a process of another one"
    if (other := await beside).stdout != b"beside\n":
        yield f"the deadline of one command disturbed another: {other!r}"
    ran = await sandbox.exec(["sh", "-c", "yes"], timeout_s=0.5, max_output=100)
    if not ran.timed_out or ran.duration_s > 0.5 + SOON_S:
        yield "a command that floods its output is not ended at its deadline"


async def at_once(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that concurrent calls are served at the same time, and not mixed up."""
    slow = asyncio.create_task(sandbox.exec(["sleep", "20"], timeout_s=30))
    started = time.monotonic()
    ran = await asyncio.gather(
        *[sandbox.exec(["sh", "-c", f"sleep 0.5; echo {index}"]) for index in range(12)]
    )
    if [each.stdout for each in ran] != [f"{index}\n".encode() for index in range(12)]:
        yield "results of concurrent commands are mixed up"
    if time.monotonic() - started > SOON_S:
        yield f"12 commands of half a second took {time.monotonic() - started:.1f} s"

    async def there_and_back(index: int) -> bool:
        data = bytes([index]) * (4 * MIB)
        await sandbox.write(f"at-once-{index}", data)
        return await sandbox.read(f"at-once-{index}") == data

    if not all(await asyncio.gather(*map(there_and_back, range(6)))):
        yield "files that are written concurrently are mixed up"
    slow.cancel()
    await asyncio.wait({slow})


async def kill_all(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that everything inside is killed, and that the sandbox can still be used."""
    await sandbox.kill_all()
    running = asyncio.create_task(sandbox.exec(["sleep", "86304"]))
    await sandbox.exec(["sh", "-c", f"{DAEMON} 86304"])
    if (num := await sandbox.kill_all()) != 2:
        yield f"with two processes it returns {num}"
    if (ran := await running).exit_code != -9 or ran.timed_out:
        yield f"a command that it killed has exit code {ran.exit_code}"
    if b"86304" in (await sandbox.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline"])).stdout:
        yield "processes still run after it"


async def network(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that with ``network='none'`` there is only the sandbox's own loopback interface."""
    if sandbox.spec.network != "none":
        return
    name = f"agentrl-check-{time.monotonic_ns()}"
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as server,
        closing(socket.socket(socket.AF_UNIX)) as abstract,
    ):
        abstract.bind("\0" + name)
        abstract.listen()
        ran = await sandbox.exec(["python3", "-c", REACH, str(server.getsockname()[1]), name])
    if ran.exit_code != 0:
        yield f"it could not be checked: {ran.stderr.decode()[-300:]}"
    for what in ran.stdout.decode().splitlines():
        yield f"{what} can be reached"


async def endpoints(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that an endpoint's socket leads to a server inside, and exists only inside its context."""
    await sandbox.write("serve.py", SERVE.encode())
    await sandbox.exec(["sh", "-c", "python3 serve.py >/dev/null 2>&1 & exit 0"])
    sent = EVERY_BYTE * (4 * MIB // 256)
    async with sandbox.endpoint(8123) as path, sandbox.endpoint(8124) as nobody:

        async def ask() -> bytes:
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(sent)
            writer.write_eof()
            try:
                return await reader.read()
            except ConnectionError:  # the connection was closed before all was sent
                return b""
            finally:
                writer.close()

        until = time.monotonic() + SOON_S
        while not (got := await ask()) and time.monotonic() < until:
            await asyncio.sleep(0.1)
        if got != sent[::-1] or any(each != got for each in await asyncio.gather(*[ask() for _ in range(4)])):
            yield f"of {len(sent)} bytes to a server inside, {len(got)} come back, or other ones"
        reader, writer = await asyncio.open_unix_connection(nobody)
        if await asyncio.wait_for(reader.read(), SOON_S):
            yield "a port on which no server listens sends something"
        writer.close()
    if path.exists():
        yield "the socket is left behind"


CALLS: Mapping[str, Callable[[Sandbox], AsyncIterator[str]]] = {
    "exec results": exec_results,
    "exec arguments": exec_arguments,
    "exec output": exec_output,
    "exec deadline": exec_deadline,
    "file contents": file_contents,
    "file errors": file_errors,
    "archives": archives,
    "archive escapes": archive_escapes,
    "shells": shells,
    "shell ends": shell_ends,
    "at once": at_once,
    "kill all": kill_all,
    "network": network,
    "endpoints": endpoints,
}
"""The functions that check the clauses, by the name of the clause."""
