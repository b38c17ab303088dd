import dataclasses
import sys
from pathlib import Path

import broken
import pytest
from sound import IMITATE, LEARN, SOUND

from agentrl.credit.constant import ConstantCredit
from agentrl.credit.gae import TokenGAE
from agentrl.errors import CheckpointError, ConfigError
from agentrl.losses.clip import Clip
from agentrl.losses.groups import DisCO
from agentrl.losses.objective import Objective
from agentrl.losses.tis import TokenTIS
from agentrl.policy import Sampling
from agentrl.recipe import Evaluation, Recipe, check_panels
from agentrl.recipe.check import check
from agentrl.recipe.load import load, read
from agentrl.rewards.compose import FunctionTransform
from agentrl.rewards.outcome import Process
from agentrl.rollout import Limits
from agentrl.samplers.filters import DynamicSampling
from agentrl.sources import Rollouts


def learning(**changes) -> Recipe:
    return dataclasses.replace(SOUND, stages=(IMITATE, dataclasses.replace(LEARN, **changes)))


def test_a_sound_recipe_passes_and_knows_its_stages():
    check(SOUND)
    assert SOUND.updates == 5
    assert [SOUND.stage_at(update)[0].name for update in range(5)] == ["imitate"] * 3 + ["learn"] * 2
    assert SOUND.stage_at(3) == (LEARN, 0)
    with pytest.raises(IndexError):
        SOUND.stage_at(5)
    assert learning(credit=TokenGAE()).stages[1].needs >= {"values"}


STALE = Rollouts(num_groups=2, group_size=2, max_staleness=1)
PROBLEMS = {
    "greedy training": (
        dataclasses.replace(SOUND, sampling=Sampling(temperature=0.0)),
        "sampling.temperature is 0",
    ),
    "a filter on nothing": (
        learning(filters=(DynamicSampling("outcom"),)),
        "looks at the reward component outcom",
    ),
    "truncated sampling in groups of one": (
        dataclasses.replace(
            learning(source=Rollouts(num_groups=2, group_size=1), credit=TokenGAE()),
            sampling=Sampling(top_p=0.9),
        ),
        "truncates what is sampled",
    ),
    "nobody plays": (dataclasses.replace(SOUND, limits=Limits(concurrency=0)), "limits.concurrency is 0"),
    "nothing is drawn": (learning(source=Rollouts(num_groups=0, group_size=2)), "source.num_groups is 0"),
    "no token": (dataclasses.replace(SOUND, sampling=Sampling(max_tokens=0)), "sampling.max_tokens is 0"),
    "no stage": (dataclasses.replace(SOUND, stages=()), "stages is empty"),
    "one name twice": (dataclasses.replace(SOUND, stages=(LEARN, LEARN)), "stage names repeat: learn, learn"),
    "no worker": (dataclasses.replace(SOUND, num_workers=0), "num_workers is 0"),
    "no update": (learning(updates=0), "stage 'learn': updates is 0"),
    "no epoch": (learning(epochs=0), "epochs is 0"),
    "a loss over groups of one": (
        learning(
            source=Rollouts(group_size=1), credit=ConstantCredit(1.0), objective=Objective(loss=DisCO())
        ),
        "the objective compares the episodes of a group, and group_size is 1",
    ),
    "a group of one": (
        learning(source=Rollouts(group_size=1)),
        "GRPO compares the episodes of a group and needs at least 2",
    ),
    "an unknown signal": (
        learning(reward=Process("glory")),
        "Process reads signals that the environment does not report: glory; it reports payout",
    ),
    "an unknown split": (
        dataclasses.replace(SOUND, evaluation=Evaluation(split="dev")),
        "split 'dev' does not exist",
    ),
    "truncated sampling": (
        dataclasses.replace(SOUND, sampling=Sampling(top_p=0.9)),
        "top_p or top_k truncates",
    ),
    "stale episodes": (learning(source=STALE), "off_policy weights"),
    "a wrong type": (dataclasses.replace(SOUND, seed="1"), "seed must be int; found '1'"),
}


