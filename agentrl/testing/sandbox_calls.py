"""Clauses on what an open sandbox does when it is asked."""

from __future__ import annotations

import asyncio
import io
import socket
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import closing

from agentrl.sandbox import Sandbox
from agentrl.testing.sandbox_shells import SOON_S, shell_ends, shells

EVERY_BYTE = bytes(range(256))
MIB = 1 << 20
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
DAEMON = 'python3 -c \'import os, sys; os.fork() and os._exit(0); os.setsid(); os.execvp("sleep", ["sleep", sys.argv[1]])\''
"""A shell command: a double fork, and a session of its own."""
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
    """Whatever a command does is a result."""
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
            yield f"{argv[0]!r} has exit code {ran.exit_code} and stderr {ran.stderr!r} in place of {code} and the reason"
    for words in (("a\0b",), ("x" * 300_000,), ("y" * 1000,) * 6000, ("\ud83d",)):
        if (ran := await sandbox.exec(["true", *words])).exit_code != 126 or not ran.stderr:
            yield f"what cannot be run, with {len(words)} words such as {words[0][:9]!r}, has exit code {ran.exit_code} in place of 126"
    if (ran := await sandbox.exec(["true"], cwd="/no/such/folder")).exit_code != 126:
        yield f"a cwd that does not exist has exit code {ran.exit_code} in place of 126"


async def exec_arguments(sandbox: Sandbox) -> AsyncIterator[str]:
    """Arguments, environment, folder and input arrive as they were given."""
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
        yield f"with cwd='/usr', pwd says {ran.stdout!r}"
    if (ran := await sandbox.exec(["touch", "writable"])).exit_code != 0:
        yield f"workdir is not writable: {ran.stderr!r}"
    if (ran := await sandbox.exec(["wc", "-c"], stdin=bytes(20 * MIB))).stdout.strip() != str(
        20 * MIB
    ).encode():
        yield f"of 20 MiB on stdin there arrive {ran.stdout!r}"
    if (ran := await sandbox.exec(["true"], stdin=bytes(20 * MIB))).exit_code != 0:
        yield f"input that a command does not read gives exit code {ran.exit_code}"


async def exec_output(sandbox: Sandbox) -> AsyncIterator[str]:
    """Output is what was written; of a long one, the first and last half of the allowance, and how long it was."""
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
        yield f"of 50 MB of output, {len(ran.stdout)} bytes are kept, which are not the first and the last 500"
    if time.monotonic() - started > 30:
        yield f"50 MB of output took {time.monotonic() - started:.0f} s"
    ran = await sandbox.exec(["sh", "-c", "printf 0123456789"], max_output=10)
    if ran.stdout != b"0123456789" or ran.truncated:
        yield "output of just the allowance is cut"
    ran = await sandbox.exec(["sh", "-c", "sleep 20 & echo said"])
    if ran.stdout != b"said\n" or ran.duration_s > SOON_S or ran.timed_out:
        yield f"a job in the background that holds the output kept its command for {ran.duration_s:.1f} s"


