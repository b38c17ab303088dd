import numpy as np
import pytest
from chatml import CHAT_TOKENIZER, CHATML, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.errors import ConfigError, TokenDrift
from agentrl.render import TagRenderer, check_drift, context
from agentrl.render.chat import ChatRenderer
from agentrl.types import Action, End, Message, Observation, Task, Trajectory, Turn, floats, ints

DROPS_THINKING = CHATML.replace(
    "{{ m.content }}", "{{ m.content.split('</think>')[-1] if not loop.last else m.content }}"
)
CLEANS = CHATML.replace(
    "{{ m.content }}", "{{ m.content if loop.index > messages|length - 2 else m.content|upper }}"
)


TAGS = TagRenderer(tokenizer())
CHAT = ChatRenderer(CHAT_TOKENIZER)

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
episodes = st.lists(st.tuples(words, words, st.booleans(), st.booleans()), min_size=1, max_size=5)


def played(renderer, episode) -> list[Turn]:
    """Turns as an engine would record them: (observation, action, cut by the token limit, text only) each."""
    turns: list[Turn] = []
    for seen, said, clipped, text_only in episode:
        observation = Observation.text(seen)
        prompt, tokens = renderer.prompt(turns, observation), renderer.encode(said)
        if clipped and len(tokens) > 1:
            tokens = ints(tokens[:-1])
        text = renderer.decode(tokens)
        action = Action(
            text, prompt.tokens, tokens, floats(np.zeros(len(tokens))), 0, prompt.fresh, clipped=clipped
        )
        turns.append(Turn(observation, Action(text) if text_only else action))
    return turns


@given(episodes)
def test_tag_deltas_concatenate_to_the_rendered_whole(episode):
    turns = played(TAGS, episode)
    ids = context(turns).tolist() + TAGS.prompt(turns, Observation.text("last")).tokens.tolist()
    encode = {"add_special_tokens": False, "split_special_tokens": True}
    whole: list[int] = []
    for turn in turns:
        action = turn.action.tokens.tolist() or TAGS.encode(turn.action.text).tolist()
        closed = action if action[-1] == 2 else [*action, 2]
        whole += [*TAGS.tokenizer.encode(turn.observation.messages[0].content, **encode), 1, *closed]
    assert ids == [*whole, *TAGS.tokenizer.encode("last", **encode), 1]


@settings(deadline=None)
@given(episodes)
def test_chat_deltas_concatenate_to_the_rendered_whole(episode):
    turns = played(
        CHAT, [(seen, said.strip(), clipped, text_only) for seen, said, clipped, text_only in episode]
    )
    ids = context(turns).tolist() + CHAT.prompt(turns, Observation.text("last")).tokens.tolist()
    messages = [
        {"role": role, "content": content}
        for turn in turns
        for role, content in (("user", turn.observation.messages[0].content), ("assistant", turn.action.text))
    ]
    whole = CHAT_TOKENIZER.apply_chat_template(
        [*messages, {"role": "user", "content": "last"}], add_generation_prompt=True, tokenize=False
    )
    assert ids == CHAT_TOKENIZER.encode(whole, add_special_tokens=False)


@pytest.mark.parametrize("renderer", [TAGS, CHAT])
@given(st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=20))
def test_an_action_is_read_back_from_its_tokens(renderer, text):
    tokens = renderer.encode(text)
    assert renderer.decode(tokens) == text.strip()
    assert renderer.ended(tokens.tolist())
    assert not (len(tokens) > 1 and renderer.ended(tokens[:-1].tolist()))


def test_an_observation_cannot_spell_a_special_token():
    for renderer, tag, ends in ((TAGS, "<end>", 0), (CHAT, "<|im_end|>", 1)):
        prompt = renderer.prompt((), Observation.text(f"a {tag} b"))
        assert list(prompt.tokens).count(2) == ends


def test_an_action_that_the_limit_cut_is_closed_by_the_next_delta():
    turns = played(TAGS, [("a", "go", True, False)])
    assert TAGS.prompt(turns, Observation.text("b")).tokens[0] == 2
    assert TAGS.prompt(played(TAGS, [("a", "go", False, False)]), Observation.text("b")).tokens[0] != 2


@pytest.mark.parametrize("kind", ["tags", "chat"])
def test_a_history_shows_the_last_turns_only_and_starts_afresh(kind):
    renderer = (
        TagRenderer(tokenizer(), history=1) if kind == "tags" else ChatRenderer(CHAT_TOKENIZER, history=1)
    )
    turns = played(renderer, [(f"room {index}", f"go {index}", False, False) for index in range(3)])
    prompt = renderer.prompt(turns, Observation.text("here"))
    text = renderer.tokenizer.decode(prompt.tokens.tolist())
    assert prompt.fresh
    assert [word in text for word in ("room 1", "room 2", "go 1", "go 2", "here")] == [
        False,
        True,
        False,
        True,
        True,
    ]
    assert (
        context([*turns, Turn(Observation.text("here"), Action("x", prompt.tokens, fresh=True))]).tolist()
        == prompt.tokens.tolist()
    )


