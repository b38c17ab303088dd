import asyncio
import contextlib
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("textworld")

from agentrl_environments.textworld import (
    CoinCollector,
    Cooking,
    Ladder,
    TextWorld,
    TreasureHunter,
    engine,
    parse,
)
from agentrl_environments.textworld.brief import Scene, structure_key
from agentrl_environments.textworld.episode import clean
from agentrl_environments.textworld.games import SHARES, Games
from hypothesis import given
from hypothesis import strategies as st
from textworld import EnvInfos
from textworld import start as start_in_the_package
from textworld.envs.tw import TextWorldEnv
from textworld.generator.inform7 import Inform7Game
from textworld.logic import Proposition, Variable

from agentrl.env import panel_hash
from agentrl.errors import ConfigError
from agentrl.testing import check_env
from agentrl.types import Observation, Step, Task

FAMILIES = ("coin-r8-q4", "w2-o3-q4", "treasure-l5", "cooking-r2-t1-g1-cook")


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("games"))


def spec(game, cache, **options):
    return TextWorld(
        game=game, cache=cache, **{"train": 8, "valid": 2, "test": 4, "ood": 0, "max_turns": 60, **options}
    )


async def play(env, task, choose, shared=None) -> tuple[Observation, list[tuple[str, Step]]]:
    async with env.open(task, None, shared) as episode:
        first = observation = await episode.reset()
        steps = []
        while not steps or not (steps[-1][1].terminated or steps[-1][1].truncated):
            action = choose(first, observation, len(steps))
            steps.append((action, await episode.step(action)))
            observation = steps[-1][1].observation
        return first, steps


def expert(first, observation, turn):
    return first.plan[turn]


def scripted(*actions):
    return lambda first, observation, turn: actions[min(turn, len(actions) - 1)]


def wanderer(seed):
    dice = random.Random(seed)
    return lambda first, observation, turn: (
        "xyzzy" if dice.random() < 0.1 else dice.choice(observation.actions)
    )


def run(env, task, choose, shared=None):
    return asyncio.run(play(env, task, choose, shared))


# Families


@given(
    st.one_of(
        st.builds(Ladder, st.integers(1, 30), st.integers(1, 100), st.integers(1, 30), st.booleans()),
        st.builds(CoinCollector, st.integers(9, 30), st.integers(8, 9), st.booleans()),
        st.builds(TreasureHunter, st.integers(1, 30)),
        st.builds(
            Cooking,
            st.integers(3, 5),
            st.integers(0, 3),
            st.sampled_from([1, 6, 9, 12]),
            *[st.booleans()] * 4,
        ),
    )
)
def test_a_family_is_read_back_from_its_name(family):
    assert parse(str(family)) == family


@pytest.mark.parametrize(
    "name", ["w2-o3-q4", "coin-r8-q4", "coin-r1-q1", "treasure-l5", "treasure-l13", "cooking-r1-t1-g1"]
)
def test_the_larger_world_of_a_family_is_another_world_of_the_same_family(name):
    family = parse(name)
    assert type(family.larger) is type(family)
    assert family.larger != family


@pytest.mark.parametrize("family", [TreasureHunter(21), Cooking(go=12), CoinCollector(100, 100)])
def test_the_largest_worlds_have_no_larger_one(family):
    assert family.larger is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"game": "w2-o3"}, ["not the name of a family", "w2-o3", "coin-r8-q4"]),
        ({"game": "coin-r4-q8"}, ["path", "more rooms (8)", "in all (4)"]),
        ({"game": "coin-r20-q4-simple"}, ["at most 16 rooms", "found 20", "-simple"]),
        ({"game": "treasure-l31"}, ["level is 31", "1 to 30"]),
        ({"game": "cooking-r1-t2-g1"}, ["take is 2", "0 to 1"]),
        ({"game": "cooking-r1-t1-g5"}, ["go is 5", "1, 6, 9, 12"]),
        ({"game": "cooking-r1-t1-g1-drop", "intermediate": True}, ["needs a plan", "-drop"]),
        ({"observation": "raw"}, ["raw", "facts", "backend='z8'"]),
        ({"backend": "zmachine"}, ["zmachine", "facts, z8"]),
        ({"observation": "full"}, ["full", "brief, raw"]),
        ({"max_turns": 0}, ["max_turns is 0", "at least 1"]),
        ({"train": -1}, ["train is -1"]),
        ({"ood_game": "maze"}, ["maze"]),
    ],
)
def test_a_wrong_option_is_named_when_the_spec_is_made(options, words):
    with pytest.raises(ConfigError) as caught:
        TextWorld(**options)
    assert all(word in str(caught.value) for word in words), caught.value


