"""Rows of every format of the field, graded by their own rule on a real package instead of an image."""

import asyncio
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import replace

import swe_tasks
from agentrl_environments.swe import diffs, rows, sources
from agentrl_environments.swe.grade import GradingOutcome, Verdict, grade
from agentrl_environments.swe.rows import Instance
from agentrl_environments.swe.workspace import Trees, lay_out, tools_folder

from agentrl.sandbox import Sandbox
from agentrl.types import SandboxSpec

COMMAND = f"PYTHONPATH=.:/testbed-tools {rows.PYTEST}"
SPEC = SandboxSpec(
    image=swe_tasks.IMAGE, workdir="/testbed", writable=(tools_folder("/testbed"), "/r2e_tests")
)


class Imaged:
    """A sandbox that has an image's tree whenever it is new."""

    def __init__(self, box: Sandbox, files: Mapping[str, str]) -> None:
        self.box, self.files = box, files

    def __getattr__(self, name: str) -> object:
        return getattr(self.box, name)

    async def reset(self) -> None:
        await self.box.reset()
        await self.fill()

    async def fill(self) -> None:
        await self.box.put_tar("/testbed-tools", sources.tools())
        await self.box.put_tar(
            "/", sources.tar({path.removeprefix("/"): text.encode() for path, text in self.files.items()})
        )
        script = (
            "git init -q . && git add -A && git -c user.name=x -c user.email=x@x commit -qm fix && git tag v2"
        )
        assert (await self.box.exec(["bash", "-c", script])).exit_code == 0


def image(*, solved: bool) -> dict[str, str]:
    """Return the files of an image that has h11 at /testbed: solved and whole, or as the agent gets it."""
    bug = swe_tasks.h11()
    found: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(swe_tasks.trees(bug).repository)) as archive:
        for member in archive:
            if member.name.endswith(".py"):
                stream = archive.extractfile(member)
                assert stream
                found[f"/testbed/{member.name}"] = stream.read().decode()
    if not solved:
        for patch in (bug.patch, bug.test_patch):
            (file,) = diffs.parse(patch)
            text = found[f"/testbed/{file.new}"]
            for hunk in file.hunks:
                assert text.count("".join(hunk.new)) == 1
                text = text.replace("".join(hunk.new), "".join(hunk.old))
            found[f"/testbed/{file.new}"] = text
    return found


def graded(instance: Instance, files: Mapping[str, str], *patches: str) -> list[Verdict]:
    async def run() -> list[Verdict]:
        async with swe_tasks.PROVIDER.serve() as served, served.open(SPEC) as opened:
            box: Sandbox = Imaged(opened, files)  # type: ignore[assignment]
            return [await grade(box, instance, Trees(), patch.encode(), tests_s=60.0) for patch in patches]

    swe_tasks.provider()
    return asyncio.run(run())


USELESS = diffs.unified("notes.txt", "", "nothing\n")


def test_a_swe_bench_row_is_graded_on_its_image():
    bug = swe_tasks.h11()
    row = {
        **{
            "repo": "x/h11",
            "instance_id": "x__h11-1",
            "base_commit": "abc",
            "patch": bug.patch,
            "test_patch": bug.test_patch,
        },
        **{"problem_statement": "x", "environment_setup_commit": "abc", "version": "1"},
        "FAIL_TO_PASS": json.dumps(bug.fail_to_pass),
        "PASS_TO_PASS": json.dumps(bug.pass_to_pass),
    }
    instance = rows.from_row(row)
    assert instance.command.endswith(
        "pytest --no-header -rA --tb=no -p no:cacheprovider h11/tests/test_util.py"
    )
    instance = replace(instance, setup="", command=f"{COMMAND} h11/tests/test_util.py")
    right, useless, cheat = graded(
        instance,
        image(solved=False),
        bug.patch,
        USELESS,
        diffs.unified("conftest.py", "", "import os\nos._exit(0)\n") + bug.patch,
    )
    assert right.outcome is GradingOutcome.RESOLVED
    assert (useless.outcome, useless.fixed, useless.kept) == (GradingOutcome.UNRESOLVED, 0.0, 1.0)
    assert (cheat.outcome, cheat.restored) == (GradingOutcome.RESOLVED, ("conftest.py",))


