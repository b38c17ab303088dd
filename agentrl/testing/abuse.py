"""The escape and abuse suite of sandbox providers: what must not work, tried from inside, while canaries on the host tell who got out.

Each attack runs in a sandbox of its own. It is *denied* where every attempt was refused, *contained* where it had its way inside and a
limit or the end of the sandbox stopped it, *escaped* where anything got through, the host or a neighbour suffered, or no attributed
outcome came within the deadline. *Not enforced* is a limit that the back end lacks and its user accepted; *not run* is what would do harm.
A back end whose processes can see the host's is never bombed. The bombs end by themselves at four times their limit; the one that does not
is thrown only where that one was stopped, and while this process itself is in a control group that bounds processes.

``benchmarks/abuse.py`` prints the table of what is found on a machine.
"""

from __future__ import annotations

import asyncio
import io
import resource
import tarfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from agentrl.errors import SandboxError
from agentrl.sandbox import Sandbox, SandboxProvider
from agentrl.testing.canaries import canaries
from agentrl.testing.contract import ContractViolation
from agentrl.testing.siege import FLOOD_MIB, LATE_S, Attack, Found, Row, Siege, inside
from agentrl.types import SandboxSpec

SPEC = SandboxSpec(memory_mib=256, disk_mib=64, num_processes=64, num_files=128, lifetime_s=600.0)
"""What attacks run in, so that a bomb is small."""
DEADLINES_S = (1.0, 4.0, 16.0)
GROWTH_MIB = 96
"""What a flood may add to this process's memory."""


class Escaped(ContractViolation):
    """Attacks got through; ``rows`` holds what became of all."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)
        super().__init__(
            [f"{row.attack}: {row.detail}" for row in rows if row.outcome == "escaped"], "isolation"
        )


def abuse(provider: SandboxProvider, *, spec: SandboxSpec = SPEC) -> tuple[Row, ...]:
    """Try everything against a provider; return what became of each attack. Runs an event loop: not to be called inside one.

    ``spec`` may name an image or folder; its limits should stay small, for they are what bombs fill.
    """
    return asyncio.run(_abuse(provider, spec))


def check_abuse(provider: SandboxProvider, *, spec: SandboxSpec = SPEC) -> tuple[Row, ...]:
    """Try everything against a provider, and return what became of each attack.

    Raises:
        Escaped: with every attack that got through.
    """
    rows = abuse(provider, spec=spec)
    if any(row.outcome == "escaped" for row in rows):
        raise Escaped(rows)
    return rows


async def _abuse(provider: SandboxProvider, spec: SandboxSpec) -> tuple[Row, ...]:
    async with canaries() as out, provider.serve(run="abuse") as sandboxes:
        siege = Siege(sandboxes, spec, out)
        async with sandboxes.open(siege.spec) as siege.neighbour:
            return tuple([await siege.attack(one) for one in ATTACKS])


async def _leftovers(siege: Siege, sandbox: Sandbox) -> Found:
    return await siege.program(sandbox, "look_for_leftovers", marked=False)


async def _late(siege: Siege, sandbox: Sandbox, name: str) -> Found:
    """Run an attack that does not end, against a deadline of a second, or more on a machine too busy to start it in one."""
    await siege.bring(sandbox)
    for deadline_s in DEADLINES_S:
        began = time.monotonic()
        result = await sandbox.exec(
            siege.command(name), stdin=siege.facts, timeout_s=deadline_s, max_output=1 << 16
        )
        took = time.monotonic() - began
        if result.stdout:
            break
    siege.notes.append(f"ended after {took:.1f} s, {result.num_killed} processes killed")
    if not result.stdout:
        return [f"{name} did not even start within {deadline_s:g} s: {result.stderr[-200:]!r}"]
    late = took > deadline_s + LATE_S or not result.timed_out
    return [
        f"{name}: the deadline of {deadline_s:g} s was met after {took:.1f} s, timed out: {result.timed_out}"
    ] * late


async def _ignore(siege: Siege, sandbox: Sandbox) -> Found:
    return [*await _late(siege, sandbox, "ignore_signals"), *await _leftovers(siege, sandbox)]


async def _outlive(siege: Siege, sandbox: Sandbox) -> Found:
    """See a daemon end with the command at its deadline, with ``kill_all``, and (the last, which the host looks for) with the sandbox."""
    found = [*await _late(siege, sandbox, "daemonise_and_wait"), *await _leftovers(siege, sandbox)]
    found += await siege.program(sandbox, "daemonise")
    await sandbox.kill_all()
    return [*found, *await _leftovers(siege, sandbox), *await siege.program(sandbox, "daemonise")]


async def _flood(siege: Siege, sandbox: Sandbox) -> Found:
    """All is counted, a little is kept, and this process does not grow."""
    await siege.bring(sandbox)
    before, found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    result = await sandbox.exec(
        siege.command("output_flood"), stdin=siege.facts, timeout_s=60.0, max_output=1 << 16
    )
    flood = FLOOD_MIB << 20
    if result.stderr_total != flood or result.stdout_total <= flood or len(result.stdout) > 1 << 16:
        found.append(
            f"of {flood} bytes on each stream {result.stdout_total} and {result.stderr_total} were counted, exit {result.exit_code}"
        )
    found += await _late(siege, sandbox, "endless_flood")
    if (grown := (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024) > GROWTH_MIB:
        found.append(f"this process grew by {grown} MiB")
    siege.notes.append(
        f"{FLOOD_MIB} MiB on each stream in {result.duration_s:.1f} s, and this process grew by {grown} MiB"
    )
    return found


async def _kill_helper(siege: Siege, sandbox: Sandbox) -> Found:
    """See that what follows is an answer or a lost sandbox, and never a wait or somebody else's answer."""
    try:
        await siege.program(sandbox, "kill_the_helper", whole=False)
        result = await sandbox.exec(["echo", "still here"], timeout_s=10.0)
    except SandboxError as problem:
        siege.notes = [f"the sandbox was lost: {problem}"]
        return []
    siege.notes = ["the sandbox stayed"]
    return [] if result.stdout == b"still here\n" else [f"the sandbox answered {result.stdout!r}"]


