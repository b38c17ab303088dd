import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
from typer.testing import CliRunner

from agentrl.cli import app
from agentrl.credit.gae import TurnGAE
from agentrl.credit.group import GRPO
from agentrl.credit.modifiers import ScaleAdvantages
from agentrl.credit.returns import TurnReturn
from agentrl.errors import ConfigError
from agentrl.recipe import Origin
from agentrl.records.store import read_trajectories
from agentrl.rescore import Chain, credit_difference, ledger_differences, rescore
from agentrl.rewards.compose import Scaled
from agentrl.rewards.outcome import EnvReward, Outcome

FILE = """
import tiny
from agentrl.recipe import Recipe

recipe = tiny.recipe
"""


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "tiny"
    tiny.run(tiny.only(replace(tiny.LEARN, evaluate=False)), folder)
    return [one for one in tiny.stored(folder) if one.stage == "learn"]


def own(**changes) -> Chain:
    stage = tiny.LEARN
    return Chain(**{"reward": stage.reward, "credit": stage.credit, "modifiers": stage.modifiers, **changes})


def test_a_runs_own_chain_gives_its_own_numbers(stored):
    found = list(rescore(stored, own()))
    assert [one.update for one in found] == [0, 1, 2, 3]
    for update in found:
        for before, after in zip(update.before, update.credited, strict=True):
            for one, credit in zip(before, after, strict=True):
                np.testing.assert_array_equal(one.credited.advantages_T, credit.advantages_T)
    assert all(row.changed == 0.0 and row.before == row.after for row in ledger_differences(found))
    difference = credit_difference(found)
    assert (difference.correlation, difference.flipped, difference.largest) == (pytest.approx(1.0), 0.0, 0.0)


def test_another_reward_is_held_against_the_old_one(stored):
    found = list(rescore(stored, own(reward=Scaled(EnvReward(), 2.0))))
    for row in ledger_differences(found):
        assert row.after == pytest.approx(2 * row.before)
    found = list(rescore(stored, own(reward=Outcome())))
    rows = {row.component: row for row in ledger_differences(found)}
    assert set(rows) == {"env", "outcome", "total"}
    assert rows["env"].after == rows["outcome"].before == 0.0


def test_flipped_credit_flips_every_sign(stored):
    found = list(rescore(stored, own(modifiers=(*tiny.LEARN.modifiers, ScaleAdvantages(-1.0)))))
    assert credit_difference(found).correlation == pytest.approx(-1.0)
    assert credit_difference(found).flipped == 1.0


def test_credit_that_does_not_vary_has_no_correlation(stored):
    assert math.isnan(
        credit_difference(list(rescore(stored, own(modifiers=(ScaleAdvantages(0.0),))))).correlation
    )


def test_a_measurement_that_was_not_stored_is_named(stored):
    with pytest.raises(ConfigError, match="TurnGAE needs values, which this run did not store"):
        list(rescore(stored, own(credit=TurnGAE(), modifiers=())))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("whole") / "run"
    import asyncio
    import io

    from agentrl.commands.reporter import ConsoleReporter
    from agentrl.train import train

    with ConsoleReporter(io.StringIO()) as reporter:
        asyncio.run(train(tiny.recipe, where, reporter, Origin(name="tiny_file.py", source=FILE)))
    return where


def said(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["rescore", *arguments])
    return done.exit_code, done.output


def test_the_command_shows_what_differs_and_writes_it(folder, tmp_path):
    code, text = said(str(folder))
    assert code == 0
    assert "stage 'warm'" in text
    assert "stage 'learn'" in text
    assert "largest difference 0" in text
    code, text = said(
        str(folder),
        "--stage",
        "learn",
        "--reward",
        "agentrl.rewards.outcome:Outcome",
        "--credit",
        "agentrl.credit.group:GRPO",
        "--out",
        str(tmp_path),
    )
    assert code == 0
    assert "stage 'warm'" not in text
    assert "outcome" in text
    written = [one for path in sorted(tmp_path.rglob("*.parquet")) for one in read_trajectories(path)]
    assert written
    groups = list(rescore(tiny.stored(folder), Chain(reward=Outcome(), credit=GRPO())))
    expected = [
        credit for one in groups if one.stage == "learn" for group in one.credited for credit in group
    ]
    for one, credit in zip(written, expected, strict=True):
        np.testing.assert_array_equal(one.credited.advantages_T, credit.advantages_T)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "rl"], "no stage 'rl'; it has warm, learn"),
        (["--reward", "Outcome"], "module:attribute"),
        (["--reward", "agentrl.rewards.outcome:Outcom"], "Outcom"),
    ],
)
def test_mistakes_are_one_message(folder, arguments, message):
    code, text = said(str(folder), *arguments)
    assert code == 2
    assert message in text
    assert "Traceback" not in text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    code, text = said(str(tmp_path))
    assert code == 2
    assert "no run folder" in text


def test_turn_returns_can_be_tried_on_any_run(stored):
    found = list(rescore(stored, own(credit=TurnReturn(gamma=0.5))))
    assert 0.0 < credit_difference(found).correlation < 1.0