def test_an_unknown_split_is_named_with_those_that_exist():
    with pytest.raises(ConfigError, match="no split 'dev'; it has train, valid, test, ood"):
        TextWorld().tasks("dev")


def test_a_spec_is_made_and_named_without_loading_the_engine():
    program = (
        "import sys; from agentrl_environments.textworld import TextWorld; "
        "TextWorld(); assert not {'textworld', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# Panels


def test_splits_share_no_structure_and_no_name(cache):
    env = spec("coin-r8-q4", cache)
    panels = {split: env.tasks(split) for split in ("train", "valid", "test")}
    assert [len(panel) for panel in panels.values()] == [8, 2, 4]
    tasks = [task for panel in panels.values() for task in panel]
    assert len({task.data["key"] for task in tasks}) == len({task.id for task in tasks}) == 14


def test_a_larger_panel_begins_with_the_smaller_one(cache):
    small, large = (spec("coin-r8-q4", cache, train=size).tasks("train") for size in (5, 15))
    assert list(large[:5]) == list(small)


def test_the_panel_is_the_one_recorded_here(cache):
    """If these values change, every published number changes: then increase ``_FORMAT`` of the cache, too."""
    assert {name: panel_hash(spec(name, cache).tasks("test")) for name in FAMILIES} == {
        "coin-r8-q4": "5aced6e882efb5b7",
        "w2-o3-q4": "e963d8b9fdb2e931",
        "treasure-l5": "ae9f63bbb90b8117",
        "cooking-r2-t1-g1-cook": "5ecead014fb9049a",
    }


@pytest.mark.slow
def test_the_files_do_not_depend_on_how_many_workers_made_them_or_where(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.chdir(tmp_path)
    here, there = (
        spec("coin-r8-q4", cache, train=40, workers=1),
        spec("coin-r8-q4", str(tmp_path / "cache"), train=40, workers=2),
    )
    assert panel_hash(here.tasks("train")) == panel_hash(there.tasks("train"))
    contents = [
        {path.name: path.read_bytes() for path in Path(env.cache).rglob("coin-r8-q4/0/0000/*")}
        for env in (here, there)
    ]
    assert contents[0] == contents[1]
    assert len(contents[0]) > 20


def test_the_out_of_distribution_panel_is_the_test_panel_of_the_larger_world(cache):
    env = spec("coin-r4-q2", cache, ood=3)
    assert [task.id for task in env.tasks("ood")] == [
        task.id for task in spec("coin-r6-q3", cache, test=3).tasks("test")
    ]


def test_a_largest_world_asks_for_the_name_of_its_out_of_distribution_world(cache):
    with pytest.raises(ConfigError, match=r"no larger size of 'treasure-l21'.*ood_game"):
        spec("treasure-l21", cache, ood=3).tasks("ood")


def test_a_world_with_too_few_games_says_how_many_there_are(cache):
    with pytest.raises(
        ConfigError, match=r"too few different games for train=20, found \d in \d+ seeds; set train=\d,"
    ):
        spec("coin-r2-q2", cache, train=20).tasks("train")


def test_shares_of_the_splits_are_eighths_that_do_not_overlap():
    assert sorted(eighth for share in SHARES.values() for eighth in share) == list(range(8))


@pytest.mark.slow
def test_makers_at_the_same_time_and_killed_ones_do_no_harm(cache, tmp_path):
    program = "from agentrl_environments.textworld import TextWorld; "
    program += f"TextWorld(cache={str(tmp_path)!r}, workers=1).tasks('train')"
    killed = subprocess.Popen([sys.executable, "-c", program])
    with contextlib.suppress(subprocess.TimeoutExpired):
        killed.wait(3)
    killed.kill()
    killed.wait()
    env = spec("coin-r8-q4", str(tmp_path), train=20)
    with ThreadPoolExecutor(2) as threads:
        panels = list(threads.map(lambda _: panel_hash(env.tasks("train")), range(2)))
    assert panels == [panel_hash(spec("coin-r8-q4", cache, train=20).tasks("train"))] * 2


def test_preparing_tells_its_progress_and_is_done_once(tmp_path):
    env, seen = spec("coin-r4-q2", str(tmp_path), train=2, valid=1, test=1), []
    env.prepare(lambda what, done, total: seen.append((what, done, total)))
    assert seen
    assert all(0 <= done <= total and "coin-r4-q2" in what for what, done, total in seen)
    seen.clear()
    env.prepare(lambda *event: seen.append(event))
    assert seen == []


@pytest.fixture
def copy(cache, tmp_path):
    """A cache folder to damage, with the games of ``coin-r8-q4``."""
    env = spec("coin-r8-q4", cache, train=1)
    [task] = env.tasks("train")
    shutil.copytree(Games("coin-r8-q4", 0, cache).folder, Games("coin-r8-q4", 0, str(tmp_path)).folder)
    return (
        replace(env, cache=str(tmp_path)),
        task,
        Games("coin-r8-q4", 0, str(tmp_path)).folder / task.data["file"],
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes().replace(b"coin", b"coil", 1)),
    ],
)
def test_a_damaged_game_file_is_one_clear_error(copy, damage):
    env, task, path = copy
    damage(path)
    with pytest.raises(ConfigError, match=r"game file .* (corrupt|cannot be read).*delete the folder .*0000"):
        run(env, task, expert)


