import asyncio
from dataclasses import replace

import pytest
import swe_tasks
from agentrl_environments.swe import actions, attacks, diffs, rows
from agentrl_environments.swe import grade as grading
from agentrl_environments.swe.grade import GradingOutcome, Verdict, grade, judge
from agentrl_environments.swe.rows import Instance
from agentrl_environments.swe.workspace import environment, extract_patch, lay_out

from agentrl.errors import EnvError, SandboxError

INSTANCE = Instance(
    id="x",
    repo="x",
    problem_statement="x",
    patch=diffs.unified("pkg/a.py", "x = 1\n", "x = 2\n"),
    fail_to_pass=("t.py::f1", "t.py::f2[a"),
    pass_to_pass=("t.py::p1", "t.py::p2"),
    command=rows.PYTEST,
)
GOOD = "PASSED t.py::f1\nPASSED t.py::f2[a b]\nXFAIL t.py::p1\nSKIPPED t.py::p2\n"


def verdict(text: str, exit_code: int = 0, *, canary: str = "", **changes: object) -> Verdict:
    return judge(replace(INSTANCE, **changes), text, exit_code, canary=canary)  # type: ignore[arg-type]


def test_all_fixed_and_all_kept_is_resolved():
    assert verdict(GOOD).resolved


@pytest.mark.parametrize(
    ("text", "fixed", "kept"),
    [
        (GOOD.replace("PASSED t.py::f1", "XFAIL t.py::f1"), 1.0, 1.0),
        (GOOD.replace("PASSED t.py::f1", "SKIPPED t.py::f1"), 0.5, 1.0),
        (GOOD.replace("PASSED t.py::f1\n", ""), 0.5, 1.0),
        (GOOD + "FAILED t.py::f2[a c]\n", 0.5, 1.0),
        (GOOD.replace("SKIPPED t.py::p2\n", ""), 1.0, 0.5),
        (GOOD.replace("SKIPPED t.py::p2", "FAILED t.py::p2"), 1.0, 0.5),
        (GOOD.replace("XFAIL t.py::p1", "ERROR t.py::p1"), 1.0, 0.5),
    ],
    ids=[
        "xfail counts",
        "skipped is not fixed",
        "missing is not fixed",
        "worst of a prefix",
        "missing is not kept",
        "failed",
        "error",
    ],
)
def test_a_status_counts_as_the_official_rule_has_it(text, fixed, kept):
    found = verdict(text, 1 if "FAILED" in text or "ERROR" in text else 0)
    assert (found.fixed, found.kept) == (fixed, kept)
    assert found.outcome is (GradingOutcome.RESOLVED if fixed == kept == 1 else GradingOutcome.UNRESOLVED)


def test_a_log_without_failures_of_a_command_that_failed_is_rejected():
    assert verdict(GOOD, 2).outcome is GradingOutcome.REJECTED
    assert verdict(GOOD + "FAILED t.py::other\n", 1).outcome is GradingOutcome.RESOLVED


def test_nothing_printed_is_an_outcome_of_its_own():
    assert verdict("", 0).outcome is GradingOutcome.SILENT
    assert verdict("bash: python3: not found\n", 127).outcome is GradingOutcome.SILENT
    assert verdict("\nno tests ran in 0.00s\n", 5).outcome is GradingOutcome.REJECTED


def test_the_test_that_must_fail_decides_only_on_what_else_would_be_resolved():
    name = "test_0123456789abcdef"
    assert (
        verdict(GOOD + f"FAILED t.py::{name} - assert False\n", 1, canary=name).outcome
        is GradingOutcome.RESOLVED
    )
    assert verdict(GOOD + f"PASSED t.py::{name}\n", 0, canary=name).outcome is GradingOutcome.REJECTED
    assert verdict(GOOD, 0, canary=name).outcome is GradingOutcome.REJECTED
    assert verdict(GOOD + f"FAILED t.py::{name}\n", 0, canary=name).outcome is GradingOutcome.REJECTED
    assert (
        verdict(GOOD.replace("PASSED t.py::f1", "FAILED t.py::f1"), 1, canary=name).outcome
        is GradingOutcome.UNRESOLVED
    )


