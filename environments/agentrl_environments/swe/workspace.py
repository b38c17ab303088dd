"""The repository inside a sandbox: set up equally for the agent and for grading, and compared with its base.

The base is one commit without history. A repository that comes with an image may contain the fix (in
branches, tags, logs, packed objects of later releases), so the repository is created again from the files
alone. Author and date are fixed, so the commit hash is a function of the tree.

Everything inside the sandbox, git included, is under the agent's control. The only thing read from it is a
patch, which is judged elsewhere. So a command that fails after the agent has acted is a measurement; a
command that fails before is an ``EnvError``.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from agentrl.errors import EnvError
from agentrl.sandbox import ExecResult, Sandbox
from agentrl_environments.swe import diffs
from agentrl_environments.swe.rows import Instance

MAX_PATCH = 4 << 20
"""Maximum length of a patch that is read from a sandbox, in bytes; a longer one counts as empty."""
SETUP_S = 120.0
"""Deadline of each command that sets up the repository, in seconds."""
MEASURE_S = 30.0
"""Deadline of each command that compares the repository with its base, in seconds."""
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
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_COUNT": str(len(_CONFIG)),
    "LC_ALL": "C.UTF-8",
    **{f"GIT_CONFIG_KEY_{index}": key for index, key in enumerate(_CONFIG)},
    **{f"GIT_CONFIG_VALUE_{index}": value for index, value in enumerate(_CONFIG.values())},
}
"""Environment variables of the git commands that this package runs.

They give git a fixed identity and the configuration in ``_CONFIG``, and hide every other configuration.
"""
_COMMIT = """
set -e
tracked=$(mktemp)
cat >"$tracked"
git ls-files -z >>"$tracked" 2>/dev/null || true
rm -rf .git {hidden}
git -c init.defaultBranch=main init -q --template= .
mkdir -p .git/info && printf '%s\\n' __pycache__/ '*.pyc' .pytest_cache/ .hypothesis/ >.git/info/exclude
if [ -s "$tracked" ]; then
    xargs -0 sh -c 'for path; do if [ -e "$path" ] || [ -L "$path" ]; then \
printf "%s\\0" "$path"; fi; done' sh <"$tracked" >"$tracked.left"
    git add -f --pathspec-from-file="$tracked.left" --pathspec-file-nul
    git ls-files --others --exclude-standard --directory | \
sed 's/[][*?!#\\]/\\\\&/g; s/^/\\//' >>.git/info/exclude
else
    git add -A
fi
rm -f "$tracked" "$tracked.left"
git commit -q --allow-empty -m base
git config user.name agent && git config user.email agent@localhost
git rev-parse HEAD
"""
"""Shell script that creates the base commit.

If the image has a repository, the commit contains its tracked files and the paths on standard input;
untracked files, such as build products, are excluded.
"""
_INDEX = 'export GIT_INDEX_FILE="$PWD/.git/measured"; cp -p .git/index "$GIT_INDEX_FILE" && git add -A'
"""Shell commands that add all files to a copy of git's index, so that the agent's own index stays as it is.

The copy keeps the modification time. Git compares times in whole seconds, and reads files again that are as
new as the index. If the copy were newer, git would miss an edit that was made within the same second and does
not change the length of the file.
"""


@dataclass(frozen=True, slots=True)
class Trees:
    """What to put into a sandbox: plain tar archives of the repository and of the tools that run its tests.

    Both are empty if the image has everything.
    """

    repository: bytes = b""
    tools: bytes = b""


def tools_folder(workdir: str) -> str:
    """Return the folder that holds the test runner of instances made from a source distribution."""
    return f"{workdir}-tools"


def environment(instance: Instance, workdir: str) -> dict[str, str]:
    """Return the environment variables of the agent's commands and of the tests.

    There are none unless the instance is made from a source distribution.
    """
    if instance.source is None:
        return {}
    return {"PYTHONPATH": tools_folder(workdir), "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"}


async def lay_out(sandbox: Sandbox, instance: Instance, trees: Trees, *, show_hidden: bool = False) -> str:
    """Create the instance's base in a fresh sandbox, and return the hash of its commit.

    With ``show_hidden``, the paths that the agent must not see are kept.

    Raises:
        EnvError: the base cannot be made, or its hash differs from the one in the row.
    """
    if trees.repository:
        await sandbox.put_tar(sandbox.spec.workdir, trees.repository)
    if trees.tools:
        await sandbox.put_tar(tools_folder(sandbox.spec.workdir), trees.tools)
    if instance.solved or instance.source is not None:
        for name, patch in (("test_patch", instance.test_patch), ("patch", instance.patch)):
            if patch:
                argv = ["git", "apply", "--reverse", "--whitespace=nowarn", "-"]
                require_success(
                    await sandbox.exec(argv, stdin=patch.encode(), env=GIT, timeout_s=SETUP_S),
                    f"{instance.id}: reversing {name}",
                )
    hidden = "" if show_hidden else " ".join(shlex.quote(path) for path in instance.hidden)
    script = _COMMIT.format(hidden=hidden)
    reversed_paths: tuple[str, ...] = ()
    if instance.solved and instance.source is None:
        reversed_paths = diffs.paths(instance.patch + instance.test_patch)
    stdin = "".join(f"{path}\0" for path in reversed_paths).encode()
    made = require_success(
        await sandbox.exec(["bash", "-c", script], stdin=stdin, env=GIT, timeout_s=SETUP_S),
        f"{instance.id}: making the base commit",
    )
    base = made.stdout.decode().strip()
    if instance.source is not None and instance.base_commit not in ("", base):
        raise EnvError(
            f"{instance.id}: the base commit is {base}, but the row has {instance.base_commit}; "
            "the row was made from another tree"
        )
    return base


async def tree_hash(sandbox: Sandbox) -> str:
    """Return the hash of the repository's current files, or an empty text if git fails in the sandbox."""
    found = await sandbox.exec(["bash", "-c", f"{_INDEX} && git write-tree"], env=GIT, timeout_s=MEASURE_S)
    return found.stdout.decode(errors="replace").strip() if found.exit_code == 0 else ""


async def extract_patch(sandbox: Sandbox, base: str) -> bytes:
    """Return all changes since the commit ``base``, committed or not, as a patch.

    The patch is empty if there are no changes, if git fails, or if the patch is longer than `MAX_PATCH`.
    """
    options = "--cached --binary --no-color --no-ext-diff --no-textconv --no-renames"
    script = f"{_INDEX} && git diff {options} --src-prefix=a/ --dst-prefix=b/ {base}"
    found = await sandbox.exec(["bash", "-c", script], env=GIT, timeout_s=MEASURE_S, max_output=MAX_PATCH)
    return found.stdout if found.exit_code == 0 and not found.truncated else b""


def require_success(result: ExecResult, what: str) -> ExecResult:
    """Return ``result`` if its command succeeded.

    This is for commands that fail only if the instance or its image is broken. ``what`` names the command in
    the error.

    Raises:
        EnvError: the command failed.
    """
    if result.exit_code != 0:
        why = result.stderr.decode(errors="replace").strip()[-400:] or f"exit code {result.exit_code}"
        failed = "failed at its deadline" if result.timed_out else "failed"
        raise EnvError(f"{what} {failed}: {why}")
    return result
