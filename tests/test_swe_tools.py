import asyncio
from collections.abc import Awaitable, Callable

import pytest
import swe_tasks
from agentrl_environments.swe.actions import parse
from agentrl_environments.swe.tools import QUIET, Result, Tools, clip
from agentrl_environments.swe.workspace import Trees, extract_patch, lay_out, tree_hash
from hypothesis import given
from hypothesis import strategies as st

from agentrl.sandbox import Sandbox
from agentrl.types import SandboxSpec

Run = Callable[[str], Awaitable[Result]]
SETUP = "ready=yes"
SPEC = SandboxSpec(image=swe_tasks.IMAGE, workdir="/testbed")


def in_sandbox(
    body: Callable[[Run, Sandbox], Awaitable[None]], *, shell: bool = True, command_s: float = 20.0
) -> None:
    """Run ``body`` with tools at work in a sandbox that holds a small file."""

    async def run() -> None:
        async with swe_tasks.PROVIDER.serve() as served, served.open(SPEC) as box:
            await box.write("/testbed/pkg/a.py", b"one\ntwo\none\n")
            if not shell:
                tools = Tools(box, None, env=QUIET, setup=SETUP, command_s=command_s, max_output=200)
                await body(lambda text: tools.run(parse(text)), box)
                return
            async with box.shell(env=QUIET) as opened:
                tools = Tools(box, opened, env=QUIET, setup=SETUP, command_s=command_s, max_output=200)
                await body(lambda text: tools.run(parse(text)), box)

    swe_tasks.provider()
    asyncio.run(run())


def test_the_shell_keeps_its_state_and_says_how_a_command_ended():
    async def body(run: Run, box: Sandbox) -> None:
        assert await run("bash export X=$ready; cd pkg") == Result("[now in /testbed/pkg]")
        assert await run("bash echo $X") == Result("yes")
        assert await run("bash echo no; false") == Result("no\n[exit code 1]")
        assert (await run("bash exit 3")).text.startswith("exit\n[exit code 3]\n[the shell ended")
        assert await run("bash echo ${X:-gone} $ready") == Result("gone yes")
        assert (await run("bash seq 1000")).text.startswith("1\n2\n")
        assert "characters are left out" in (await run("bash seq 1000")).text
        assert await run("bash sleep 30") == Result("[stopped after 1 s]", ran=False, timed_out=True)

    in_sandbox(body, command_s=1.0)


def test_the_editor_edits_and_takes_back():
    async def body(run: Run, box: Sandbox) -> None:
        assert (await run("view pkg/a.py")).text == "     1\tone\n     2\ttwo\n     3\tone"
        assert (await run("view pkg/a.py 2 2")).text == "     2\ttwo"
        assert (await run("view /testbed")).text == "pkg/\npkg/a.py"
        assert (
            await run("str_replace pkg/a.py two 2")
        ).text == "edited pkg/a.py; lines 1 to 3 are now:\n     1\tone\n     2\t2\n     3\tone"
        assert (await run("insert pkg/a.py 0 zero")).text.endswith(
            "     1\tzero\n     2\tone\n     3\t2\n     4\tone"
        )
        assert await box.read("/testbed/pkg/a.py") == b"zero\none\n2\none\n"
        await run("undo_edit pkg/a.py")
        await run("undo_edit pkg/a.py")
        assert await box.read("/testbed/pkg/a.py") == b"one\ntwo\none\n"
        assert await run("create pkg/b.py 'x = 1\n'") == Result("created pkg/b.py")
        assert await box.read("/testbed/pkg/b.py") == b"x = 1\n"
        assert (await run("search one")).text == "pkg/a.py:1:one\npkg/a.py:3:one"
        assert (await run("search one pkg/b.py")).text == "'one' is in no file of pkg/b.py"
        assert (await run("submit")).submitted

    in_sandbox(body)


def test_what_the_editor_cannot_do_is_answered_and_changes_nothing():
    async def body(run: Run, box: Sandbox) -> None:
        await box.write("/testbed/binary", b"\xff\xfe\0")
        for action, answer in {
            "view nowhere.py": "cannot read /testbed/nowhere.py: no such file",
            "view binary": "is not a text file",
            "view pkg/a.py 9 10": "lines 9 to 10 do not exist: pkg/a.py has 3 lines",
            "create pkg/a.py x": "exists already",
            "create pkg x": "exists already",
            "create pkg/a.py/b.py x": "cannot write",
            "str_replace pkg/a.py one 1": "is there 2 times, in lines 1, 3",
            "str_replace pkg/a.py three 3": "is not there, verbatim",
            "str_replace pkg/a.py two two": "nothing would change",
            "str_replace pkg/a.py '' x": "old_str is empty",
            "insert pkg/a.py 7 x": "insert_line is 7; pkg/a.py has 3 lines",
            "undo_edit pkg/a.py": "no edit of pkg/a.py is left",
            "search ''": "search_term must be",
            "search x nowhere": "search failed",
        }.items():
            result = await run(action)
            assert not result.ran, action
            assert answer.lower() in result.text.lower(), (action, result.text)
        assert await box.read("/testbed/pkg/a.py") == b"one\ntwo\none\n"

    in_sandbox(body)