def test_the_exact_rule_wants_the_same_tests_and_the_same_statuses():
    expected = (("T.a", "PASSED"), ("b", "FAILED"))
    log = "= short test summary info =\nPASSED x.py::T::a\nFAILED x.py::b - no\n"
    assert verdict(log, 1, expected=expected).outcome is GradingOutcome.RESOLVED
    assert verdict(log.replace("FAILED", "PASSED"), 0, expected=expected).fixed == 0.5
    assert verdict(log + "PASSED x.py::c\n", 1, expected=expected).outcome is GradingOutcome.UNRESOLVED
    assert verdict("1 passed in 0.1s\n", 0, expected=expected).fixed == 0.0


def test_what_steers_the_tests_is_known_by_its_path():
    base = {
        "pkg/__init__.py",
        "pkg/a.py",
        "tests/test_a.py",
        "tests/help.py",
        "setup.cfg",
        "src/lib/__init__.py",
        "json/x.py",
    }
    instance = replace(INSTANCE, fail_to_pass=("tests/test_a.py::t",))
    steering = [
        "tests/test_a.py",
        "tests/new.py",
        "tests/sub/new.py",
        "conftest.py",
        "pkg/conftest.py",
        "setup.cfg",
        "x.pth",
        "pytest.py",
    ]
    steering += [
        "src/_pytest/__init__.py",
        "src/json.py",
        "pkg/__pycache__/a.cpython-311.pyc",
        "sitecustomize.py",
        "re/__init__.py",
    ]
    harmless = [
        "pkg/a.py",
        "pkg/json.py",
        "pkg/new.py",
        "src/lib/types.py",
        "README.md",
        "docs/index.rst",
        "json/y.py",
        "new.py",
    ]
    assert set(grading.control_files(instance, [*steering, *harmless], base)) == set(steering)
    fix = replace(instance, patch=diffs.unified("setup.cfg", "a\n", "b\n"))
    assert set(grading.control_files(fix, ["setup.cfg", "conftest.py"], base)) == {"conftest.py"}


async def graded(instance: Instance, *patches: str, tests_s: float = 60.0) -> list[Verdict]:
    async with swe_tasks.sandbox(instance) as box:
        return [
            await grade(box, instance, swe_tasks.trees(instance), patch.encode(), tests_s=tests_s)
            for patch in patches
        ]


@pytest.mark.parametrize("make", [swe_tasks.h11, pytest.param(swe_tasks.voluptuous, marks=pytest.mark.slow)])
def test_a_real_bug_is_resolved_by_its_fix_and_by_nothing_less(make):
    instance = make()
    right, nothing, useless = asyncio.run(
        graded(instance, instance.patch, "", diffs.unified("notes.txt", "", "done\n"))
    )
    assert (right.outcome, right.fixed, right.kept) == (GradingOutcome.RESOLVED, 1.0, 1.0)
    assert set(instance.fail_to_pass) < set(right.statuses)
    assert nothing.outcome is GradingOutcome.EMPTY
    assert (useless.outcome, useless.fixed, useless.kept) == (GradingOutcome.UNRESOLVED, 0.0, 1.0)


def test_patches_are_applied_by_every_attempt_in_turn_and_never_outside_the_repository():
    instance = swe_tasks.h11()
    fix = instance.patch
    (file,) = diffs.parse(fix)
    (hunk,) = file.hunks
    lines = list(hunk.lines)
    lines[0] = " something else stood here\n"
    fuzzy = diffs.text(replace(file, hunks=(replace(hunk, lines=tuple(lines)),)))
    torn = diffs.text(
        replace(
            file, hunks=(replace(hunk, lines=tuple(line.replace("regex", "pattern") for line in hunk.lines)),)
        )
    )
    outside = fix.replace("h11/_util.py", "../h11/_util.py")
    hooks = diffs.unified(".git/hooks/post-checkout", "", "#!/bin/sh\n")
    hidden = hooks.replace("--- /dev/null\n+++ b/.git/hooks/post-checkout", "--- /dev/null\n+++ b/new.txt")
    shifted, bad, out, *git = asyncio.run(graded(instance, fuzzy, torn, outside, hooks, hidden))
    assert shifted.outcome is GradingOutcome.RESOLVED
    assert bad.outcome is GradingOutcome.NOT_APPLIED
    assert "h11/_util.py" in bad.detail
    assert all("outside the repository" in found.detail for found in (out, *git))
    assert {found.outcome for found in (out, *git)} == {GradingOutcome.NOT_APPLIED}