def test_a_damaged_index_is_one_clear_error(copy):
    env, _, path = copy
    index = path.with_name("index.json")
    index.write_text(index.read_text()[:-40])
    with pytest.raises(ConfigError, match=r"index .* is corrupt .*delete the folder"):
        env.tasks("train")


# Playing


@pytest.mark.parametrize("name", FAMILIES)
def test_the_expert_wins_every_game_and_is_paid_its_score(cache, name):
    env = spec(name, cache)
    for task in env.tasks("test"):
        first, steps = run(env, task, expert)
        last = steps[-1][1]
        assert (len(steps), last.terminated, last.info["success"]) == (len(first.plan), True, 1.0)
        assert all(step.info["valid"] == 1.0 and step.info["success"] == 0.0 for _, step in steps[:-1])
        game = engine.load(Games(name, 0, cache).load(task.data["file"]))
        assert (
            sum(step.reward for _, step in steps)
            == sum(step.info["score"] for _, step in steps)
            == game.max_score
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_every_declared_signal_and_no_other_is_reported(cache, name):
    env = spec(name, cache, intermediate=True)
    _, steps = run(env, env.tasks("test")[0], wanderer(0))
    assert all(set(step.info) == set(env.signals) for _, step in steps)
    plain = spec(name, cache)
    assert set(run(plain, plain.tasks("test")[0], wanderer(0))[1][0][1].info) == set(env.signals) - {
        "intermediate"
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_states_are_those_of_the_package_and_remembering_them_changes_nothing(cache, name):
    env = spec(name, cache)
    library = engine.Library()
    for task in env.tasks("test")[:2]:
        game = engine.load(Games(name, 0, cache).load(task.data["file"]))
        reference = TextWorldEnv(EnvInfos(admissible_commands=True))
        reference._game, reference._inform7 = game, Inform7Game(game)
        for seed in range(3):
            first, steps = run(env, task, wanderer(seed), library)
            state = reference.reset()
            assert list(first.actions) == state["admissible_commands"]
            for action, step in steps:
                if (
                    action == "prepare meal"
                ):  # the package's player of .json files differs from the compiled game here
                    break
                state, score, _ = reference.step(action)
                assert step.info["success"] == float(state["won"])
                if step.terminated or state["lost"]:
                    break
                assert list(step.observation.actions) == state["admissible_commands"]
                assert sum(past.reward for _, past in steps[: steps.index((action, step)) + 1]) >= score
            assert run(env, task, wanderer(seed), library) == (first, steps) == run(env, task, wanderer(seed))


def test_a_refused_command_changes_nothing_and_says_so(cache):
    env = spec("coin-r8-q4", cache)
    task = env.tasks("test")[0]
    first, steps = run(env, task, scripted("look", "take moon", "inventory"))
    look, refused = steps[0][1], steps[1][1]
    assert (refused.info["valid"], refused.reward) == (0.0, 0.0)
    assert refused.observation.messages[0].content == "invalid ; " + look.observation.messages[0].content
    assert refused.observation.actions == look.observation.actions == first.actions
    assert first.messages[0].content == "goal take coin ; " + look.observation.messages[0].content


@pytest.mark.parametrize("spelling", ["  {}\n", "{}"])
def test_case_and_spaces_do_not_matter(cache, spelling):
    env = spec("coin-r8-q4", cache)
    task = env.tasks("test")[0]

    def shout(first, observation, turn):
        return spelling.format(first.plan[turn].upper().replace(" ", "  "))

    assert [step for _, step in run(env, task, shout)[1]] == [step for _, step in run(env, task, expert)[1]]


def test_the_turn_limit_truncates_and_a_win_on_the_last_turn_terminates(cache):
    env = spec("coin-r8-q4", cache, max_turns=4)
    task = env.tasks("test")[0]
    _, idle = run(env, task, scripted("look"))
    assert [(step.terminated, step.truncated) for _, step in idle] == [(False, False)] * 3 + [(False, True)]
    _, won = run(env, task, expert)
    assert (won[-1][1].terminated, won[-1][1].truncated) == (True, False)


def test_taking_the_wrong_treasure_loses(cache):
    env = spec("treasure-l5", cache, test=8)

    def thief(first, observation, turn):
        wrong = [
            action
            for action in observation.actions
            if action.startswith("take ") and action != first.plan[-1]
        ]
        return (
            wrong[0]
            if wrong
            else dice.choice([action for action in observation.actions if action.startswith("go ")])
        )

    dice = random.Random(0)
    ends = [run(env, task, thief)[1][-1][1] for task in env.tasks("test")]
    lost = [step for step in ends if step.info["lost"]]
    assert len(lost) >= 4
    assert all(
        step.terminated
        and step.reward == 0.0
        and step.info["success"] == 0.0
        and step.observation.actions == ()
        for step in lost
    )


def test_the_intermediate_signal_follows_the_plan_and_takes_back_what_a_detour_gains(cache):
    env = spec("w2-o3-q4", cache, intermediate=True)
    for task in env.tasks("test"):
        _, steps = run(env, task, expert)
        assert [step.info["intermediate"] for _, step in steps] == [1.0] * len(steps)
    coin = spec("coin-r8-q4", cache, intermediate=True)
    task = coin.tasks("test")[0]
    there = coin.tasks("test")[0] and run(coin, task, expert)[0].plan[0]
    back = {"north": "south", "south": "north", "east": "west", "west": "east"}[there.split()[1]]
    _, steps = run(coin, task, scripted(there, f"go {back}", there, f"go {back}", "look"))
    assert [step.info["intermediate"] for _, step in steps[:5]] == [1.0, -1.0, 1.0, -1.0, 0.0]


def test_a_cookbook_tells_its_recipe_and_a_meal_needs_all_of_it(cache):
    env = spec("cooking-r2-t1-g1-cook", cache)
    _, steps = run(env, env.tasks("test")[0], scripted("examine cookbook", "prepare meal"))
    assert steps[0][1].observation.messages[0].content.startswith("recipe ")
    assert steps[0][1].observation.messages[0].content.split(" ; ")[0].endswith("prepare meal")

    def eager(first, observation, turn):
        return "prepare meal" if "prepare meal" in observation.actions else first.plan[turn]

    for task in env.tasks("test"):
        _, steps = run(env, task, eager)
        tries = [step for action, step in steps if action == "prepare meal"]
        assert tries
        assert all(
            step.info["valid"]
            and not step.info["success"]
            and "meal" not in step.observation.messages[0].content
            for step in tries
        )


def test_admissible_commands_are_in_the_text_only_where_asked_for(cache):
    task = spec("coin-r8-q4", cache).tasks("test")[0]
    plain, listed = (
        run(spec("coin-r8-q4", cache, show_actions=show), task, expert)[0] for show in (False, True)
    )
    assert listed.messages[0].content == plain.messages[0].content + " ; can " + " , ".join(plain.actions)
    assert all(action not in plain.messages[0].content for action in plain.plan[:-1])


@pytest.mark.slow
def test_the_contract_of_environments_is_kept(cache):
    check_env(spec("coin-r4-q2", cache, train=2, valid=1, test=2, ood=2))


# Rendering and keys


def fact(name, *things):
    return Proposition(name, [Variable(thing, thing.split("_")[0]) for thing in things])


def test_a_brief_observation_shows_what_a_player_sees():
    labels = {
        "r_0": "kitchen",
        "r_1": "hall",
        "r_2": "yard",
        "d_0": "red door",
        "c_0": "chest",
        "c_1": "box",
        "s_0": "table",
    }
    labels |= {"k_0": "key", "k_1": "coin", "f_0": "red apple", "P": "", "I": ""}
    facts = [
        fact("at", "P", "r_0"), fact("north_of", "r_1", "r_0"), fact("south_of", "r_0", "r_1"),
        fact("free", "r_0", "r_1"), fact("west_of", "r_2", "r_0"), fact("link", "r_0", "d_0", "r_2"),
        fact("closed", "d_0"), fact("at", "c_0", "r_0"), fact("locked", "c_0"), fact("in", "k_0", "c_0"),
        fact("at", "c_1", "r_0"), fact("open", "c_1"), fact("in", "k_1", "c_1"), fact("at", "s_0", "r_0"),
        fact("on", "f_0", "s_0"), fact("raw", "f_0"), fact("edible", "f_0"), fact("match", "k_0", "c_0"),
    ]  # fmt: skip
    shown = (
        "kitchen ; exits north , west (closed red door) ; see box (open) , chest (locked) , coin in box , "
    )
    shown += "red apple on table (raw) , table"
    assert Scene(facts, labels).render() == shown
    assert (
        Scene(reversed([*facts, fact("in", "k_2", "I")]), {**labels, "k_2": "pin"}).render()
        == shown + " ; have pin"
    )


def test_the_structural_key_sees_through_room_names_and_ids_but_not_through_maps():
    facts = [
        fact("at", "P", "r_0"),
        fact("north_of", "r_1", "r_0"),
        fact("free", "r_0", "r_1"),
        fact("at", "o_0", "r_1"),
    ]
    renamed = [
        fact("at", "P", "r_7"),
        fact("north_of", "r_3", "r_7"),
        fact("free", "r_7", "r_3"),
        fact("at", "o_4", "r_3"),
    ]
    other = [
        fact("at", "P", "r_0"),
        fact("east_of", "r_1", "r_0"),
        fact("free", "r_0", "r_1"),
        fact("at", "o_0", "r_1"),
    ]
    plan = ["go north", "take coin"]
    key = structure_key(facts, {"r_0": "kitchen", "r_1": "hall", "o_0": "coin"}, plan)
    assert structure_key(reversed(renamed), {"r_7": "attic", "r_3": "bar", "o_4": "coin"}, plan) == key
    assert structure_key(other, {"r_0": "kitchen", "r_1": "hall", "o_0": "coin"}, plan) != key
    assert structure_key(facts, {"r_0": "kitchen", "r_1": "hall", "o_0": "hat"}, plan) != key
    assert structure_key(facts, {"r_0": "kitchen", "r_1": "hall", "o_0": "coin"}, plan[1:]) != key


def test_a_library_forgets_the_games_played_longest_ago(cache):
    env = spec("coin-r8-q4", cache)
    library = engine.Library(max_nodes=3)
    first, second, third = env.tasks("test")[:3]
    for task in (first, second):
        run(env, task, expert, library)
    run(env, third, expert, library)
    assert library.get(third.data["key"]) is not None
    assert library.get(first.data["key"]) is None


# The compiled game


def assert_both_back_ends_play_the_same(env: TextWorld, task: Task, num_walks: int):
    compiled, raw = replace(env, backend="z8"), replace(env, backend="z8", observation="raw")
    for choose in (
        lambda: expert,
        *(lambda seed=seed: wanderer(f"{task.id}{seed}") for seed in range(num_walks)),
    ):
        first, steps = run(env, task, choose())
        actions = scripted(*(action for action, _ in steps))
        assert run(compiled, task, actions) == (first, steps)
        opening, told = run(raw, task, actions)
        measured = [
            (step.reward, step.terminated, step.truncated, step.info, step.observation.actions)
            for _, step in steps
        ]
        assert [
            (step.reward, step.terminated, step.truncated, step.info, step.observation.actions)
            for _, step in told
        ] == measured
        assert "-=" in opening.messages[0].content
        for text in [
            opening.messages[0].content,
            *(step.observation.messages[0].content for _, step in told),
        ]:
            assert text == text.strip() != ""
            assert "\n>" not in text
            assert "$$$" not in text


def assert_the_package_plays_the_same(env: TextWorld, task: Task, num_walks: int):
    """Play the same commands here and in the package's own loop.

    Episodes here share interpreters; each of the package's starts its own.
    """
    library, game = engine.Library(), engine.load(Games(env.game, 0, env.cache).load(task.data["file"]))
    path = (Games(env.game, 0, env.cache).folder / task.data["file"]).with_suffix(".z8")
    infos = EnvInfos(admissible_commands=True, moves=True, policy_commands=env.intermediate)
    for choose in (expert, expert, *(wanderer(f"{task.id}{seed}") for seed in range(num_walks)), expert):
        first, steps = run(env, task, choose, library)
        reference = start_in_the_package(str(path), infos)
        state, score, moves = reference.reset(), 0, 0
        assert first.messages[0].content == clean(state["feedback"], game.objective)
        assert list(first.actions) == state["admissible_commands"]
        for action, step in steps:
            plan, known = state["_winning_policy"], action in state["admissible_commands"]
            state, new_score, over = reference.step(action)
            assert step.observation.messages[0].content == clean(state["feedback"])
            assert list(step.observation.actions) == ([] if over else state["admissible_commands"])
            assert (step.terminated, step.info["success"], step.info["lost"]) == (
                over,
                float(state["won"]),
                float(state["lost"]),
            )
            assert (step.reward, step.info["valid"]) == (
                new_score - score,
                float(known or state["moves"] > moves),
            )
            if env.intermediate and not over:
                change = len(state["_winning_policy"] or ()) - len(plan or ())
                assert step.info["intermediate"] == (
                    -1.0 if state["_winning_policy"] is None else float(change < 0) - float(change > 0)
                )
            score, moves = new_score, state["moves"]
        reference.close()


@pytest.mark.filterwarnings("ignore:.*is not fully supported")
def test_the_compiled_game_plays_as_in_the_package(cache):
    env = spec("coin-r8-q4", cache, backend="z8", observation="raw", intermediate=True, max_turns=12)
    assert_the_package_plays_the_same(env, env.tasks("test")[0], num_walks=2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is not fully supported")
@pytest.mark.parametrize("name", ["w2-o3-q4", "w4-o6-q8", "treasure-l5", "cooking-r2-t1-g6-open-cook-cut"])
def test_the_compiled_game_plays_as_in_the_package_in_every_family(cache, name):
    env = spec(name, cache, backend="z8", observation="raw", intermediate=True, test=2)
    for task in env.tasks("test"):
        assert_the_package_plays_the_same(env, task, num_walks=4)


@pytest.mark.slow
def test_the_contract_of_environments_is_kept_by_the_compiled_game(cache):
    check_env(
        spec("coin-r8-q4", cache, backend="z8", observation="raw", train=1, valid=1, test=1, ood=1),
        num_tasks=1,
    )


def test_the_compiled_game_and_its_logic_play_the_same(cache):
    env = spec("coin-r8-q4", cache, intermediate=True, max_turns=20)
    assert_both_back_ends_play_the_same(env, env.tasks("test")[0], num_walks=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "w2-o3-q4",
        "w4-o6-q8",
        "coin-r8-q4-simple",
        "treasure-l5",
        "treasure-l12",
        "cooking-r2-t1-g6-open-cook-cut",
        "cooking-r1-t0-g1",
        "cooking-r2-t1-g6-open-cook-cut-drop",
    ],
)
def test_the_compiled_game_and_its_logic_play_the_same_in_every_family(cache, name):
    env = spec(name, cache, intermediate="drop" not in name, test=2)
    for task in env.tasks("test"):
        assert_both_back_ends_play_the_same(env, task, num_walks=3)
