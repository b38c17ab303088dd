"""The escape and abuse suite of sandbox providers: attacks from inside, and canaries on the host.

Each attack runs in its own sandbox. Its outcome is

- *denied* if every attempt was refused;
- *contained* if it worked inside, until a limit or the end of the sandbox stopped it;
- *escaped* if anything got through, if the host or a neighbour was affected, or if it missed its deadline;
- *not enforced* if the back end lacks the limit that would contain it, and its user accepted that;
- *not run* if it would do harm.

If a back end's processes can see the host's, no bombs are run in it. Bombs end by themselves at four times
their limit. One fork bomb does not; it is run only if the fork bomb with a bound was stopped, and if this
process itself is in a control group that bounds processes.

``benchmarks/abuse.py`` prints a table of the outcomes on a machine.
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
from agentrl.testing.attack_runner import (
    FLOOD_MIB,
    LATE_S,
    Attack,
    AttackResult,
    AttackRunner,
    Problems,
    inside,
)
from agentrl.testing.canaries import canaries
from agentrl.testing.contract import ContractViolation
from agentrl.types import SandboxSpec

SPEC = SandboxSpec(memory_mib=256, disk_mib=64, num_processes=64, num_files=128, lifetime_s=600.0)
"""The spec of the sandboxes that attacks run in; small, so that bombs are small."""
DEADLINES_S = (1.0, 4.0, 16.0)
GROWTH_MIB = 96
"""Maximum memory that a flood of output may add to this process, in MiB."""


class Escaped(ContractViolation):
    """At least one attack got through; ``rows`` has the results of all attacks."""

    def __init__(self, rows: Sequence[AttackResult]) -> None:
        self.rows = tuple(rows)
        super().__init__(
            [f"{row.attack}: {row.detail}" for row in rows if row.outcome == "escaped"], "isolation"
        )


def abuse(provider: SandboxProvider, *, spec: SandboxSpec = SPEC) -> tuple[AttackResult, ...]:
    """Run all attacks on a provider and return their results.

    Runs an event loop, so it must not be called inside one.

    ``spec`` may name an image or a folder. Its limits should be small, because bombs use them up.
    """
    return asyncio.run(_abuse(provider, spec))


def check_abuse(provider: SandboxProvider, *, spec: SandboxSpec = SPEC) -> tuple[AttackResult, ...]:
    """Run all attacks on a provider, as ``abuse`` does, and return their results.

    Raises:
        Escaped: attacks got through; the error lists them all.
    """
    rows = abuse(provider, spec=spec)
    if any(row.outcome == "escaped" for row in rows):
        raise Escaped(rows)
    return rows


async def _abuse(provider: SandboxProvider, spec: SandboxSpec) -> tuple[AttackResult, ...]:
    async with canaries() as out, provider.serve(run="abuse") as sandboxes:
        runner = AttackRunner(sandboxes, spec, out)
        async with sandboxes.open(runner.spec) as runner.neighbour:
            return tuple([await runner.attack(one) for one in ATTACKS])


async def _leftovers(runner: AttackRunner, sandbox: Sandbox) -> Problems:
    """Look in the sandbox for processes of an earlier attack, and return those that were found."""
    return await runner.program(sandbox, "look_for_leftovers", marked=False)


async def _late(runner: AttackRunner, sandbox: Sandbox, name: str) -> Problems:
    """Run an attack that does not end by itself, with a deadline of a second, or more on a busy machine."""
    await runner.bring(sandbox)
    for deadline_s in DEADLINES_S:
        began = time.monotonic()
        result = await sandbox.exec(
            runner.command(name), stdin=runner.facts, timeout_s=deadline_s, max_output=1 << 16
        )
        took = time.monotonic() - began
        if result.stdout:
            break
    runner.notes.append(f"ended after {took:.1f} s, {result.num_killed} processes killed")
    if not result.stdout:
        return [f"{name} did not even start within {deadline_s:g} s: {result.stderr[-200:]!r}"]
    if took > deadline_s + LATE_S or not result.timed_out:
        ended = f"it ended after {took:.1f} s, timed out: {result.timed_out}"
        return [f"{name}: with a deadline of {deadline_s:g} s {ended}"]
    return []


async def _ignore(runner: AttackRunner, sandbox: Sandbox) -> Problems:
    return [*await _late(runner, sandbox, "ignore_signals"), *await _leftovers(runner, sandbox)]


async def _outlive(runner: AttackRunner, sandbox: Sandbox) -> Problems:
    """Check that a daemon ends with its command at the deadline, by ``kill_all``, and with the sandbox.

    Whether it ends with the sandbox is checked later, on the host.
    """
    found = [*await _late(runner, sandbox, "daemonise_and_wait"), *await _leftovers(runner, sandbox)]
    found += await runner.program(sandbox, "daemonise")
    await sandbox.kill_all()
    return [*found, *await _leftovers(runner, sandbox), *await runner.program(sandbox, "daemonise")]


async def _flood(runner: AttackRunner, sandbox: Sandbox) -> Problems:
    """Check that a flood of output is counted, is kept only in part, and does not make this process grow."""
    await runner.bring(sandbox)
    before, found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    result = await sandbox.exec(
        runner.command("output_flood"), stdin=runner.facts, timeout_s=60.0, max_output=1 << 16
    )
    flood = FLOOD_MIB << 20
    if result.stderr_total != flood or result.stdout_total <= flood or len(result.stdout) > 1 << 16:
        found.append(
            f"of {flood} bytes on each stream {result.stdout_total} and {result.stderr_total} were counted, "
            f"exit code {result.exit_code}"
        )
    found += await _late(runner, sandbox, "endless_flood")
    if (grown := (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024) > GROWTH_MIB:
        found.append(f"this process grew by {grown} MiB")
    runner.notes.append(
        f"{FLOOD_MIB} MiB on each stream in {result.duration_s:.1f} s, and this process grew by {grown} MiB"
    )
    return found


async def _kill_guest(runner: AttackRunner, sandbox: Sandbox) -> Problems:
    """Check that the command after the attack gets its own answer, or the sandbox is lost; none may hang."""
    try:
        await runner.program(sandbox, "kill_the_guest", whole=False)
        result = await sandbox.exec(["echo", "still here"], timeout_s=10.0)
    except SandboxError as problem:
        runner.notes = [f"the sandbox was lost: {problem}"]
        return []
    runner.notes = ["the sandbox stayed"]
    return [] if result.stdout == b"still here\n" else [f"the sandbox answered {result.stdout!r}"]


async def _real_bombs(runner: AttackRunner, sandbox: Sandbox) -> Problems:
    """Start processes for ever: the command must end at its deadline, or the sandbox with it."""
    try:
        return await _late(runner, sandbox, "real_fork_bomb")
    except SandboxError as problem:
        runner.notes.append(f"the sandbox was lost: {problem}")
        return []


async def _paths(runner: AttackRunner, sandbox: Sandbox) -> Problems:
    """Read and write through links, ``..``, pipes and devices with the sandbox's own calls."""
    secret, up, found = str(runner.canaries.facts["file"]), "../" * 16, []
    script = (
        f"ln -s {secret} link && ln -s {Path(secret).parent} folder "
        "&& mkfifo pipe && ln -s /proc/self/root around"
    )
    made = await sandbox.exec(["/bin/sh", "-c", script])
    paths = (
        secret,
        f"{runner.spec.workdir}/{up}{secret}",
        "link",
        "folder/secret",
        f"around{secret}",
        "pipe",
        "/dev/zero",
        "/proc/kmsg",
        "/proc/1/mem",
    )
    for path in paths:
        name = path if path.startswith("/") else f"{runner.spec.workdir}/{path}"
        for read in (sandbox.read, sandbox.get_tar):
            try:
                async with asyncio.timeout(10):
                    data = await read(name, max_bytes=1 << 16)
            except (OSError, ValueError) as problem:
                if isinstance(problem, TimeoutError):
                    found.append(f"reading {path} did not end")
            else:
                if str(runner.canaries.facts["secret"]).encode() in data:
                    found.append(f"reading {path} gave the host's secret")
    for path in ("link", "folder/new", "folder/secret", f"{up}{secret}"):
        with suppress(OSError, ValueError):  # may succeed inside: the host checks its own files
            await sandbox.write(f"{runner.spec.workdir}/{path}", b"from inside")
    runner.notes.append(
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


async def _archives(runner: AttackRunner, sandbox: Sandbox) -> Problems:
    """Unpack archives with members that would be written elsewhere, links that lead there, and devices.

    Each must be refused, or stay inside its folder.
    """
    away, found = f"{runner.spec.workdir}/{runner.canaries.token}", []
    out = _member("out", tarfile.SYMTYPE, runner.spec.workdir)
    evil = {
        "..": (_member(f"../{runner.canaries.token}"),),
        "an absolute path": (_member(away),),
        "a link out and a file through it": (out, _member(f"out/{runner.canaries.token}")),
        "a relative link out": (
            _member("out", tarfile.SYMTYPE, ".."),
            _member(f"out/{runner.canaries.token}"),
        ),
        "a link over a file": (_member("out", tarfile.SYMTYPE, away), _member("out")),
        "a hard link out": (_member("hard", tarfile.LNKTYPE, "../../etc/passwd"),),
        "a device": (_member("device", tarfile.BLKTYPE),),
    }
    for what, members in evil.items():
        with suppress(ValueError, OSError):
            await sandbox.put_tar(f"{runner.spec.workdir}/box", _archive(*members))
            if what in {"a device", "..", "a hard link out"}:
                found.append(f"{what} was accepted")
        check = await sandbox.exec(["/bin/sh", "-c", f"test -e {away} && rm -r {away} && echo written"])
        if check.stdout == b"written\n":
            found.append(f"{what}: a member was written outside its folder")
    runner.notes.append(f"{len(evil)} archives refused or kept inside")
    return found


class _Zeros(io.RawIOBase):
    """An endless file of zero bytes."""

    def read(self, size: int = -1) -> bytes:
        return bytes(size)


async def _tar_bomb(runner: AttackRunner, sandbox: Sandbox) -> Problems:
    """Unpack a small archive of four times the disk's size; then let a program inside unpack a zip file."""
    member, out = tarfile.TarInfo("zeros"), io.BytesIO()
    member.size = 4 * runner.spec.disk_mib << 20
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as archive:
        archive.addfile(member, _Zeros())  # tarfile only calls its read
    try:
        await sandbox.put_tar(f"{runner.spec.workdir}/bomb", out.getvalue())
    except (OSError, ValueError) as problem:
        runner.notes.append(f"{len(out.getvalue()) >> 10} KiB of tar: {problem}")
    else:
        return [f"{member.size >> 20} MiB were unpacked on a disk of {runner.spec.disk_mib}"]
    await sandbox.exec(["/bin/sh", "-c", "rm -rf bomb"])
    return await runner.program(sandbox, "unpack_a_bomb")


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
    Attack("forge the guest's answers", "denied", inside("talk_to_the_guests_pipes"), harmful=True),
    Attack("kill the guest", "contained", _kill_guest, harmful=True),
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


def table(rows_by_name: Mapping[str, Sequence[AttackResult]]) -> str:
    """Return the outcomes of all attacks as a Markdown table with a column for each back end."""
    outcomes = {name: {row.attack: row.outcome for row in rows} for name, rows in rows_by_name.items()}
    lines = ["| attack | " + " | ".join(outcomes) + " |", "|---|" + "---|" * len(outcomes)]
    lines += [
        f"| {one.title} | " + " | ".join(found[one.title] for found in outcomes.values()) + " |"
        for one in ATTACKS
    ]
    return "\n".join(lines)
