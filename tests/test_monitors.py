from dataclasses import replace

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from agentrl.credit.modifiers import ScaleAdvantages
from agentrl.errors import Collapsed, ConfigError
from agentrl.records.metrics import read_metrics
from agentrl.records.monitors import Fallen, Limit, ProxyRises, default_monitors
from agentrl.sources import Rollouts


def records(**columns: list[float]) -> list[dict[str, float]]:
    names = {name: name.replace("__", "/") for name in columns}
    return [
        {names[name]: value for name, value in zip(columns, row, strict=True)}
        for row in zip(*columns.values(), strict=True)
    ]


def test_a_limit_sounds_when_it_was_passed_long_enough():
    low = Limit("entropy", "e", "below", 0.1, updates=3)
    assert low(records(e=[0.05, 0.05])) == ""
    assert low(records(e=[0.05, 0.2, 0.05, 0.05])) == ""
    assert "below 0.1 for 3 updates (now 0.03)" in low(records(e=[0.5, 0.05, 0.04, 0.03]))
    assert "above" in Limit("x", "e", "above", 0.1, updates=1)(records(e=[0.2]))


def test_what_was_not_measured_is_not_judged():
    assert Limit("x", "absent", "below", 1.0, updates=1)(records(e=[0.0])) == ""
    assert [monitor([{"update": 0.0}] * 50) for monitor in default_monitors()] == [""] * len(
        default_monitors()
    )


def test_a_fall_is_from_a_height():
    fallen = Fallen("s", "s", updates=4)
    assert fallen(records(s=[0.9] * 4 + [0.1] * 3)) == ""
    assert "fell from 0.9 to 0.1" in fallen(records(s=[0.9] * 4 + [0.1] * 4))
    assert fallen(records(s=[0.05] * 4 + [0.0] * 4)) == ""
    assert fallen(records(s=[0.5] * 4 + [0.4] * 4)) == ""


def test_a_proxy_that_rises_while_the_outcome_falls_is_called_a_game():
    rising, falling = list(np.linspace(0.0, 1.0, 20)), list(np.linspace(0.8, 0.2, 20))
    assert "rose by 0.526 while rollout/success fell by 0.316" in ProxyRises()(
        records(reward__return=rising, rollout__success=falling)
    )
    for paid, wanted in ((rising, rising), (falling, falling), (falling, rising), ([0.5] * 20, falling)):
        assert ProxyRises()(records(reward__return=paid, rollout__success=wanted)) == ""


@given(st.integers(0, 10_000))
def test_noise_is_no_game(seed):
    noise = np.random.default_rng(seed)
    paid, wanted = noise.normal(0.5, 0.1, 20), noise.normal(0.5, 0.1, 20)
    assert ProxyRises(margin=6.0)(records(reward__return=list(paid), rollout__success=list(wanted))) == ""


def test_a_monitor_needs_an_update_to_look_at():
    with pytest.raises(ConfigError, match="at least 1"):
        Limit("x", "x", "below", 0.0, updates=0)


FLAT = replace(tiny.LEARN, evaluate=False, updates=6, modifiers=(ScaleAdvantages(0.0),))
ALARM = Limit("short", "rollout/episodes", "below", 100, updates=2, means="for the test")


def test_a_warning_is_said_once_and_counted_while_it_holds(tmp_path):
    said = tiny.run(tiny.only(FLAT, monitors=(ALARM,)), tmp_path)
    assert said.count("for the test") == 1
    assert "update 2: rollout/episodes was below 100 for 2 updates" in said
    assert [line.get("monitor/short", 0.0) for line in read_metrics(tmp_path / "metrics.jsonl")] == [
        0,
        1,
        1,
        1,
        1,
        1,
    ]


def test_a_run_that_is_stopped_keeps_what_it_did_and_does_not_go_on(tmp_path):
    recipe = tiny.only(FLAT, monitors=(replace(ALARM, stop=True),))
    for _ in range(2):  # going on is stopped again, after one more update
        with pytest.raises(Collapsed, match="for the test"):
            tiny.run(recipe, tmp_path)
        assert len(read_metrics(tmp_path / "metrics.jsonl")) >= 2
    assert (tmp_path / "checkpoints" / "000002").is_dir()


def test_saying_one_thing_again_and_again_is_measured(tmp_path):
    tiny.run(tiny.only(replace(FLAT, source=Rollouts(num_groups=2, group_size=2))), tmp_path)
    for line, group in zip(read_metrics(tmp_path / "metrics.jsonl"), range(6), strict=True):
        episodes = [one.trajectory for one in tiny.stored(tmp_path) if one.update == group]
        texts = [[turn.action.text for turn in episode.turns] for episode in episodes]
        again = [text in said[:n] for said in texts for n, text in enumerate(said) if n]
        assert line["rollout/repetition"] == pytest.approx(np.mean(again))
        logprobs = np.concatenate([turn.action.logprobs for episode in episodes for turn in episode.turns])
        assert line["rollout/entropy"] == pytest.approx(-logprobs.mean(), rel=1e-5)