def test_single_commands_have_shells_of_their_own_and_submit_by_what_they_print():
    async def body(run: Run, box: Sandbox) -> None:
        assert await run("bash cd pkg; X=$ready; [ $X ] && pwd") == Result(
            "<returncode>0</returncode>\n<output>\n/testbed/pkg\n</output>"
        )
        assert await run("bash pwd; echo $X >&2; exit 3") == Result(
            "<returncode>3</returncode>\n<output>\n/testbed\n</output>"
        )
        assert (await run("bash sleep 30")) == Result(
            "<returncode>stopped after 1 s</returncode>\n<output>\n\n</output>", False, True
        )
        assert (await run("bash echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT")).submitted
        assert not (await run("bash echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT; false")).submitted
        assert not (await run("bash echo no; echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT")).submitted

    in_sandbox(body, shell=False, command_s=1.0)


@given(st.text(max_size=60), st.integers(2, 40))
def test_a_text_that_is_too_long_keeps_both_ends_and_says_what_is_missing(text, limit):
    short = clip(text, limit)
    if len(text) <= limit:
        assert short == text
        return
    head, tail = text[: limit // 2], text[len(text) - (limit + 1) // 2 :]
    assert short == f"{head}\n[{len(text) - len(head) - len(tail)} characters are left out]\n{tail}"


def test_the_patch_is_what_differs_from_the_base_whatever_the_agent_does_with_git():
    instance = swe_tasks.h11()

    async def body() -> None:
        async with swe_tasks.sandbox(instance) as box:
            base = await lay_out(box, instance, swe_tasks.trees(instance))
            before = await tree_hash(box)
            assert await extract_patch(box, base) == b""
            history = await box.exec(["git", "log", "--all", "--oneline"])
            assert history.stdout.count(b"\n") == 1
            script = "echo x >new.py; rm README.rst; git add -A; git commit -qm mine; "
            script += "mkdir __pycache__; touch __pycache__/a.pyc; "
            script += "echo y >>new.py"
            assert (await box.exec(["bash", "-c", script])).exit_code == 0
            assert await tree_hash(box) not in ("", before)
            patch = await extract_patch(box, base)
            assert b"+++ b/new.py\n@@ -0,0 +1,2 @@\n+x\n+y\n" in patch
            assert b"deleted file mode 100644" in patch
            assert b"pycache" not in patch
            await box.exec(["rm", "-rf", ".git"])
            assert await extract_patch(box, base) == b""
            assert await tree_hash(box) == ""

    swe_tasks.provider()
    asyncio.run(body())


def test_an_edit_that_keeps_a_files_length_is_seen_however_young_the_file_is():
    instance = swe_tasks.h11()

    async def body() -> None:
        async with swe_tasks.sandbox(instance) as box:
            await lay_out(box, instance, swe_tasks.trees(instance))
            script = (
                # all of it within a second
                "while [ $(date +%N | cut -c1) != 0 ]; do sleep 0.01; done; echo 1 >x; "
                "git add -A && git write-tree; echo 2 >x; sleep 1"
            )
            before = await box.exec(["bash", "-c", script])
            assert before.stdout.decode().strip() != await tree_hash(box) != ""

    swe_tasks.provider()
    asyncio.run(body())


def test_the_base_is_the_same_commit_every_time():
    instance = swe_tasks.voluptuous()

    async def body() -> tuple[str, str]:
        async with swe_tasks.sandbox(instance) as box:
            first = await lay_out(box, instance, swe_tasks.trees(instance))
            await box.reset()
            return first, await lay_out(box, instance, swe_tasks.trees(instance))

    swe_tasks.provider()
    first, second = asyncio.run(body())
    assert first == second


def test_an_image_with_a_history_is_laid_out_without_it_and_without_what_is_hidden():
    image = swe_tasks.hard(
        swe_tasks.h11(), source=None, solved=False, hidden=("/testbed/secret.py", "/testbed/run_tests.sh")
    )

    async def body() -> None:
        async with swe_tasks.PROVIDER.serve() as served, served.open(SPEC) as box:
            script = (
                "git init -q . && git config user.name x && git config user.email x@x && "
                "echo '*.so' >.gitignore && echo 1 >a.py && echo kept >ignored.so && "
                "git add -A && git add -f ignored.so && git commit -qm fix && git tag later && "
                "echo 2 >a.py && git commit -qam base && "
                "touch secret.py run_tests.sh built.so 'built [1]' && mkdir .venv && touch .venv/x"
            )
            assert (await box.exec(["bash", "-c", script])).exit_code == 0
            await lay_out(box, image, Trees())
            script = "git ls-files; git tag; git log --all --oneline | wc -l; git cat-file -e HEAD~1; "
            listed = await box.exec(["bash", "-c", script + "git status -s; ls"])
            assert listed.stdout.decode().split() == [
                ".gitignore",
                "a.py",
                "ignored.so",
                "1",
                "a.py",
                "built",
                "[1]",
                "built.so",
                "ignored.so",
            ]

    swe_tasks.provider()
    asyncio.run(body())


@pytest.mark.parametrize("shell", [pytest.param(True, marks=pytest.mark.slow), False])
def test_an_agent_that_breaks_its_sandbox_is_answered(shell):
    async def body(run: Run, box: Sandbox) -> None:
        await run("bash kill -9 $$")
        await run("bash rm -rf /testbed /usr /tmp 2>/dev/null; kill -9 -1")
        assert isinstance((await run("bash echo still here")).text, str)

    in_sandbox(body, shell=shell)
