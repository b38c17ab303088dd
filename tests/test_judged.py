"""Judges, over a real endpoint on the loopback: what is asked, read, cached, late and missing."""

import asyncio
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
from endpoint import serving
from strategies import trajectory

from agentrl.engines.openai import OpenAIPolicy
from agentrl.errors import ConfigError, Unjudged
from agentrl.rewards import Reward
from agentrl.rewards.compose import Scaled, Sum
from agentrl.rewards.judged import Judged
from agentrl.rewards.outcome import EnvReward
from agentrl.rewards.payment import Payment
from agentrl.rewards.rubrics import Checklist, Pairwise, Pointwise, pairs, transcript
from agentrl.sources import Rollouts
from agentrl.types import Action, Message, Observation, floats

POLITE = Pointwise("Was it polite?")


def answer(text: str) -> tuple[int, dict]:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


def judged(address: str, rubric=POLITE, **options) -> Judged:
    return Judged(lambda: OpenAIPolicy(address, "judge", retries=0), rubric, **options)


def episode(*texts: str, sample: int = 0):
    record = trajectory(
        [1] * len(texts), observations=[f"room {n}" for n in range(len(texts))], sample=sample
    )
    return replace(
        record,
        turns=tuple(
            replace(turn, action=Action(text)) for turn, text in zip(record.turns, texts, strict=True)
        ),
    )


def ask(reward, *groups):
    return asyncio.run(reward.ask(groups))


# Rubrics.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SCORE: 7", 0.7),
        ("I would say score: 3 at first.\nSCORE: **8.5**", 0.85),
        ("SCORE: 11", None),
        ("SCORE: -1", None),
        ("seven of ten", None),
    ],
)
def test_a_score_is_read_or_it_is_none(text, expected):
    assert POLITE.read(text) == expected


def test_a_checklist_needs_every_answer():
    items = Checklist(("a", "b", "c"))
    assert items.read("1. Yes\n2) no, never\n**3.** YES") == pytest.approx(2 / 3)
    assert items.read("1. yes\n2. yes") is None
    assert "2. b" in items.question(["x"])


def test_a_verdict_is_the_last_one():
    assert [
        Pairwise("?").read(text) for text in ("VERDICT: A", "verdict: a ... VERDICT: B", "VERDICT: TIE", "A")
    ] == [1.0, 0.0, 0.5, None]


def test_rubrics_that_make_no_sense_are_refused():
    for make in (
        lambda: Pointwise("x", low=1, high=1),
        lambda: Pointwise("x", scope="pair"),
        lambda: Checklist(()),
    ):
        with pytest.raises(ConfigError):
            make()


def test_a_transcript_shows_who_said_what_and_what_was_left_out():
    record = replace(episode("open box", "wait"), final=Observation((Message("user", "the end"),)))
    text = transcript(record)
    assert (
        text.index("room 0")
        < text.index("<agent>\nopen box\n</agent>")
        < text.index("room 1")
        < text.index("the end")
    )
    assert "wait" not in transcript(record, until=0)
    cut = transcript(episode("x" * 1000), max_chars=100)
    assert "characters left out" in cut
    assert len(cut) < 150


def test_pairs_are_asked_once_and_not_by_place():
    group = (episode("b"), episode("a"), episode("c"))
    assert len(pairs(group)) == 3
    there = {
        frozenset((transcript(group[i]), transcript(group[j]))): transcript(group[i]) for i, j in pairs(group)
    }
    back = tuple(reversed(group))
    assert {
        frozenset((transcript(back[i]), transcript(back[j]))): transcript(back[i]) for i, j in pairs(back)
    } == there


# The reward.


def test_an_episode_is_paid_what_the_judge_says_on_its_last_turn(tmp_path):
    record = episode("please open", "thanks")
    with serving(answer("kind\nSCORE: 9")) as (address, received):
        reward = judged(address, cache=tmp_path / "answers.jsonl")
        counts = ask(reward, (record,))
        assert reward(record)["judge"].tolist() == pytest.approx([0.0, 0.9])
        assert counts == {
            "judge/asked": 1,
            "judge/cached": 0,
            "judge/failed": 0,
            "judge/late": 0,
            "judge/over_budget": 0,
        }
        assert "please open" in received[0]["messages"][0]["content"]
        again = judged(address, cache=tmp_path / "answers.jsonl")
        assert ask(again, (record,))["judge/cached"] == 1
        assert again(record)["judge"].tolist() == pytest.approx([0.0, 0.9])
        assert len(received) == 1


def test_every_turn_may_be_judged():
    record = episode("one", "two")
    with serving(answer("SCORE: 10"), answer("SCORE: 5")) as (address, _):
        reward = judged(address, replace(POLITE, scope="turn"), concurrency=1)
        ask(reward, (record,))
        assert reward(record)["judge"].tolist() == [1.0, 0.5]


