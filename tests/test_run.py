import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import tiny
from agentrl_sandboxes.local import Local
from corridor import Corridor

from agentrl.errors import CheckpointError, ConfigError
from agentrl.evaluation.report import Report
from agentrl.learner import Compute
from agentrl.learner.model import load_tokenizer
from agentrl.policy import RandomPolicy
from agentrl.recipe import Checkpoints
from agentrl.records.manifest import read_manifest
from agentrl.rollout import Limits
from agentrl.types import Observation, SandboxSpec, Step, Task


def test_a_run_folder_holds_what_its_page_says(tmp_path):
    tiny.run(tiny.recipe, tmp_path)
    found = {
        path.relative_to(tmp_path).as_posix()
        for path in tmp_path.rglob("*")
        if path.is_file() and "checkpoints" not in path.parts
    }
    assert found == {
        *("recipe.json", "manifest.json", "metrics.jsonl", "timing.jsonl", "lock"),
        *("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "demonstrations/warm.parquet"),
        *(f"trajectories/update={update:06d}/part-0.parquet" for update in range(7)),
        *(
            f"evaluations/{name}.{kind}"
            for name in ("random", "warm-3", "learn-4")
            for kind in ("json", "parquet")
        ),
    }
    manifest = read_manifest(tmp_path / "manifest.json")
    assert (manifest["seed"], manifest["threads"], sorted(manifest["panels"])) == (0, 1, ["test", "train"])
    assert json.loads((tmp_path / "recipe.json").read_text())["name"] == "tiny"


@pytest.mark.parametrize(
    ("checkpoints", "kept"),
    [
        (Checkpoints(every=1, keep=2), ["000006", "000007"]),
        (Checkpoints(every=2, keep=9), ["000002", "000003", "000004", "000006", "000007"]),
        (Checkpoints(every=100, keep=9), ["000003", "000007"]),
        (Checkpoints(every=100, keep=1), ["000007"]),
    ],
)
def test_checkpoints_come_as_often_as_asked_for_and_at_the_end_of_each_stage(checkpoints, kept, tmp_path):
    tiny.run(replace(tiny.recipe, checkpoints=checkpoints), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == kept


@pytest.mark.parametrize("checkpoints", [Checkpoints(every=0), Checkpoints(keep=0)])
def test_checkpoints_that_make_no_sense_are_refused(checkpoints, tmp_path):
    with pytest.raises(ConfigError, match=r"checkpoints.*at least 1 is needed"):
        tiny.run(replace(tiny.recipe, checkpoints=checkpoints), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_is_a_model_folder_of_transformers(tmp_path):
    from transformers import AutoModelForCausalLM

    tiny.run(tiny.recipe, tmp_path)
    folder = tmp_path / "checkpoints" / "000007" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = load_tokenizer(folder)
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.get_vocab() == load_tokenizer(tmp_path / "tokenizer").get_vocab()


def test_the_same_recipe_leaves_the_same_bytes(tmp_path):
    one, two = (tiny.remains_of(tiny.recipe, tmp_path / name) for name in ("one", "two"))
    assert one == two


def test_another_seed_leaves_other_numbers(tmp_path):
    tiny.run(tiny.recipe, tmp_path / "one")
    tiny.run(replace(tiny.recipe, seed=1), tmp_path / "two")
    assert (
        tiny.numbers(tmp_path / "one", "rollout/return")[3:]
        != tiny.numbers(tmp_path / "two", "rollout/return")[3:]
    )


def test_a_field_of_the_wrong_type_is_named_before_anything_is_written(tmp_path):
    wrong = replace(tiny.recipe, compute=Compute(threads="two"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"compute\.threads must be int; found 'two'"):
        tiny.run(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="exists and is not a run of agentrl"):
        tiny.run(tiny.recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="is a file; give another --out"):
        tiny.run(tiny.recipe, tmp_path / "run")


def test_the_settings_that_differ_are_listed(tmp_path):
    tiny.run(tiny.recipe, tmp_path)
    other = replace(
        tiny.recipe, stages=(tiny.recipe.stages[0], replace(tiny.LEARN, updates=9, minibatches=1))
    )
    with pytest.raises(
        CheckpointError, match=r"(?s)stages.learn.minibatches: 2 -> 1.*stages.learn.updates: 4 -> 9"
    ):
        tiny.run(other, tmp_path)


def test_tasks_that_are_not_those_of_the_recipe_are_refused(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"the tasks of split 'test' are not those of the recipe: their hash is [0-9a-f]{16}",
    ):
        tiny.run(replace(tiny.recipe, panels={"test": "0" * 16}), tmp_path)


def test_a_tokenizer_needs_an_environment_that_can_be_played(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"(?s)no episode of split 'train' could be played.*the roof of corridor-\d+ fell in; fix",
    ):
        tiny.run(replace(tiny.recipe, env=Corridor(accident="always")), tmp_path)


class Mute(Corridor):
    """Lists no actions, so only the expert can play it."""

    def shown(self, observation: Observation) -> Observation:
        return replace(observation, actions=())


def test_where_random_play_is_not_possible_the_tokenizer_is_trained_on_the_experts(tmp_path):
    alone = replace(tiny.recipe.evaluation, baselines={})
    tiny.run(replace(tiny.recipe, env=Mute(), evaluation=alone), tmp_path)
    with pytest.raises(Exception, match="lists none"):
        tiny.run(
            replace(tiny.recipe, env=Mute(), evaluation=replace(alone, baselines={"random": RandomPolicy()})),
            tmp_path / "other",
        )


class Endless(Corridor):
    """Never ends by itself: a turn limit is for who plays to keep."""

    def answered(self, step: Step) -> Step:
        return replace(step, terminated=False)


def test_the_environments_turn_limit_ends_episodes_that_it_does_not_end_itself(tmp_path):
    recipe = replace(tiny.recipe, env=Endless(), limits=Limits(env_deadline_s=20))
    tiny.run(recipe, tmp_path)
    assert {len(one.trajectory.turns) for one in tiny.stored(tmp_path)} == {3}
    assert tiny.numbers(tmp_path, "rollout/truncated") == [1.0] * 7
    assert tiny.numbers(tmp_path, "eval/truncated") == [1.0] * 2


class Unfurnished(Corridor):
    """The first two tasks of the test split need an image that nobody has."""

    def tasks(self, split: str) -> Sequence[Task]:
        tasks = super().tasks(split)
        lost = 2 if split == "test" else 0
        return [
            *(replace(task, sandbox=SandboxSpec(image="nowhere")) for task in tasks[:lost]),
            *tasks[lost:],
        ]


def test_a_task_that_cannot_be_played_is_not_replaced_by_a_later_one(tmp_path):
    evaluation = replace(tiny.recipe.evaluation, num_tasks=3)
    recipe = replace(tiny.recipe, env=Unfurnished(), evaluation=evaluation, sandboxes=Local())
    said = tiny.run(recipe, tmp_path / "run")
    assert "image 'nowhere' is missing, so its 2 tasks are left out" in said
    reports = [Report.read(path) for path in (tmp_path / "run" / "evaluations").glob("*.json")]
    assert [report.num_episodes for report in reports] == [1] * 3
    with pytest.raises(ConfigError, match=r"none of the first 2 tasks of split 'test'"):
        tiny.run(replace(recipe, evaluation=replace(evaluation, num_tasks=2)), tmp_path / "other")
