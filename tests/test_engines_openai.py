import asyncio

import pytest
from endpoint import serving
from typer.testing import CliRunner

from agentrl.cli import app
from agentrl.engines import openai
from agentrl.engines.openai import OpenAIPolicy
from agentrl.errors import ConfigError, ContextFull, EngineError
from agentrl.evaluation.report import Report
from agentrl.policy import Sampling
from agentrl.types import Action, Message, Observation, Turn

SAID = {"choices": [{"message": {"role": "assistant", "content": " go north \n"}, "finish_reason": "stop"}]}


def ask(address: str, turns=(), observation=None, **options) -> Action:
    async def once() -> Action:
        async with OpenAIPolicy(address, "tiny", **options) as policy:
            return await policy.act(turns, observation or Observation.text("a door"), seed=2**40 + 3)

    return asyncio.run(once())


def test_turns_become_a_conversation(monkeypatch):
    monkeypatch.setenv("A_KEY", "secret")
    turns = [Turn(Observation.text("a room"), Action("open box"))]
    with serving((200, SAID)) as (address, received):
        action = ask(
            address,
            turns,
            api_key_env="A_KEY",
            sampling=Sampling(temperature=0.5, top_k=7, max_tokens=9),
            system="play well",
        )
    assert action == Action("go north")
    (request,) = received
    assert request["messages"] == [
        {"role": "system", "content": "play well"},
        {"role": "user", "content": "a room"},
        {"role": "assistant", "content": "open box"},
        {"role": "user", "content": "a door"},
    ]
    assert (request["path"], request["key"], request["model"]) == (
        "/v1/chat/completions",
        "Bearer secret",
        "tiny",
    )
    assert (request["temperature"], request["top_k"], request["max_tokens"], request["seed"]) == (
        0.5,
        7,
        9,
        3,
    )


def test_images_are_sent_as_data_addresses():
    with serving((200, SAID)) as (address, received):
        ask(address, observation=Observation((Message("user", "look", (b"\x89PNG",)),)))
    text, image = received[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "look"}
    assert image["image_url"]["url"] == "data:image/png;base64,iVBORw=="


def test_an_answer_cut_by_the_token_limit_is_clipped():
    with serving((200, {"choices": [{"message": {"content": "go nor"}, "finish_reason": "length"}]})) as (
        address,
        _,
    ):
        assert ask(address).clipped


def test_a_busy_or_broken_server_is_asked_again():
    with serving((429, "slow down"), (503, "starting"), (200, SAID)) as (address, received):
        assert ask(address).text == "go north"
    assert len(received) == 3


def test_a_server_that_stays_broken_is_an_error_that_says_so():
    with (
        serving((500, "boom")) as (address, received),
        pytest.raises(EngineError, match=r"no answer in 3 attempts.*500.*boom"),
    ):
        ask(address, retries=2)
    assert len(received) == 3


def test_a_server_that_is_not_there_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(openai, "FIRST_PAUSE_S", 0.001)
    with serving((200, SAID)) as (address, _):
        pass
    with pytest.raises(EngineError, match=r"2 attempts.*ConnectError"):
        ask(address, retries=1)


@pytest.mark.parametrize(
    ("status", "answer", "error", "message"),
    [
        (401, "who are you", ConfigError, "environment variable OPENAI_API_KEY"),
        (404, "no such model", ConfigError, "'tiny'.*Check model and base_url"),
        (400, "maximum context length is 512 tokens", ContextFull, "no room"),
        (400, "bad temperature", EngineError, "refuses the request.*bad temperature"),
        (200, {"choices": []}, EngineError, "without choices"),
        (200, "<html>", EngineError, "not JSON"),
    ],
)
def test_what_cannot_be_mended_by_asking_again_is_not_asked_again(status, answer, error, message):
    with serving((status, answer)) as (address, received), pytest.raises(error, match=message):
        ask(address)
    assert len(received) == 1


def test_an_address_without_a_scheme_is_refused_at_once():
    with pytest.raises(ConfigError, match="must begin with http"):
        OpenAIPolicy("localhost:8000", "tiny")


def test_a_served_model_is_evaluated_from_the_command_line(tmp_path):
    said = {"choices": [{"message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}]}
    with serving((200, said)) as (address, received):
        command = [
            "eval",
            "bandit",
            "--policy",
            f"openai:tiny@{address}",
            "--tasks",
            "3",
            "--out",
            str(tmp_path / "report.json"),
        ]
        result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert {request["model"] for request in received} == {"tiny"}
    assert all(request["messages"][-1]["role"] == "user" for request in received)
    assert Report.read(tmp_path / "report.json").num_episodes == 3