def test_pairs_pay_the_share_of_wins():
    group = tuple(episode(text) for text in ("a", "b", "c"))
    with serving(answer("VERDICT: A")) as (address, received):
        reward = judged(address, Pairwise("Which comes first?"))
        ask(reward, group)
        assert [reward(one)["judge"].tolist() for one in group] == [[1.0], [0.5], [0.0]]
        assert len(received) == 3


def test_an_unreadable_answer_is_asked_for_again_and_then_counted_never_paid():
    record = episode("hello")
    with serving(answer("nice"), answer("SCORE: 4")) as (address, received):
        reward = judged(address)
        ask(reward, (record,))
        assert reward(record)["judge"].tolist() == pytest.approx([0.4])
        assert len(received) == 2
    with serving(answer("nice")) as (address, _):
        reward = judged(address)
        assert ask(reward, (record,))["judge/failed"] == 1
        with pytest.raises(Unjudged, match="no answer about task#0"):
            reward(record)


def test_a_late_judge_is_counted():
    class Slow:
        async def __aenter__(self):
            return self

        async def __aexit__(self, *_):
            return None

        async def act(self, turns, observation, *, seed):
            await asyncio.sleep(60)

    assert ask(Judged(Slow, POLITE, deadline_s=0.05, attempts=1), (episode("hello"),))["judge/late"] == 1


def test_a_budget_ends_the_questions():
    group = tuple(episode(text) for text in "abc")
    with serving(answer("SCORE: 1")) as (address, received):
        reward = judged(address, budget=2)
        assert ask(reward, group)["judge/over_budget"] == 1
        assert len(received) == 2
        assert ask(reward, group)["judge/over_budget"] == 1
        assert len(received) == 2


def test_a_judge_that_refuses_the_key_stops_the_run():
    with serving((401, {"error": "no"})) as (address, _), pytest.raises(ConfigError, match="refuses the key"):
        ask(judged(address), (episode("a"), episode("b")))


def test_a_torn_cache_loses_one_answer(tmp_path):
    cache = tmp_path / "answers.jsonl"
    with serving(answer("SCORE: 3")) as (address, received):
        ask(judged(address, cache=cache), (episode("a"), episode("b")))
        cache.write_text(cache.read_text()[:-9])
        reward = judged(address, cache=cache)
        assert ask(reward, (episode("a"), episode("b")))["judge/cached"] == 1
        assert len(received) == 3
        assert len([json.loads(line) for line in cache.read_text().splitlines() if line.endswith("}")]) == 2
        assert ask(judged(address, cache=cache), (episode("a"), episode("b")))["judge/cached"] == 2


def test_composed_rewards_ask_for_their_parts():
    with serving(answer("SCORE: 5")) as (address, _):
        reward = Sum((EnvReward(), Scaled(judged(address), 2.0)))
        ask(reward, (episode("a"),))
        assert reward(episode("a"))["judge"].tolist() == [1.0]
        assert ask(Sum((EnvReward(),)), (episode("a"),)) == {}


def test_unjudged_episodes_leave_their_group_and_are_counted():
    with serving(answer("SCORE: 5"), answer("?")) as (address, _):
        payment = Payment(reward=judged(address, attempts=1, concurrency=1))
        kept, counts = asyncio.run(payment.judge([(episode("a"), episode("b"))]))
        assert [len(group) for group in kept] == [1]
        assert counts["judge/unjudged"] == 1
        (scored,) = payment.score(kept)
        np.testing.assert_allclose(scored[0].ledger["judge"], [0.5])


def test_an_episode_that_a_reward_cannot_pay_is_left_out_and_counted():
    class Fastidious(Reward):
        signals = frozenset()
        components = frozenset({"taste"})

        def __call__(self, trajectory):
            if trajectory.sample:
                raise Unjudged("not to my taste")
            return {"taste": floats(np.ones(len(trajectory.turns)))}

    group = (episode("a"), episode("b", sample=1))
    kept, counts = asyncio.run(Payment(reward=Fastidious()).judge([group]))
    assert kept == [(group[0],)]
    assert counts == {"judge/unjudged": 1}
    assert asyncio.run(Payment(reward=Fastidious()).judge([group[:1]])) == ([group[:1]], {})


def test_a_run_is_paid_by_a_judge(tmp_path):
    with serving(answer("SCORE: 6")) as (address, received):
        reward = Sum((EnvReward(), judged(address, cache=tmp_path / "answers.jsonl")))
        stage = replace(
            tiny.LEARN, evaluate=False, updates=2, reward=reward, source=Rollouts(num_groups=2, group_size=2)
        )
        tiny.run(tiny.only(stage), tmp_path / "run")
        assert tiny.numbers(tmp_path / "run", "reward/judge") == pytest.approx([0.6, 0.6])
        assert sum(tiny.numbers(tmp_path / "run", "judge/asked")) == len(received) > 0
