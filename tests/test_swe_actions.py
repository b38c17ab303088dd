import pytest
from agentrl_environments.swe import actions, diffs, expert
from agentrl_environments.swe.actions import OPTIONAL, PARAMETERS, Call, InvalidAction, parse, render
from hypothesis import given
from hypothesis import strategies as st

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40).filter(
    lambda text: "<" not in text
)
lines = st.lists(st.sampled_from(["x = 1\n", "y = '2'\n", "\n", "if x:\n", "    y\n"]), max_size=10).map(
    "".join
)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """Calls with every argument, or without the optional ones."""
    tool = draw(st.sampled_from([tool for tool in PARAMETERS if tool != "bash"]))
    left_out = draw(st.sampled_from([(), OPTIONAL.get(tool, ())]))
    numbers = st.integers(-1, 999).map(str)
    given_ = {
        name: draw(numbers if name in ("start", "end", "insert_line") else texts)
        for name in PARAMETERS[tool]
        if name not in left_out
    }
    return Call(tool, given_)


@given(calls(), st.sampled_from(["function", "line"]))
def test_what_is_rendered_is_read_back(call, style):
    if style == "function":  # an empty or padded path survives in quotes only
        call = Call(
            call.tool,
            {
                name: value.strip() or "x" if name in ("path", "search_term") else value
                for name, value in call.arguments.items()
            },
        )
    assert parse(render(call, style)) == call


@given(texts.filter(str.strip), st.sampled_from(["function", "block"]))
def test_a_command_is_carried_to_the_letter(command, style):
    command = command.strip("\n") if style == "block" else command
    if not command.strip() or "```" in command:
        return
    assert parse(render(Call("bash", {"command": command}), style)).arguments["command"] == command


@pytest.mark.parametrize(
    ("text", "call"),
    [
        (
            "I think.\n<function=bash>\n<parameter=command>\nls -la\n</parameter>\n</function>",
            Call("bash", {"command": "ls -la"}),
        ),
        ("<function=bash><parameter=command>ls</parameter>", Call("bash", {"command": "ls"})),
        (
            "<function=execute_bash>\n<parameter=cmd>ls</parameter>\n</function>",
            Call("bash", {"command": "ls"}),
        ),
        ("<function=finish><parameter=command>submit</parameter></function>", Call("submit", {})),
        (
            "<function=file_editor><parameter=command>view</parameter><parameter=path>a</parameter>"
            "<parameter=view_range>[1, -1]</parameter></function>",
            Call("view", {"path": "a", "start": "1", "end": "-1"}),
        ),
        ("<think>submit or <function=bash>?</think>\nsubmit", Call("submit", {})),
        ("bash cat 'a\nb' | head\n", Call("bash", {"command": "cat 'a\nb' | head"})),
        ("Let me look.\n```bash\nls\npwd\n```\nThat is all.", Call("bash", {"command": "ls\npwd"})),
        (
            "str_replace a.py 'x = \"1\"\ny' ''",
            Call("str_replace", {"path": "a.py", "old_str": 'x = "1"\ny', "new_str": ""}),
        ),
        ("search needle", Call("search", {"search_term": "needle"})),
    ],
)
def test_every_form_is_understood(text, call):
    assert parse(text) == call


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no call found"),
        ("I would look at the parser.", "no call found"),
        (
            "<function=bash><parameter=command>a</parameter></function><function=submit></function>",
            "found 2 function calls",
        ),
        ("```bash\na\n```\n```bash\nb\n```", "found 2 command blocks"),
        ("<function=fly></function>", "there is no tool 'fly'"),
        ("<function=bash><parameter=command>a", "is not closed"),
        ("<function=bash></function>", "bash needs 'command'"),
        ("<function=bash><parameter=command> </parameter></function>", "the command is empty"),
        ("bash ", "the command is empty"),
        ("bash a\0b", "NUL"),
        (
            "<function=str_replace_editor><parameter=command>delete</parameter></function>",
            "no command 'delete'",
        ),
        ("<function=search><parameter=term>x</parameter></function>", "no parameter 'term'"),
        ("view", "view needs 'path'"),
        ("view a.py one", "'start' must be a whole number, found 'one'"),
        ("view a.py 1 2 3", "found 4 arguments"),
        ("str_replace a.py 'x", "no closing quotation"),
        ("submit now", "submit takes no arguments"),
    ],
)
def test_what_is_no_call_is_answered_with_the_reason(text, message):
    with pytest.raises(InvalidAction, match=message):
        parse(text)


def test_where_commands_are_all_there_is_nothing_else_is_a_call():
    assert parse("```bash\nls\n```", bash_only=True).tool == "bash"
    with pytest.raises(InvalidAction, match="no tool 'submit' here"):
        parse("submit", bash_only=True)


@given(lines, lines)
def test_the_experts_edits_turn_the_old_text_into_the_new(old, new):
    if old == new or not old or not new:
        return
    text = old
    for action in expert.plan(diffs.unified("a.py", old, new), {"a.py": old}, "line"):
        call = actions.parse(action)
        if call.tool == "str_replace":
            before, after = call.arguments["old_str"], call.arguments["new_str"]
            assert text.find(before) == text.rfind(before) != -1
            text = text.replace(before, after)
        else:
            assert call.tool in ("view", "submit", "bash")
            if call.tool == "bash":  # nothing in the file to hold on to
                assert "git apply" in call.arguments["command"]
                return
    assert text == new


def test_the_expert_makes_and_removes_files_and_leaves_the_rest_to_git():
    new = expert.plan(diffs.unified("a.py", "", "x\n"), {}, "line")
    gone = expert.plan(diffs.unified("a.py", "x\n", ""), {"a.py": "x\n"}, "line")
    moved = expert.plan(
        "diff --git a/a b/b\nsimilarity index 100%\nrename from a\nrename to b\n", {"a": "x\n"}, "line"
    )
    strange = expert.plan(diffs.unified("a.py", "x\n", "y\n"), {"a.py": "another\n"}, "line")
    assert new[0] == "create a.py 'x\n'"
    assert gone[0] == "bash git rm -q -- 'a.py'"
    assert "git apply" in moved[0]
    assert "rename to b" in moved[0]
    assert "git apply" in strange[0]
    assert new[-1] == gone[-1] == moved[-1] == "submit"