async def exec_deadline(sandbox: Sandbox) -> AsyncIterator[str]:
    """Past its deadline nothing of a command is left, and everything of others."""
    await sandbox.exec(["sh", "-c", "sleep 86300 >/dev/null 2>&1 & exit 0"])
    tree = f"{DAEMON} 86301; (sh -c 'sleep 86301 & sleep 86301' &) ; sleep 86301 & trap '' TERM INT HUP; sleep 86301"
    beside = asyncio.create_task(sandbox.exec(["sh", "-c", "sleep 2; echo beside"]))
    ran = await sandbox.exec(["sh", "-c", f"echo begun; {tree}"], timeout_s=1.0)
    if not ran.timed_out or ran.exit_code != -9 or ran.stdout != b"begun\n":
        yield f"past its deadline a command has exit code {ran.exit_code}, timed_out={ran.timed_out} and output {ran.stdout!r}"
    if ran.duration_s > 1 + SOON_S:
        yield f"a deadline of 1 s was kept after {ran.duration_s:.1f} s"
    if ran.num_killed < 5:
        yield f"num_killed is {ran.num_killed}, of a command with at least 5 processes"
    left = (await sandbox.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline"])).stdout
    if b"86301" in left:
        yield "children that were daemonised live on after the deadline"
    if b"86300" not in left:
        yield "the deadline of one command killed what another one had started"
    if (other := await beside).stdout != b"beside\n":
        yield f"the deadline of one command disturbed another: {other!r}"
    ran = await sandbox.exec(["sh", "-c", "yes"], timeout_s=0.5, max_output=100)
    if not ran.timed_out or ran.duration_s > 0.5 + SOON_S:
        yield "a flood of output outlives its deadline"


async def file_contents(sandbox: Sandbox) -> AsyncIterator[str]:
    """Files that are written are read back, and seen by commands."""
    large = EVERY_BYTE * (32 * MIB // 256)
    for path, data in {
        "empty": b"",
        "deep/er/ünï 狐.bin": EVERY_BYTE,
        "large": large,
        "/tmp/absolute": b"x",
    }.items():
        await sandbox.write(path, data)
        if await sandbox.read(path) != data:
            yield f"{path!r} of {len(data)} bytes is read back changed"
    if (ran := await sandbox.exec(["wc", "-c", "large"])).stdout.split()[:1] != [str(len(large)).encode()]:
        yield f"a file of 32 MiB is {ran.stdout!r} inside"
    await sandbox.exec(["rm", "large"])
    await sandbox.write("run", b"#!/bin/sh\necho ran\n", mode=0o755)
    if (ran := await sandbox.exec(["./run"])).stdout != b"ran\n":
        yield f"a file written with mode=0o755 cannot be run: {ran.stderr!r}"
    await sandbox.write("run", b"#!/bin/sh\necho again\n")
    if (ran := await sandbox.exec(["./run"])).stdout != b"again\n":
        yield f"an executable file that is written again is none any more: {ran.stderr!r}"


async def file_errors(sandbox: Sandbox) -> AsyncIterator[str]:
    """Raise as a local file system does, and never block."""
    await sandbox.write("file", b"12345")
    await sandbox.exec(
        [
            "sh",
            "-c",
            "mkdir folder; mkfifo pipe; ln -s loop loop; ln -s /dev/zero zero; echo > closed; chmod 0 closed",
        ]
    )
    closed = (
        await sandbox.exec(["cat", "closed"])
    ).exit_code != 0  # nothing is closed to root with all its privileges
    for path, kind in {
        **{
            "absent": FileNotFoundError,
            "folder": IsADirectoryError,
            "file/below": NotADirectoryError,
            "loop": OSError,
            "pipe": OSError,
        },
        **{"zero": OSError, "nul\0": OSError, "\ud83d": OSError, "": OSError, "x" * 5000: OSError},
        **({"closed": PermissionError} if closed else {}),
    }.items():
        if not isinstance(problem := await _raised(sandbox.read(path)), kind):
            yield f"read({path[:10]!r}) gives {problem!r} in place of {kind.__name__}"
        if path != "absent" and not isinstance(problem := await _raised(sandbox.write(path, b"x")), kind):
            yield f"write({path[:10]!r}) gives {problem!r} in place of {kind.__name__}"
    if getattr(await _raised(sandbox.read("file", max_bytes=4)), "errno", 0) != 27:
        yield "a file longer than max_bytes is not EFBIG"
    if await sandbox.read("file", max_bytes=5) != b"12345":
        yield "a file of just max_bytes cannot be read"


def archive(*members: tuple[str, bytes | str | None], mode: str = "w") -> bytes:
    """Return a tar archive: bytes are a file, text is a symbolic link, nothing is a folder."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as made:  # type: ignore[call-overload]  # one of tarfile's literals
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.type = (
                tarfile.DIRTYPE
                if content is None
                else tarfile.SYMTYPE
                if isinstance(content, str)
                else tarfile.REGTYPE
            )
            info.mode, info.linkname = 0o755, content if isinstance(content, str) else ""
            info.size = len(content) if isinstance(content, bytes) else 0
            made.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return file.getvalue()


async def archives(sandbox: Sandbox) -> AsyncIterator[str]:
    """Put archives in and get them back as they are."""
    content = (("a", None), ("a/ünï", EVERY_BYTE), ("a/link", "ünï"), ("a/empty", None), ("n" * 200, b"long"))
    for mode in ("w", "w:gz", "w:xz"):
        await sandbox.put_tar("into/here", archive(*content, mode=mode))
        with tarfile.open(fileobj=io.BytesIO(await sandbox.get_tar("into/here"))) as back:
            names = sorted(back.getnames())
            if names != sorted(["here", *(f"here/{name}" for name, _ in content)]):
                yield f"what was put in as {mode!r} comes back as {names}"
            elif (
                (read := back.extractfile("here/a/ünï")) is None
                or read.read() != EVERY_BYTE
                or back.getmember("here/a/ünï").mode != 0o755
            ):
                yield "a file comes back changed"
            elif back.getmember("here/a/link").linkname != "ünï":
                yield "a symbolic link comes back changed"
    with tarfile.open(fileobj=io.BytesIO(await sandbox.get_tar("into/here/a/ünï"))) as back:
        if back.getnames() != ["ünï"]:
            yield f"an archive of a single file holds {back.getnames()}"
    if not isinstance(problem := await _raised(sandbox.get_tar("absent")), FileNotFoundError):
        yield f"get_tar of what does not exist gives {problem!r}"
    if getattr(await _raised(sandbox.get_tar("into", max_bytes=700)), "errno", 0) != 27:
        yield "an archive longer than max_bytes is not EFBIG"
    await sandbox.exec(["sh", "-c", "mkfifo into/pipe; ln -s /dev/zero into/zero"])
    await sandbox.get_tar("into")


async def archive_escapes(sandbox: Sandbox) -> AsyncIterator[str]:
    """No member leaves the folder, makes a device, or is larger than the disk."""
    device = tarfile.TarInfo("device")
    device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 5
    hard = tarfile.TarInfo("hard")
    hard.type, hard.linkname = tarfile.LNKTYPE, "../outside"
    await sandbox.write("outside", b"safe")
    for what, data in {
        "..": archive(("../outside", b"gone")),
        "an absolute name": archive((f"{sandbox.spec.workdir}/outside", b"gone")),
        "a link and then through it": archive(("link", ".."), ("link/outside", b"gone")),
        "an absolute link and then through it": archive(
            ("link", sandbox.spec.workdir), ("link/outside", b"gone")
        ),
        "a hard link to the outside": hard.tobuf() + bytes(1024),
        "a device": device.tobuf() + bytes(1024),
        "no archive": b"no archive" * 100,
        "nothing": b"",
    }.items():
        if not isinstance(problem := await _raised(sandbox.put_tar("folder", data)), ValueError):
            yield f"put_tar of {what} gives {problem!r} in place of ValueError"
        if await sandbox.read("outside") != b"safe":
            yield f"put_tar of {what} wrote outside of its folder"
            await sandbox.write("outside", b"safe")
    bomb = await asyncio.to_thread(archive, ("bomb", bytes((sandbox.spec.disk_mib + 64) * MIB)), mode="w:gz")
    if not isinstance(problem := await _raised(sandbox.put_tar("bombed", bomb)), OSError):
        yield f"{len(bomb) >> 10} KiB that unpack to more than disk_mib give {problem!r} in place of OSError"
    await sandbox.exec(["rm", "-rf", "bombed"])


async def at_once(sandbox: Sandbox) -> AsyncIterator[str]:
    """Serve calls at the same time, and do not mix them up."""
    slow = asyncio.create_task(sandbox.exec(["sleep", "20"], timeout_s=30))
    started = time.monotonic()
    ran = await asyncio.gather(
        *[sandbox.exec(["sh", "-c", f"sleep 0.5; echo {index}"]) for index in range(12)]
    )
    if [each.stdout for each in ran] != [f"{index}\n".encode() for index in range(12)]:
        yield "results of commands at the same time are mixed up"
    if time.monotonic() - started > SOON_S:
        yield f"12 commands of half a second took {time.monotonic() - started:.1f} s"

    async def there_and_back(index: int) -> bool:
        data = bytes([index]) * (4 * MIB)
        await sandbox.write(f"at-once-{index}", data)
        return await sandbox.read(f"at-once-{index}") == data

    if not all(await asyncio.gather(*map(there_and_back, range(6)))):
        yield "files written at the same time are mixed up"
    slow.cancel()
    await asyncio.wait({slow})


async def kill_all(sandbox: Sandbox) -> AsyncIterator[str]:
    """Everything inside is killed, and the sandbox is still good."""
    await sandbox.kill_all()
    running = asyncio.create_task(sandbox.exec(["sleep", "86304"]))
    await sandbox.exec(["sh", "-c", f"{DAEMON} 86304"])
    if (num := await sandbox.kill_all()) != 2:
        yield f"with two processes it says {num}"
    if (ran := await running).exit_code != -9 or ran.timed_out:
        yield f"a command that it killed has exit code {ran.exit_code}"
    if b"86304" in (await sandbox.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline"])).stdout:
        yield "processes live on"


async def network(sandbox: Sandbox) -> AsyncIterator[str]:
    """With ``network='none'`` there is a loopback of its own, and nothing else."""
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
    """Reach a server inside, through a socket that lives as long as its context."""
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
            except ConnectionError:  # it was closed before all was sent
                return b""
            finally:
                writer.close()

        until = time.monotonic() + SOON_S
        while not (got := await ask()) and time.monotonic() < until:
            await asyncio.sleep(0.1)
        if got != sent[::-1] or any(each != got for each in await asyncio.gather(*[ask() for _ in range(4)])):
            yield f"of {len(sent)} bytes to a server inside, {len(got)} come back, or others"
        reader, writer = await asyncio.open_unix_connection(nobody)
        if await asyncio.wait_for(reader.read(), SOON_S):
            yield "a port where nobody listens says something"
        writer.close()
    if path.exists():
        yield "its socket is left behind"


async def _raised(call: object) -> object:
    """Return what a call raises, or returns."""
    try:
        return await call  # type: ignore[misc]  # each is a coroutine
    except (OSError, ValueError) as problem:
        return problem


CALLS: Mapping[str, Callable[[Sandbox], AsyncIterator[str]]] = {
    **{
        "exec results": exec_results,
        "exec arguments": exec_arguments,
        "exec output": exec_output,
        "exec deadline": exec_deadline,
    },
    **{
        "file contents": file_contents,
        "file errors": file_errors,
        "archives": archives,
        "archive escapes": archive_escapes,
    },
    **{
        "shells": shells,
        "shell ends": shell_ends,
        "at once": at_once,
        "kill all": kill_all,
        "network": network,
        "endpoints": endpoints,
    },
}
