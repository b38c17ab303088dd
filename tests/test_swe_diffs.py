import subprocess

import pytest
from agentrl_environments.swe import diffs
from hypothesis import given
from hypothesis import strategies as st

lines = st.lists(
    st.sampled_from(["a\n", "b\n", "-- x\n", "++ y\n", "\n", "\x0cform feed\n", "@@ -1 +1 @@\n"]), max_size=12
)
texts = st.builds(lambda body, last: "".join(body) + last, lines, st.sampled_from(["", "no newline"]))
PATCH = diffs.unified("pkg/a.py", "one\ntwo\nthree\n", "one\n2\nthree\n")


def patched(text: str, file: diffs.FileDiff) -> str:
    """Apply exact hunks, from the last to the first."""
    found = diffs.lines(text)
    for hunk in reversed(file.hunks):
        start = hunk.start - 1 if hunk.old else hunk.start
        assert tuple(found[start : start + len(hunk.old)]) == hunk.old
        found[start : start + len(hunk.old)] = hunk.new
    return "".join(found)


@given(texts, texts)
def test_a_diff_turns_the_old_text_into_the_new_and_its_reverse_turns_it_back(old, new):
    patch = diffs.unified("a.py", old, new)
    if old == new:
        assert patch == ""
        return
    (file,) = diffs.parse(patch)
    (back,) = diffs.parse(diffs.reverse(patch))
    assert patched(old, file) == new
    assert patched(new, back) == old
    assert diffs.text(file) == patch.replace("@@ -1 ", "@@ -1,1 ").replace(
        " +1 @@", " +1,1 @@"
    ) or diffs.parse(diffs.text(file)) == (file,)
    assert diffs.reverse(diffs.reverse(patch)) == diffs.text(file)


@given(texts, texts)
def test_a_patch_of_two_files_is_read_as_both(one, two):
    patch = diffs.unified("a.py", one, one + "x\n") + diffs.unified("b/c.py", two, "y\n" + two)
    assert [(file.old or file.new, file.new) for file in diffs.parse(patch)] == [
        ("a.py", "a.py"),
        ("b/c.py", "b/c.py"),
    ]
    assert diffs.paths(patch) == ("a.py", "b/c.py")


def test_git_agrees_with_the_reverse_of_its_own_diffs(tmp_path):
    def git(*argv: str, given: str = "") -> str:
        config = ("-c", "user.name=x", "-c", "user.email=x@x", "-c", "core.autocrlf=false")
        return subprocess.run(
            ["git", *config, *argv], cwd=tmp_path, input=given, capture_output=True, text=True, check=True
        ).stdout

    git("init", "-q", ".")
    (tmp_path / "kept.py").write_text("".join(f"line {number}\n" for number in range(40)))
    (tmp_path / "gone.py").write_text("will go\nwithout newline")
    (tmp_path / "moved.py").write_text("".join(f"moved {number}\n" for number in range(20)))
    git("add", "-A")
    git("commit", "-q", "-m", "one")
    (tmp_path / "kept.py").write_text(
        "".join(f"line {number}\n" for number in range(40) if number % 17) + "end"
    )
    (tmp_path / "gone.py").unlink()
    (tmp_path / "new.py").write_text("new\n")
    (tmp_path / "new.py").chmod(0o755)
    (tmp_path / "moved.py").rename(tmp_path / "there.py")
    git("add", "-A")
    patch = git("diff", "--cached", "-M")
    git("commit", "-q", "-m", "two")
    git("apply", "-", given=diffs.reverse(patch))
    git("add", "-A")
    assert git("write-tree") == git("rev-parse", "HEAD~1^{tree}")


def test_a_context_line_that_lost_its_space_is_still_one():
    patch = "--- a/x\n+++ b/x\n@@ -1,3 +1,3 @@\n a\n\n-b\n+c\n"
    assert diffs.parse(patch)[0].hunks[0].old == ("a\n", "\n", "b\n")


@pytest.mark.parametrize("broken", [PATCH[: PATCH.index("+2")], PATCH.replace("-two", "?two")])
def test_a_hunk_that_is_short_or_holds_a_strange_line_is_refused(broken):
    with pytest.raises(ValueError, match=r"hunk"):
        diffs.parse(broken)


def test_text_between_the_diffs_is_left_out():
    patch = f"From: somebody\n\nSubject: mend it\n---\n x.py | 2 +-\n\n{PATCH}\n-- \n2.39\n"
    assert "".join(map(diffs.text, diffs.parse(patch))) == PATCH


def test_a_line_of_no_known_kind_in_a_header_is_left_out():
    assert diffs.text(diffs.parse(PATCH.replace("--- a", "Index: .git/config\n--- a"))[0]) == PATCH