async def _real_bombs(siege: Siege, sandbox: Sandbox) -> Found:
    """Make processes for ever: the command ends at its deadline, or the sandbox with it."""
    try:
        return await _late(siege, sandbox, "real_fork_bomb")
    except SandboxError as problem:
        siege.notes.append(f"the sandbox was lost: {problem}")
        return []


async def _paths(siege: Siege, sandbox: Sandbox) -> Found:
    """Links, ``..``, pipes and devices, through the sandbox's own calls."""
    secret, up, found = str(siege.canaries.facts["file"]), "../" * 16, []
    script = f"ln -s {secret} link && ln -s {Path(secret).parent} folder && mkfifo pipe && ln -s /proc/self/root around"
    made = await sandbox.exec(["/bin/sh", "-c", script])
    paths = (
        secret,
        f"{siege.spec.workdir}/{up}{secret}",
        "link",
        "folder/secret",
        f"around{secret}",
        "pipe",
        "/dev/zero",
        "/proc/kmsg",
        "/proc/1/mem",
    )
    for path in paths:
        name = path if path.startswith("/") else f"{siege.spec.workdir}/{path}"
        for read in (sandbox.read, sandbox.get_tar):
            try:
                async with asyncio.timeout(10):
                    data = await read(name, max_bytes=1 << 16)
            except (OSError, ValueError) as problem:
                if isinstance(problem, TimeoutError):
                    found.append(f"reading {path} did not end")
            else:
                if str(siege.canaries.facts["secret"]).encode() in data:
                    found.append(f"reading {path} gave the host's secret")
    for path in ("link", "folder/new", "folder/secret", f"{up}{secret}"):
        with suppress(OSError, ValueError):  # inside it may well work: the host looks at its own files
            await sandbox.write(f"{siege.spec.workdir}/{path}", b"from inside")
    siege.notes.append(
        f"{len(paths)} paths read, 4 written, {'links made' if made.exit_code == 0 else made.stderr!r}"
    )
    return found


def _archive(*members: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"from inside") if member.isreg() else None)
    return out.getvalue()


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = (
        kind,
        link,
        len(b"from inside") if kind == tarfile.REGTYPE else 0,
    )
    return member


