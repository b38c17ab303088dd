"""Clauses on files and archives."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator

from agentrl.sandbox import Sandbox

EVERY_BYTE = bytes(range(256))
MIB = 1 << 20


async def file_contents(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that written files are read back unchanged, and that commands see them."""
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
        yield f"an executable file that is written again is not executable any more: {ran.stderr!r}"


async def file_errors(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that errors are those of a local file system, and that no call blocks."""
    await sandbox.write("file", b"12345")
    await sandbox.exec(
        [
            "sh",
            "-c",
            "mkdir folder; mkfifo pipe; ln -s loop loop; ln -s /dev/zero zero; echo > closed; chmod 0 closed",
        ]
    )
    expected: dict[str, type[OSError]] = {
        "absent": FileNotFoundError,
        "folder": IsADirectoryError,
        "file/below": NotADirectoryError,
        "loop": OSError,
        "pipe": OSError,
        "zero": OSError,
        "nul\0": OSError,
        "\ud83d": OSError,
        "": OSError,
        "x" * 5000: OSError,
    }
    if (await sandbox.exec(["cat", "closed"])).exit_code != 0:  # else inside is root with all its privileges
        expected["closed"] = PermissionError
    for path, kind in expected.items():
        if not isinstance(problem := await _raised(sandbox.read(path)), kind):
            yield f"read({path[:10]!r}) gives {problem!r} in place of {kind.__name__}"
        if path != "absent" and not isinstance(problem := await _raised(sandbox.write(path, b"x")), kind):
            yield f"write({path[:10]!r}) gives {problem!r} in place of {kind.__name__}"
    if getattr(await _raised(sandbox.read("file", max_bytes=4)), "errno", 0) != 27:
        yield "reading a file longer than max_bytes does not raise EFBIG"
    if await sandbox.read("file", max_bytes=5) != b"12345":
        yield "a file of exactly max_bytes cannot be read"


def archive(*members: tuple[str, bytes | str | None], mode: str = "w") -> bytes:
    """Return a tar archive of members: bytes are a file, a string a symbolic link, ``None`` a folder."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as made:  # type: ignore[call-overload]  # one of tarfile's literals
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o755
            if isinstance(content, bytes):
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))
            elif content is None:
                info.type = tarfile.DIRTYPE
                made.addfile(info)
            else:
                info.type, info.linkname = tarfile.SYMTYPE, content
                made.addfile(info)
    return file.getvalue()


async def archives(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that archives are unpacked and packed unchanged."""
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
        yield "packing an archive longer than max_bytes does not raise EFBIG"
    await sandbox.exec(["sh", "-c", "mkfifo into/pipe; ln -s /dev/zero into/zero"])
    await sandbox.get_tar("into")


async def archive_escapes(sandbox: Sandbox) -> AsyncIterator[str]:
    """Check that no member leaves the folder, creates a device, or is larger than the disk."""
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


async def _raised(call: object) -> object:
    """Return the error that a call raises, or its result if it raises none."""
    try:
        return await call  # type: ignore[misc]  # each is a coroutine
    except (OSError, ValueError) as problem:
        return problem