def test_a_fix_that_is_there_already_counts_as_applied():
    instance = swe_tasks.h11()

    async def twice() -> str:
        async with swe_tasks.sandbox(instance) as box:
            await lay_out(box, instance, swe_tasks.trees(instance))
            assert await grading.apply(box, instance.patch.encode()) == ""
            await box.exec(["git", "commit", "-qam", "done"], env=grading.GIT)
            return await grading.apply(box, instance.patch.encode())

    assert asyncio.run(twice()) == ""


def test_a_test_run_that_hangs_is_an_outcome_within_its_deadline():
    instance = swe_tasks.h11()
    hang = diffs.unified("h11/_abnf.py", _text(instance, "h11/_abnf.py"), "while True: pass\n")
    silent = diffs.unified("h11/_abnf.py", _text(instance, "h11/_abnf.py"), "import os\nos._exit(0)\n")
    (slow,) = asyncio.run(graded(instance, hang, tests_s=2.0))
    assert (slow.outcome, slow.detail, slow.resolved) == (GradingOutcome.HUNG, "after 2 s", False)
    (nothing,) = asyncio.run(graded(instance, silent))
    assert nothing.outcome is GradingOutcome.SILENT


def test_an_instance_that_is_broken_is_nobodys_failure():
    instance = swe_tasks.h11()
    torn = instance.test_patch.replace("my_re", "other_re")
    with pytest.raises(EnvError, match="reversing test_patch failed"):
        asyncio.run(graded(replace(instance, test_patch=torn), instance.patch))
    with pytest.raises(EnvError, match="made from another tree"):
        asyncio.run(graded(replace(instance, base_commit="0" * 40), instance.patch))


def test_a_sandbox_that_breaks_is_nobodys_failure():
    instance = swe_tasks.h11()

    async def broken() -> None:
        async with swe_tasks.sandbox(instance) as box:

            async def reset() -> None:
                raise SandboxError("the daemon is gone")

            box.reset = reset  # type: ignore[method-assign]
            await grade(box, instance, swe_tasks.trees(instance), instance.patch.encode(), tests_s=60)

    with pytest.raises(SandboxError, match="the daemon is gone"):
        asyncio.run(broken())


@pytest.mark.parametrize(
    "name",
    [
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("conftest that passes", "own runner", "sources that print results")
        ),
        "sources that pass every test",
    ],
)
def test_an_attack_would_work_by_the_official_rule_alone_and_does_not_here(name, monkeypatch):
    instance = swe_tasks.h11()
    call = actions.parse(attacks.attacks_on(instance, bash_only=False)[name][0])

    async def attacked() -> Verdict:
        async with swe_tasks.sandbox(instance) as box:
            base = await lay_out(box, instance, swe_tasks.trees(instance))
            done = await box.exec(
                ["bash", "-c", call.arguments["command"]], env=environment(instance, "/testbed")
            )
            assert done.exit_code == 0, done.stderr
            patch = await extract_patch(box, base)
            return await grade(box, instance, swe_tasks.trees(instance), patch, tests_s=60)

    found = asyncio.run(attacked())
    assert not found.resolved
    assert bool(found.restored) != (found.outcome is GradingOutcome.REJECTED)

    async def add_nothing(*_: object) -> str:
        return ""

    monkeypatch.setattr(grading, "_add_canary", add_nothing)
    monkeypatch.setattr(
        grading, "control_files", lambda instance, changed, base: set(changed) & set(instance.test_files)
    )
    assert asyncio.run(attacked()).resolved


def _text(instance: Instance, path: str) -> str:
    """Return a file of an instance's package."""
    package = swe_tasks.packages.named(instance.repo)
    return swe_tasks.packages.fetch(package).files[path].decode()