def test_a_swe_smith_row_starts_from_its_bug_and_is_solved_by_the_reverse():
    bug = swe_tasks.h11()
    row = {
        **{
            "instance_id": "x__h11.1",
            "repo": "swesmith/x__h11.1",
            "image_name": "x",
            "problem_statement": "x",
        },
        "patch": diffs.reverse(bug.patch),
        "FAIL_TO_PASS": list(bug.fail_to_pass),
        "PASS_TO_PASS": list(bug.pass_to_pass),
    }
    instance = rows.from_row(row)
    assert "--verbose" in instance.command
    instance = replace(instance, command=f"{COMMAND.replace('-q -rA', '--verbose')} h11/tests/test_util.py")
    right, useless = graded(instance, image(solved=True), instance.patch, USELESS)
    assert right.outcome is GradingOutcome.RESOLVED
    assert (useless.outcome, useless.fixed, useless.kept) == (GradingOutcome.UNRESOLVED, 0.0, 1.0)


def test_an_r2e_gym_row_hides_its_tests_and_is_graded_by_its_exact_map():
    bug = swe_tasks.h11()
    files = image(solved=False)
    (file,) = diffs.parse(bug.patch)
    old = files[f"/testbed/{file.new}"]
    new = image(solved=True)[f"/testbed/{file.new}"]
    files |= {
        "/r2e_tests/__init__.py": "",
        "/r2e_tests/test_1.py": "from h11._util import validate\nimport re, pytest\n\n\n"
        "def test_all():\n    with pytest.raises(Exception):\n        validate(re.compile(b'a'), b'ab')\n\n\n"
        "def test_known_to_fail():\n    assert False\n",
        "/testbed/run_tests.sh": f"{COMMAND} r2e_tests\n",
    }
    row = {
        **{"repo_name": "h11", "docker_image": "x", "commit_hash": "abc", "problem_statement": "x"},
        "parsed_commit_content": json.dumps(
            {
                "file_diffs": [
                    {"header": {"file": {"path": file.new}}, "old_file_content": old, "new_file_content": new}
                ]
            }
        ),
        "expected_output_json": json.dumps({"test_all": "PASSED", "test_known_to_fail": "FAILED"}),
    }
    instance = rows.from_row(row)
    right, useless = graded(instance, files, instance.patch, USELESS)
    assert (right.outcome, right.fixed) == (GradingOutcome.RESOLVED, 1.0)
    assert (useless.outcome, useless.fixed) == (GradingOutcome.UNRESOLVED, 0.5)

    async def seen() -> str:
        async with swe_tasks.PROVIDER.serve() as served, served.open(SPEC) as opened:
            box = Imaged(opened, files)
            await box.fill()
            await lay_out(opened, instance, Trees())
            found = await opened.exec(
                ["bash", "-c", "ls / /testbed /r2e_tests 2>/dev/null; git tag; git log --oneline | wc -l"]
            )
            return found.stdout.decode()

    text = asyncio.run(seen())
    assert "run_tests.sh" not in text
    assert "test_1.py" not in text
    assert "v2" not in text
    assert text.endswith("1\n")


def test_unittest_is_run_and_read():
    test = "import unittest\nfrom h11._util import validate\nimport re\n\n\n"
    test += "class T(unittest.TestCase):\n    def test_all(self):\n"
    test += "        self.assertRaises(Exception, validate, re.compile(b'a'), b'ab')\n\n"
    test += "    def test_some(self):\n        'It is kept.'\n"
    bug = swe_tasks.h11()
    instance = replace(
        bug,
        source=None,
        parser="unittest",
        command="python3 -S -m unittest -v unit.t",
        test_patch=diffs.unified("unit/t.py", "", test) + diffs.unified("unit/__init__.py", "", "# here\n"),
        fail_to_pass=("test_all (unit.t.T.test_all)",),
        pass_to_pass=("It is kept.",),
    )
    right, useless = graded(instance, image(solved=False), bug.patch, USELESS)
    assert right.outcome is GradingOutcome.RESOLVED
    assert (useless.outcome, useless.fixed, useless.kept) == (GradingOutcome.UNRESOLVED, 0.0, 1.0)


def test_rows_of_other_tools_read_ours_as_swe_bench(tmp_path):
    rows.write(tmp_path / "rows.jsonl", [swe_tasks.h11()])
    (row,) = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    theirs = {name: value for name, value in row.items() if name != "agentrl"}
    instance = rows.from_row({**theirs, "base_commit": "abc"})
    assert (instance.patch, instance.fail_to_pass) == (swe_tasks.h11().patch, swe_tasks.h11().fail_to_pass)
    subprocess.run(
        ["git", "apply", "--stat", "-"], input=row["patch"], text=True, check=True, capture_output=True
    )
