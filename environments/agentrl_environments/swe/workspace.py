"""The repository inside a sandbox: laid out the same way for the agent and for grading, and measured against its base.

The base is one commit without history: what comes with an image (branches, tags, logs, packed objects of later releases) could hold the
fix, so the repository is made anew from the files alone. Its author and date are fixed, so its hash is a function of the tree.

Whatever is inside belongs to the agent, git included. Nothing here trusts it further than that a patch comes out, or none does: the patch
is judged elsewhere. A command that fails on what the agent did is therefore a measurement; one that fails before is an ``EnvError``.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from agentrl.errors import EnvError
from agentrl.sandbox import ExecResult, Sandbox
from agentrl_environments.swe import diffs
from agentrl_environments.swe.rows import Instance

MAX_PATCH = 4 << 20
"""Longest patch, in bytes."""
SETUP_S = 120.0
MEASURE_S = 30.0
_WHO = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "base"), ("EMAIL", "base@localhost"))
}
_CONFIG = {
    "safe.directory": "*",
    "core.fsmonitor": "false",
    "core.hooksPath": "/dev/null",
    "core.autocrlf": "false",
    "core.fileMode": "true",
    "core.quotePath": "false",
    "gc.auto": "0",
}
GIT = {
    **_WHO,
    **dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), "2000-01-01T00:00:00+0000"),
    **{
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_COUNT": str(len(_CONFIG)),
        "LC_ALL": "C.UTF-8",
    },
    **{f"GIT_CONFIG_KEY_{index}": key for index, key in enumerate(_CONFIG)},
    **{f"GIT_CONFIG_VALUE_{index}": value for index, value in enumerate(_CONFIG.values())},
}
"""Environment of our own git commands: no configuration but this, and a fixed identity."""
_COMMIT = """
set -e
tracked=$(mktemp)
cat >"$tracked"
git ls-files -z >>"$tracked" 2>/dev/null || true
rm -rf .git {hidden}
git -c init.defaultBranch=main init -q --template= .
mkdir -p .git/info && printf '%s\\n' __pycache__/ '*.pyc' .pytest_cache/ .hypothesis/ >.git/info/exclude
if [ -s "$tracked" ]; then
    xargs -0 sh -c 'for path; do if [ -e "$path" ] || [ -L "$path" ]; then printf "%s\\0" "$path"; fi; done' sh <"$tracked" >"$tracked.left"
    git add -f --pathspec-from-file="$tracked.left" --pathspec-file-nul
    git ls-files --others --exclude-standard --directory | sed 's/[][*?!#\\]/\\\\&/g; s/^/\\//' >>.git/info/exclude
else
    git add -A
fi
rm -f "$tracked" "$tracked.left"
git commit -q --allow-empty -m base
git config user.name agent && git config user.email agent@localhost
git rev-parse HEAD
"""
"""Makes the base. Of an image with a repository that is what was tracked, with ``stdin``'s paths; what was built beside it stays unseen."""
_INDEX = 'export GIT_INDEX_FILE="$PWD/.git/measured"; cp -p .git/index "$GIT_INDEX_FILE" && git add -A'
"""A copy with the index's own time. Git compares whole seconds, and looks again at files as young as the index: with a younger copy it
misses an edit that leaves a file's length as it was, within the second."""


@dataclass(frozen=True, slots=True)
class Trees:
    """What is put into a sandbox: plain tar archives, empty where the image has it all."""

    repository: bytes = b""
    tools: bytes = b""


def tools_folder(workdir: str) -> str:
    """Return where the test runner lies in the sandbox of an instance that has a source: beside the repository."""
    return f"{workdir}-tools"


def environment(instance: Instance, workdir: str) -> dict[str, str]:
    """Return what the agent's commands and the tests find in their environment: of an image, what it has."""
    ours = {"PYTHONPATH": tools_folder(workdir), "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"}
    return ours if instance.source is not None else {}


async def lay(sandbox: Sandbox, instance: Instance, trees: Trees, *, show_hidden: bool = False) -> str:
    """Make the instance's base in a fresh sandbox and return its commit. ``show_hidden``: keep what the agent must not see.

    Raises:
        EnvError: the base cannot be made, or is not the one that the row names.
    """
    if trees.repository:
        await sandbox.put_tar(sandbox.spec.workdir, trees.repository)
    if trees.tools:
        await sandbox.put_tar(tools_folder(sandbox.spec.workdir), trees.tools)
    if instance.solved or instance.source is not None:
        for name, patch in (("test_patch", instance.test_patch), ("patch", instance.patch)):
            if patch:
                argv = ["git", "apply", "--reverse", "--whitespace=nowarn", "-"]
                must(
                    await sandbox.exec(argv, stdin=patch.encode(), env=GIT, timeout_s=SETUP_S),
                    f"{instance.id}: taking back {name}",
                )
    hidden = "" if show_hidden else " ".join(shlex.quote(path) for path in instance.hidden)
    script = _COMMIT.format(hidden=hidden)
    taken_back = (
        diffs.paths(instance.patch + instance.test_patch)
        if instance.solved and instance.source is None
        else ()
    )
    stdin = "".join(f"{path}\0" for path in taken_back).encode()
    made = must(
        await sandbox.exec(["bash", "-c", script], stdin=stdin, env=GIT, timeout_s=SETUP_S),
        f"{instance.id}: making the base commit",
    )
    base = made.stdout.decode().strip()
    if instance.source is not None and instance.base_commit not in ("", base):
        raise EnvError(
            f"{instance.id}: the base is {base}, and the row says {instance.base_commit}; it was made from another tree"
        )
    return base


async def tree(sandbox: Sandbox) -> str:
    """Return the hash of the repository's files as they are now; empty where the agent's git cannot tell."""
    found = await sandbox.exec(["bash", "-c", f"{_INDEX} && git write-tree"], env=GIT, timeout_s=MEASURE_S)
    return found.stdout.decode(errors="replace").strip() if found.exit_code == 0 else ""


async def extract(sandbox: Sandbox, base: str) -> bytes:
    """Return what the agent changed since the base, committed or not, as a patch; empty where there is none, or git cannot tell."""
    script = f"{_INDEX} && git diff --cached --binary --no-color --no-ext-diff --no-textconv --no-renames --src-prefix=a/ --dst-prefix=b/ {base}"
    found = await sandbox.exec(["bash", "-c", script], env=GIT, timeout_s=MEASURE_S, max_output=MAX_PATCH)
    return found.stdout if found.exit_code == 0 and not found.truncated else b""


def must(result: ExecResult, what: str) -> ExecResult:
    """Return the result of a command that nothing but a broken instance or image can make fail.

    Raises:
        EnvError: it failed.
    """
    if result.exit_code != 0:
        why = result.stderr.decode(errors="replace").strip()[-400:] or f"exit code {result.exit_code}"
        raise EnvError(f"{what} failed{' at its deadline' * result.timed_out}: {why}")
    return result