@pytest.mark.parametrize(("recipe", "message"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_what_cannot_run_as_meant_is_refused(recipe, message):
    with pytest.raises(ConfigError) as caught:
        check(recipe)
    assert message in str(caught.value)
    assert str(caught.value).startswith("recipe 'sound' cannot run:\n  - ")


def test_an_environment_that_forgets_its_turns_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"env\.max_turns is 0"):
        check(dataclasses.replace(learning(), env=broken.ForgottenTurns()))


def test_every_mistake_is_listed_at_once():
    recipe = dataclasses.replace(learning(updates=0, epochs=0), num_workers=0)
    with pytest.raises(ConfigError) as caught:
        check(recipe)
    assert str(caught.value).count("\n  - ") == 3


def test_off_policy_weights_make_stale_episodes_allowed():
    check(learning(source=STALE, objective=Objective(loss=Clip(), off_policy=TokenTIS())))


def test_tasks_that_are_not_the_recipes_are_refused():
    found = check_panels(SOUND)
    assert set(found) == {"train", "test"}
    check_panels(dataclasses.replace(SOUND, panels={"test": found["test"]}))
    with pytest.raises(ConfigError, match="split 'train' are not those of the recipe"):
        check_panels(dataclasses.replace(SOUND, panels={"train": found["test"]}))


FILE = "from sound import SOUND\n\nrecipe = SOUND\n"


def test_a_file_is_read_with_overrides_and_kept_in_a_folder_that_stands_for_it(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    recipe, origin = read(path, ["seed=3"])
    assert recipe == load(path, ["seed=3"])
    assert (recipe.seed, recipe.env) == (3, SOUND.env)
    folder = tmp_path / "run"
    origin.keep(folder)
    path.unlink()
    assert read(folder) == (recipe, origin)
    assert load(folder, ["seed=4"]).seed == 4
    (folder / "overrides.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"overrides.json is damaged"):
        read(folder)


def kept_by_a_run(folder, text):
    """Make a run folder whose recipe file is ``text``."""
    folder.mkdir()
    (folder / "recipe.py").write_text(text)
    (folder / "overrides.json").write_text('{"recipe": "mine.py", "overrides": []}')
    return folder


def test_a_run_folder_with_names_of_another_version_is_refused_in_one_sentence(tmp_path):
    stored = Path(__file__).parent / "stored_runs" / "v1" / "recipe.py"
    gone = "from agentrl.credit.constant import NoSuchCredit\n"
    for number, text in enumerate((stored.read_text(), gone)):
        folder = kept_by_a_run(tmp_path / str(number), text)
        with pytest.raises(CheckpointError) as caught:
            read(folder)
        message = str(caught.value)
        assert message.startswith(f"the run folder {folder} was written by another version of agentrl")
        assert message.endswith(f"with --out {folder}, or use this version's names in {folder / 'recipe.py'}")
        assert "\n" not in message


def test_other_imports_that_fail_are_mistakes_of_the_recipe(tmp_path):
    folder = kept_by_a_run(tmp_path / "run", "import no_such_package\n")
    gone = tmp_path / "mine.py"
    gone.write_text("import agentrl.no_such_module\n")
    for path in (folder, gone):
        with pytest.raises(
            ConfigError, match=r"does not load, line 1: ModuleNotFoundError: No module"
        ) as caught:
            read(path)
        assert not isinstance(caught.value, CheckpointError)


def test_modules_beside_a_recipe_are_imported_anew_and_kept_with_it(tmp_path):
    (tmp_path / "mine").mkdir()
    path, shared = tmp_path / "mine" / "mine.py", tmp_path / "mine" / "shared_parts.py"
    path.write_text(
        FILE
        + "import dataclasses\nimport shared_parts\n"
        + "recipe = dataclasses.replace(SOUND, seed=shared_parts.SEED)\n"
    )
    (tmp_path / "mine" / "other.py").write_text("raise RuntimeError\n")
    shared.write_text("SEED = 5\n")
    recipe, origin = read(path)
    assert recipe.seed == 5
    assert origin.modules == {"shared_parts": "SEED = 5\n"}
    assert "shared_parts" not in sys.modules
    assert str(tmp_path / "mine") not in sys.path
    origin.keep(tmp_path / "run")
    shared.write_text("SEED = 66\n")
    assert load(path).seed == 66
    assert read(tmp_path / "run") == (recipe, origin)


def test_classes_of_a_recipe_file_have_one_name_wherever_it_lies(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        FILE
        + "\nclass Own(type(SOUND.env)):\n    pass\n\n"
        + "import dataclasses\nrecipe = dataclasses.replace(SOUND, env=Own())\n"
    )
    recipe, origin = read(path)
    origin.keep(tmp_path / "run")
    assert type(recipe.env).__module__ == type(load(tmp_path / "run").env).__module__ == "agentrl_recipe_mine"


def test_a_part_that_lacks_what_its_contract_declares_is_refused_by_name() -> None:
    def halve(trajectory, ledger):
        return {name: paid / 2 for name, paid in ledger.items()}

    with pytest.raises(
        ConfigError, match=r"transform halve lacks gauge, .*; let it inherit from agentrl\.rewards\.Transform"
    ):
        check(learning(transforms=(halve,)))
    check(learning(transforms=(FunctionTransform(halve),)))