async def _archives(siege: Siege, sandbox: Sandbox) -> Found:
    """Members that would be written elsewhere, links that lead there, and devices: each archive is refused whole or stays inside."""
    away, found = f"{siege.spec.workdir}/{siege.canaries.token}", []
    out = _member("out", tarfile.SYMTYPE, siege.spec.workdir)
    evil = {
        "..": (_member(f"../{siege.canaries.token}"),),
        "an absolute path": (_member(away),),
        "a link out and a file through it": (out, _member(f"out/{siege.canaries.token}")),
        "a relative link out": (
            _member("out", tarfile.SYMTYPE, ".."),
            _member(f"out/{siege.canaries.token}"),
        ),
        "a link over a file": (_member("out", tarfile.SYMTYPE, away), _member("out")),
        "a hard link out": (_member("hard", tarfile.LNKTYPE, "../../etc/passwd"),),
        "a device": (_member("device", tarfile.BLKTYPE),),
    }
    for what, members in evil.items():
        with suppress(ValueError, OSError):
            await sandbox.put_tar(f"{siege.spec.workdir}/box", _archive(*members))
            if what in {"a device", "..", "a hard link out"}:
                found.append(f"{what} was taken")
        there = await sandbox.exec(["/bin/sh", "-c", f"test -e {away} && rm -r {away} && echo written"])
        found += [f"{what}: a member was written outside its folder"] * (there.stdout == b"written\n")
    siege.notes.append(f"{len(evil)} archives refused or kept inside")
    return found


class _Zeros(io.RawIOBase):
    """Nothing, at length."""

    def read(self, size: int = -1) -> bytes:
        return bytes(size)


async def _tar_bomb(siege: Siege, sandbox: Sandbox) -> Found:
    """Unpack an archive of four times the disk in little data; then have a program inside unpack a zip file."""
    member, out = tarfile.TarInfo("zeros"), io.BytesIO()
    member.size = 4 * siege.spec.disk_mib << 20
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as archive:
        archive.addfile(member, _Zeros())  # it needs no more than read
    try:
        await sandbox.put_tar(f"{siege.spec.workdir}/bomb", out.getvalue())
    except (OSError, ValueError) as problem:
        siege.notes.append(f"{len(out.getvalue()) >> 10} KiB of tar: {problem}")
    else:
        return [f"{member.size >> 20} MiB were unpacked on a disk of {siege.spec.disk_mib}"]
    await sandbox.exec(["/bin/sh", "-c", "rm -rf bomb"])
    return await siege.program(sandbox, "unpack_a_bomb")


ATTACKS = (
    Attack("see host processes", "denied", inside("see_host_processes")),
    Attack("read host files", "denied", inside("read_host_files")),
    Attack("write host files", "denied", inside("write_host_files")),
    Attack("signal host processes", "denied", inside("signal_host_processes")),
    Attack("reach the host's loopback", "denied", inside("reach_the_hosts_loopback")),
    Attack("reach the LAN", "denied", inside("reach_the_network")),
    Attack("resolve names", "denied", inside("resolve_names")),
    Attack("reach the host's sockets, abstract ones too", "denied", inside("reach_host_sockets")),
    Attack("write sysctls", "denied", inside("write_sysctls"), harmful=True),
    Attack("write control groups", "denied", inside("write_cgroups"), harmful=True),
    Attack("mount", "denied", inside("mount"), harmful=True),
    Attack("make user namespaces", "denied", inside("make_user_namespaces")),
    Attack("use device nodes", "denied", inside("use_device_nodes"), harmful=True),
    Attack("raise limits", "denied", inside("raise_limits")),
    Attack("forge the helper's answers", "denied", inside("talk_to_the_helpers_pipes"), harmful=True),
    Attack("kill the helper", "contained", _kill_helper, harmful=True),
    Attack("links and .. in read and write", "denied", _paths),
    Attack("links and .. in tar", "denied", _archives),
    Attack("ignore SIGTERM", "contained", _ignore),
    Attack("daemonise and outlive", "contained", _outlive),
    Attack("output flood", "contained", _flood),
    Attack("file descriptor bomb", "contained", inside("file_bomb"), "files"),
    Attack("memory bomb", "contained", inside("memory_bomb"), "memory", harmful=True),
    Attack("disk fill", "contained", inside("disk_fill"), "disk", harmful=True),
    Attack("tar and zip bombs", "contained", _tar_bomb, "disk", harmful=True),
    Attack("fork bomb, bounded", "contained", inside("fork_bomb"), "processes", harmful=True),
    Attack(
        "fork bomb, endless", "contained", _real_bombs, "processes", harmful=True, after="fork bomb, bounded"
    ),
)


def table(rows_by_name: Mapping[str, Sequence[Row]]) -> str:
    """Return what became of each attack as a Markdown table, a column for each back end."""
    outcomes = {name: {row.attack: row.outcome for row in rows} for name, rows in rows_by_name.items()}
    lines = ["| attack | " + " | ".join(outcomes) + " |", "|---|" + "---|" * len(outcomes)]
    lines += [
        f"| {one.title} | " + " | ".join(found[one.title] for found in outcomes.values()) + " |"
        for one in ATTACKS
    ]
    return "\n".join(lines)
