"""The guest: in all Python versions that it supports, and properties of its parts."""

import ast
import asyncio
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from agentrl_sandboxes import guest
from agentrl_sandboxes.guest.loop import Capture
from agentrl_sandboxes.guest.processes import descendants, processes
from agentrl_sandboxes.guest.tar import member_path, pack, unpack
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plain import Plain, session

from agentrl.types import SandboxSpec

VERSIONS = ("3.8", "3.9", "3.10", "3.12", "3.13")


def interpreter(version: str) -> str:
    """Find a Python of that version that runs, or skip."""
    places = [
        shutil.which(f"python{version}"),
        *map(str, Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python")),
    ]
    for place in filter(None, places):
        if subprocess.run([place, "-c", ""], capture_output=True, check=False).returncode == 0:
            return place
    pytest.skip(f"there is no Python {version} here")


@pytest.mark.parametrize("version", VERSIONS)
def test_it_runs_on_every_python_since_3_8(version):
    backend = Plain()
    backend.python = interpreter(version)

    async def check():
        async with session(backend=backend) as sandbox:
            ran = await sandbox.exec(["sh", "-c", "(sleep 600 &); sleep 600"], timeout_s=0.3)
            assert (ran.timed_out, ran.num_killed) == (True, 3)
            assert (await sandbox.exec(["no-such-program"])).exit_code == 127
            await sandbox.write("a/b", b"content")
            archive = await sandbox.get_tar("a")
            await sandbox.put_tar("copy", archive)
            assert await sandbox.read("copy/a/b") == b"content"
            async with sandbox.shell() as shell:
                assert (await shell.run("cd a; ls; false")).exit_code == 1
                assert (await shell.run("sleep 9", timeout_s=0.2)).timed_out
                assert (await shell.run("exit 3")).restarted
                assert (await shell.run("pwd")).output == f"{sandbox.spec.workdir}/a\n".encode()

    try:
        asyncio.run(check())
    finally:
        backend.close()


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [each.name for each in node.names] if isinstance(node, ast.Import) else []


def test_the_program_fits_into_arguments_and_needs_nothing_installed():
    command = guest.command(SandboxSpec(), heartbeat_s=1.0)
    assert max(len(word) for word in command) < 128 << 10  # the kernel's limit on one argument
    assert {"-I", "-S"} <= set(command)
    for name in guest.MODULES:
        for node in ast.walk(ast.parse((Path(guest.__file__).parent / f"{name}.py").read_text())):
            for module in imported(node):
                assert (
                    module.startswith("agentrl_sandboxes.guest.")
                    or module.split(".")[0] in sys.stdlib_module_names
                )


@given(chunks=st.lists(st.binary(max_size=60), max_size=20), limit=st.integers(0, 200))
def test_what_is_kept_of_output_is_its_first_and_last_half(chunks, limit):
    capture, whole = Capture(limit), b"".join(chunks)
    for chunk in chunks:
        capture.add(chunk)
    half = limit // 2
    kept = whole if len(whole) <= limit else whole[:half] + whole[len(whole) - (limit - half) :]
    assert capture.kept() == kept
    assert capture.total == len(whole)


def test_a_flood_of_output_takes_no_more_memory_than_is_kept():
    capture = Capture(1000)
    for _ in range(100):
        capture.add(b"x" * (1 << 18))
        assert len(capture.head) + len(capture.tail) < 1 << 20
    assert len(capture.kept()) == 1000


NAMES = st.lists(st.sampled_from(["..", ".", "a", "b", "link", "up", "out", ""]), max_size=6).map("/".join)


@given(name=NAMES, absolute=st.booleans())
def test_no_name_leads_out_of_a_folder(tmp_path_factory, name, absolute):
    base = tmp_path_factory.getbasetemp() / "inside" / "base"
    if not base.exists():
        (base / "a").mkdir(parents=True)
        for link, target in {"link": "a", "up": "..", "out": "/tmp"}.items():
            (base / link).symlink_to(target)
            (base / "a" / link).symlink_to(target)
    base = Path(os.path.realpath(base))
    assume(os.path.normpath(name) != ".")  # the folder itself, which is not a member
    try:
        found = Path(member_path(str(base), ("/" if absolute else "") + name))
    except ValueError:
        return
    assert Path(os.path.realpath(found.parent)).is_relative_to(base)
    assert not absolute


def through(work, data: bytes = b"") -> bytes:
    """Run one end of a pipe's work while feeding or reading the other."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(write if data else read)
        try:
            work(read if data else write)
        finally:
            os._exit(0)
    os.close(read if data else write)
    with os.fdopen(write if data else read, "wb" if data else "rb") as file:
        got = b"" if data else file.read()
        if data:
            file.write(data)
    os.waitpid(pid, 0)
    return got


PARTS = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=9)
NAMED = st.lists(PARTS.filter(lambda part: part not in (".", "..")), min_size=1, max_size=3).map("/".join)


@settings(deadline=None, max_examples=15)
@given(
    files=st.dictionaries(
        NAMED, st.tuples(st.binary(max_size=2000), st.sampled_from([0o600, 0o644, 0o755])), max_size=5
    )
)
def test_a_folder_that_is_packed_and_unpacked_is_the_same(tmp_path_factory, files):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    made = {}
    for name, (content, mode) in files.items():
        try:
            (one / "top" / name).parent.mkdir(parents=True, exist_ok=True)
            (one / "top" / name).write_bytes(content)
        except (FileExistsError, IsADirectoryError, NotADirectoryError):  # a name that is a folder elsewhere
            continue
        (one / "top" / name).chmod(mode)
        made[name] = (content, mode)
    (one / "top").mkdir(exist_ok=True)
    archive = through(lambda fd: pack(fd, str(one / "top"), 1 << 20))
    assert archive == through(lambda fd: pack(fd, str(one / "top"), 1 << 20)), (
        "the same folder, the same bytes"
    )
    through(lambda fd: unpack(fd, str(two), 1 << 20), archive)
    for name, (content, mode) in made.items():
        assert (two / "top" / name).read_bytes() == content
        assert (two / "top" / name).stat().st_mode & 0o777 == mode


def test_set_user_id_bits_and_owners_are_not_unpacked(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("root")
        member.mode, member.uid = 0o6755, 12345
        archive.addfile(member)
    through(lambda fd: unpack(fd, str(tmp_path), 1 << 20), file.getvalue())
    found = (tmp_path / "root").stat()
    assert found.st_mode & 0o7777 == 0o755
    assert found.st_uid == os.getuid()


def test_processes_below_are_found_however_deep():
    child = subprocess.Popen(["sh", "-c", "sh -c 'sleep 60 & wait' & wait"])
    try:
        end = time.monotonic() + 5
        while len(descendants([child.pid])) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        found = descendants([child.pid])
        assert len(found) == 2
        assert child.pid not in found
        assert child.pid in descendants([os.getpid()])
        assert descendants([child.pid], since=processes()[max(found)][2] + 10_000) == set()
    finally:
        for pid in descendants([child.pid]):
            os.kill(pid, 9)
        child.kill()
        child.wait()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_server_on_either_loopback_address_is_reached(family):
    async def check():
        try:
            server = socket.create_server(
                ("127.0.0.1" if family == socket.AF_INET else "::1", 0), family=family
            )
        except OSError:
            pytest.skip("this machine has no such loopback")
        with server:
            async with session() as sandbox, sandbox.endpoint(server.getsockname()[1]) as path:
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(b"question")
                writer.write_eof()
                connection, _ = await asyncio.get_running_loop().run_in_executor(None, server.accept)
                with connection:
                    assert (
                        await asyncio.get_running_loop().run_in_executor(None, connection.recv, 100)
                        == b"question"
                    )
                    connection.sendall(b"answer")
                assert await reader.read() == b"answer"
                writer.close()
                await writer.wait_closed()

    asyncio.run(check())


def test_a_slow_reader_stalls_its_own_connection_and_nothing_else():
    async def check():
        with socket.create_server(("127.0.0.1", 0)) as server:
            async with session() as sandbox, sandbox.endpoint(server.getsockname()[1]) as path:
                _, writer = await asyncio.open_unix_connection(path, limit=1 << 10)
                connection, _ = await asyncio.get_running_loop().run_in_executor(None, server.accept)
                with connection:
                    connection.setblocking(False)
                    sent, end = 0, time.monotonic() + 2
                    while time.monotonic() < end:
                        try:
                            sent += connection.send(bytes(1 << 18))
                        except BlockingIOError:
                            await asyncio.sleep(0.01)
                    assert sent < 64 << 20, "nobody reads, so it must not all be taken in"
                    started = time.monotonic()
                    assert (await sandbox.exec(["echo", "well"])).stdout == b"well\n"
                    assert time.monotonic() - started < 2
                writer.close()

    asyncio.run(check())
