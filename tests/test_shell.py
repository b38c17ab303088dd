"""Persistent shells, beyond what the contract suite checks of every back end."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain import session

from agentrl.errors import SandboxError


def in_a_shell(check):
    """Run ``check(shell, sandbox)``."""

    async def run():
        async with session() as sandbox, sandbox.shell() as shell:
            await check(shell, sandbox)

    asyncio.run(run())


def test_any_text_is_a_command_and_the_shell_is_still_there_after_it():
    async def check(shell, sandbox):
        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(
            st.text(st.sampled_from("'\"`$(){}[]<>|&;#\\!*? \n\t0ax=-\x00\x03\x04\x1b~é\ud83d"), max_size=12)
        )
        def collect(command):
            commands.append(command)

        commands: list[str] = []
        collect()
        for command in [each for each in commands if "&" not in each and ">" not in each]:
            ran = await shell.run(command, timeout_s=2.0)
            assert isinstance(ran.exit_code, int)
            again = await shell.run("echo here", timeout_s=5.0)
            assert again.output.endswith(b"here\n"), command

    in_a_shell(check)


def test_commands_under_xtrace_errexit_and_nounset_show_only_themselves():
    async def check(shell, sandbox):
        await shell.run("set -x")
        assert (await shell.run("echo seen")).output == b"++ echo seen\nseen\n"
        await shell.run("set +x; set -eu")
        assert (await shell.run("true")).output == b""
        assert (await shell.run("if false; then :; fi; false || true; echo on")).output == b"on\n"
        assert (await shell.run("false; echo never")).restarted

    in_a_shell(check)


def test_what_is_set_in_one_command_holds_in_the_next():
    async def check(shell, sandbox):
        await shell.run("exec 3>log; trap 'echo bye' EXIT; set -o pipefail; readonly r=1; exec 1>&1")
        await shell.run("echo logged >&3")
        assert (await shell.run("cat log; set -o | grep pipefail")).output.split() == [
            b"logged",
            b"pipefail",
            b"on",
        ]
        assert (await shell.run("false | true")).exit_code == 1
        assert (await shell.run("PROMPT_COMMAND=; PS1='> '; PS2=x")).exit_code == 0
        assert (await shell.run("echo still")).output == b"still\n"
        assert b"bye" in (await shell.run("exit 5")).output

    in_a_shell(check)


def test_output_between_two_commands_belongs_to_the_next():
    async def check(shell, sandbox):
        await shell.run("(sleep 0.2; echo between) 2>&1 &")
        await asyncio.sleep(0.5)
        assert (await shell.run("echo after")).output == b"between\nafter\n"
        await shell.run("(sleep 0.1; head -c 10000000 /dev/zero) &")
        await asyncio.sleep(0.6)
        ran = await shell.run("echo after", max_output=100)
        assert len(ran.output) == 100
        assert ran.output.endswith(b"after\n")

    in_a_shell(check)


def test_a_shell_that_is_killed_between_commands_is_started_again_and_says_so():
    async def check(shell, sandbox):
        await shell.run("cd /usr; x=1")
        assert await sandbox.kill_all() == 1
        ran = await shell.run('echo "[$x]" $PWD')
        assert (ran.output, ran.restarted, ran.exit_code) == (b"[] /usr\n", True, 0)
        assert not (await shell.run("true")).restarted

    in_a_shell(check)


def test_a_shell_whose_folder_is_gone_starts_again_in_workdir():
    async def check(shell, sandbox):
        await shell.run("mkdir gone; cd gone; rmdir ../gone")
        ran = await shell.run("exit 1")
        assert (ran.restarted, ran.cwd) == (True, sandbox.spec.workdir)

    in_a_shell(check)


def test_a_stopped_bash_is_replaced_at_the_deadline():
    async def check(shell, sandbox):
        ran = await shell.run("kill -STOP $$", timeout_s=0.3)
        assert (ran.timed_out, ran.restarted) == (True, True)
        assert (await shell.run("echo well")).output == b"well\n"

    in_a_shell(check)


def test_a_program_that_takes_the_terminal_is_interrupted_and_the_terminal_is_mended():
    async def check(shell, sandbox):
        raw = (
            "python3 -c 'import tty, os, time; tty.setraw(os.open(\"/dev/tty\", os.O_RDWR)); time.sleep(60)'"
        )
        ran = await shell.run(raw, timeout_s=0.7)
        assert (ran.timed_out, ran.restarted) == (True, False)
        assert (await shell.run("echo well")).output == b"well\n"
        asked = await shell.run("read x </dev/tty", timeout_s=0.3)
        assert asked.timed_out
        assert (await shell.run("echo well")).output == b"well\n"

    in_a_shell(check)


def test_a_background_job_from_before_outlives_the_deadline_of_a_later_command():
    async def check(shell, sandbox):
        await shell.run("sleep 600 & kept=$!")
        await asyncio.sleep(0.05)
        assert (await shell.run("trap '' INT; sleep 600", timeout_s=0.3)).timed_out
        assert (await shell.run("kill -0 $kept && echo kept")).output == b"kept\n"

    in_a_shell(check)


def test_a_command_that_is_cancelled_is_killed_and_the_next_one_runs():
    async def check(shell, sandbox):
        running = asyncio.create_task(shell.run("sleep 600"))
        await asyncio.sleep(0.2)
        running.cancel()
        await asyncio.wait({running})
        ran = await shell.run("echo well")
        assert (ran.output, ran.restarted) == (b"well\n", True)

    in_a_shell(check)


def test_a_command_in_a_shell_that_is_closed_meanwhile_is_killed_and_answered():
    async def check():
        async with session() as sandbox:
            async with sandbox.shell() as shell:
                running = asyncio.create_task(shell.run("echo begun; sleep 600"))
                await asyncio.sleep(0.2)
            assert (await running).exit_code == -9
            assert (await running).output == b"begun\n"

    asyncio.run(check())


def test_two_commands_at_once_wait_for_each_other():
    async def check(shell, sandbox):
        ran = await asyncio.gather(
            *[shell.run(f"echo {index}; sleep 0.05; echo {index}") for index in range(4)]
        )
        assert [each.output for each in ran] == [f"{index}\n{index}\n".encode() for index in range(4)]

    in_a_shell(check)


def test_a_shell_cannot_be_opened_where_there_is_no_folder():
    async def check():
        async with session() as sandbox:
            with pytest.raises(FileNotFoundError):
                async with sandbox.shell(cwd="/no/such/folder"):
                    pass
            with pytest.raises(OSError, match="bash"):
                async with sandbox.shell(env={"PATH": "/nowhere"}):
                    pass

    asyncio.run(check())


def test_a_shell_of_a_closed_sandbox_is_an_infrastructure_error():
    async def check():
        async with session() as sandbox, sandbox.shell() as shell:
            await sandbox.close()
            with pytest.raises(SandboxError):
                await shell.run("true")

    asyncio.run(check())