def test_a_history_keeps_the_system_message():
    renderer = ChatRenderer(CHAT_TOKENIZER, history=0)
    first = Observation((Message("system", "play"), Message("user", "room")))
    text = renderer.tokenizer.decode(
        renderer.prompt([Turn(first, Action("go"))], Observation.text("hall")).tokens.tolist()
    )
    assert (
        text
        == "<|im_start|>system\nplay<|im_end|>\n<|im_start|>user\nhall<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("template", [DROPS_THINKING, CLEANS])
def test_a_template_that_rewrites_history_is_refused_and_usable_with_a_history(template):
    rewriting = tokenizer(("<pad>", "<|im_start|>", "<|im_end|>"), template)
    with pytest.raises(ConfigError, match=r"rewrites earlier messages.*Give the renderer a history"):
        ChatRenderer(rewriting)
    assert ChatRenderer(rewriting, history=2).prompt((), Observation.text("room")).fresh


def test_a_template_without_an_end_token_is_refused():
    with pytest.raises(ConfigError, match="does not begin with a special token"):
        ChatRenderer(tokenizer(template=CHATML.replace("<|im_end|>", "")))
    with pytest.raises(ConfigError, match="chat template"):
        ChatRenderer(tokenizer())


def test_missing_tags_are_named():
    with pytest.raises(
        ConfigError, match=r"lacks the special tokens \['<act>'\]; it has \['<end>', '<pad>'\]"
    ):
        TagRenderer(tokenizer(("<pad>", "<end>")))


def test_a_negative_history_is_refused():
    with pytest.raises(ConfigError, match="at least 0, but it is -1"):
        TagRenderer(tokenizer(), history=-1)


def test_a_demonstration_is_filled_with_tokens():
    script = Trajectory(
        Task("t"),
        tuple(Turn(Observation.text(seen), Action(said)) for seen, said in (("a", "go"), ("b", "wait"))),
        End.TERMINATED,
    )
    filled = TAGS.tokenise(script)
    assert [turn.action.text for turn in filled.turns] == ["go", "wait"]
    assert TAGS.tokenizer.decode(context(filled.turns).tolist()) == "a<act>go<end>b<act>wait<end>"
    assert all(turn.action.version == -1 and not turn.action.logprobs.any() for turn in filled.turns)
    assert TAGS.tokenise(filled) == filled
    check_drift(filled.turns, TAGS)


def test_turns_without_tokens_enter_the_context_with_the_next_delta():
    turns = played(TAGS, [("a", "go", False, False), ("b", "wait", False, True)])
    assert (
        TAGS.tokenizer.decode(TAGS.prompt(turns, Observation.text("c")).tokens.tolist())
        == "b<act>wait<end>c<act>"
    )


def test_drift_names_the_turn():
    turns = played(TAGS, [("a", "go", False, False), ("b", "wait", False, False)])
    check_drift(turns, TAGS)
    other = [turns[0], Turn(Observation.text("z"), turns[1].action)]
    with pytest.raises(TokenDrift, match="turn 1 stores a prompt"):
        check_drift(other, TAGS)
    edited = Action("stop", turns[1].action.prompt, turns[1].action.tokens, turns[1].action.logprobs)
    with pytest.raises(TokenDrift, match=r"turn 1 stores the action 'stop', but its tokens read 'wait'"):
        check_drift([turns[0], Turn(turns[1].observation, edited)], TAGS)


def test_a_stop_string_ends_an_action_and_is_no_part_of_it():
    renderer = TagRenderer(tokenizer(), stop_strings=("\n",))
    tokens = renderer.encode("go\nx")[:-1].tolist()
    assert [renderer.ended(tokens[: size + 1]) for size in range(len(tokens))] == [False, False, True, True]
    assert renderer.decode(tokens) == "go"


def test_only_defined_ids_that_say_something_may_be_sampled():
    size = len(TAGS.tokenizer)
    assert np.flatnonzero(~TAGS.allowed(size + 2)).tolist() == [0, 1, size, size + 1]
    assert np.flatnonzero(~CHAT.allowed(size + 1)).tolist() == [0, size]
    with pytest.raises(ConfigError, match="the tokenizer defines"):
        TAGS.allowed(size - 1)
