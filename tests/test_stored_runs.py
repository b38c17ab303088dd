"""A law of the store: what any version of agentrl wrote, this one reads, scores again and resumes.

``stored_runs/vN`` is the folder of a run that version N of the run folder wrote and that was stopped after
four of six updates; ``stored_runs/vN.jsonl`` holds the metrics of the whole run. A new version adds a folder;
none ever changes.
"""

import asyncio
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from agentrl.credit.constant import ConstantCredit
from agentrl.errors import CheckpointError
from agentrl.evaluation.report import Report
from agentrl.recipe.load import load
from agentrl.records import folder as run_folder
from agentrl.records import store
from agentrl.records.metrics import read_metrics
from agentrl.rescore import Chain, credit_difference, ledger_differences, rescore
from agentrl.train import train
from agentrl.types import NEEDS, End

STORED = Path(__file__).parent / "stored_runs"
VERSIONS = sorted(path for path in STORED.glob("v*") if path.is_dir())
RECIPE = STORED / "recorded.py"


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def stored(request, tmp_path) -> Path:
    """Return a copy of a stored run: opening one changes its folder."""
    return Path(shutil.copytree(request.param, tmp_path / request.param.name))


def test_every_version_that_is_written_has_a_stored_run() -> None:
    assert [path.name for path in VERSIONS] == [f"v{number}" for number in range(1, run_folder.FORMAT + 1)]


def test_trajectories_are_read(stored) -> None:
    found = list(store.iter_trajectories(stored))
    assert [one.update for one in found] == [0] * 4 + [1] * 4 + [2] * 16 + [3] * 16
    assert {one.trajectory.end for one in found} == {End.TERMINATED}
    assert all(one.credited.advantages_T.shape == (one.trajectory.num_tokens,) for one in found)
    learned = found[-1].scored.measured
    assert {need for need in NEEDS if learned.get(need) is not None} == {
        "entropies",
        "old_logprobs",
        "ref_logprobs",
    }
    assert {"env", "format", "implicit", "outcome"} == set(found[-1].scored.ledger)
    demonstrations = store.read_trajectories(stored / "demonstrations" / "imitate.parquet")
    assert [one.trajectory.success for one in demonstrations] == [True] * 4


def test_reports_and_metrics_are_read(stored) -> None:
    assert Report.read(stored / "evaluations" / "random.json").num_episodes == 4
    assert len(read_metrics(stored / "metrics.jsonl")) == 4


def test_the_chain_of_the_recipe_gives_the_stored_numbers_again(stored) -> None:
    stage = load(RECIPE).stages[0]
    chain = Chain(
        reward=stage.reward, transforms=stage.transforms, credit=stage.credit, modifiers=stage.modifiers
    )
    found = list(rescore([one for one in store.iter_trajectories(stored) if one.stage == stage.name], chain))
    assert all(row.changed == 0.0 for row in ledger_differences(found))
    assert credit_difference(found).largest == 0.0


def test_reward_and_transforms_with_a_memory_give_the_stored_ledgers_again(stored) -> None:
    stage = load(RECIPE).stages[1]
    # the credit reads the scorer's component, which only the scorer can make again
    chain = Chain(reward=stage.reward, transforms=stage.transforms, credit=ConstantCredit(1.0))
    found = list(rescore([one for one in store.iter_trajectories(stored) if one.stage == stage.name], chain))
    changed = {row.component: row.changed for row in ledger_differences(found)}
    assert {name: changed[name] for name in ("env", "format", "outcome")} == dict.fromkeys(
        ("env", "format", "outcome"), 0.0
    )
    assert sum(len(group) for update in found for group in update.groups) == 32


def test_a_run_resumes_to_the_numbers_of_the_run_that_was_not_stopped(stored) -> None:
    asyncio.run(train(load(RECIPE), stored))
    wanted = read_metrics(STORED / f"{stored.name}.jsonl")
    found = read_metrics(stored / "metrics.jsonl")
    assert [list(record) for record in found] == [list(record) for record in wanted]
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine.pop("update"), mine.pop("stage")) == (theirs.pop("update"), theirs.pop("stage"))
        # another processor rounds otherwise; one token that is sampled otherwise would be far outside
        np.testing.assert_allclose(list(mine.values()), list(theirs.values()), rtol=1e-3, atol=1e-4)


def test_a_description_of_a_later_version_is_refused(stored) -> None:
    recorded = stored / "recipe.json"
    later = run_folder.FORMAT + 1
    recorded.write_text(json.dumps({**json.loads(recorded.read_text()), "format": later}))
    with pytest.raises(
        CheckpointError, match=f"has format {later}, and this agentrl reads formats 1 to {later - 1}"
    ):
        asyncio.run(train(load(RECIPE), stored))


def test_a_changed_recipe_is_refused_with_what_changed(stored) -> None:
    with pytest.raises(CheckpointError, match=r"stages\.learn\.optimisation\.lr: 0\.001 -> 0\.01"):
        asyncio.run(train(load(RECIPE, ["stages.learn.optimisation.lr=0.01"]), stored))
