import sys
from importlib.metadata import EntryPoint

import broken
import pytest
from misbehaving import Misbehaving

from agentrl.errors import ConfigError, MissingExtra, UnknownPlugin
from agentrl.plugins import environments, load_environment, load_sandbox, make_environment, sandboxes
from agentrl.testing import check_env


def test_what_ships_is_found_by_name():
    assert {"bandit", "frozen-lake", "textworld"} <= set(environments())
    assert load_environment("bandit").__name__ == "Bandit"
    assert make_environment("bandit", arms=4, good=1).arms == 4


def test_module_and_attribute_need_no_registration():
    assert load_environment("misbehaving:Misbehaving") is Misbehaving
    assert make_environment("misbehaving:Misbehaving", max_turns=2) == Misbehaving(max_turns=2)


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "found_here.py").write_text("from broken import Sound\nconfigured = Sound(max_turns=7)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert make_environment("found_here:configured").max_turns == 7
    assert make_environment("found_here:configured", max_turns=2).max_turns == 2
    assert load_environment("found_here:configured") is broken.Sound


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        (
            "bandid",
            {},
            UnknownPlugin,
            "no environment plug-in is named 'bandid'; did you mean 'bandit'[?] known: bandit, frozen-lake",
        ),
        (
            "no_such_module:Env",
            {},
            UnknownPlugin,
            "no module is named 'no_such_module'; run in the folder that holds it",
        ),
        ("misbehaving:Misbehavin", {}, UnknownPlugin, "did you mean 'Misbehaving'"),
        ("json:dumps", {}, ConfigError, "is no EnvSpec, found <function dumps"),
        (
            "bandit",
            {"armz": 3},
            ConfigError,
            "no option is named 'armz'; did you mean 'arms'[?] known: arms, good, bad, max_turns",
        ),
        ("bandit", {"arms": "3"}, ConfigError, r"environment 'bandit': arms must be int; found '3' \(str\)"),
        ("bandit", {"arms": 99}, ConfigError, "arms must be from 2 to 8, found 99"),
        ("frozen-lake", {"view": "map"}, ConfigError, "view must be one of 'local', 'grid'; found 'map'"),
        (
            "agentrl.env.gym_text:GymText",
            {"env_id": "Taxi-v3"},
            ConfigError,
            "needs a value for actions, render",
        ),
        ("agentrl.env:EnvSpec", {}, ConfigError, "is no dataclass"),
    ],
)
def test_a_mistake_is_said_with_its_mend(name, options, error, message):
    with pytest.raises(error, match=message):
        make_environment(name, **options)


def test_a_plugin_that_does_not_import_is_a_mistake_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "crashing.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="importing environment 'crashing:Env' raised ZeroDivisionError"):
        make_environment("crashing:Env")


def test_a_missing_package_names_the_extra_that_brings_it(tmp_path, monkeypatch):
    info = tmp_path / "their_games-1.2.dist-info"
    info.mkdir()
    requires = (
        'Requires-Dist: numpy\nProvides-Extra: heavy\nRequires-Dist: no-such-package>=2; extra == "heavy"\n'
    )
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-games\nVersion: 1.2\n" + requires)
    (info / "entry_points.txt").write_text("[agentrl.environments]\nchess = their_games:Chess\n")
    (tmp_path / "their_games.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "chess" in environments()
    message = (
        r"environment 'chess' of their-games 1\.2 needs the package 'no_such_package'"
        r".*pip install 'their-games\[heavy\]'"
    )
    with pytest.raises(MissingExtra, match=message):
        load_environment("chess")


def test_a_package_of_no_extra_is_named_too(tmp_path, monkeypatch):
    (tmp_path / "needy.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtra, match="needs the package 'no_such_package', which is not installed"):
        make_environment("needy:Env")


def test_two_distributions_may_register_the_same_group(monkeypatch):
    theirs = EntryPoint("sound", "broken:Sound", "agentrl.environments")
    monkeypatch.setattr(
        "agentrl.plugins.entry_points", lambda group: [theirs] if group == "agentrl.environments" else []
    )
    assert environments() == ("sound",)
    check_env(make_environment("sound"), num_tasks=1)


def test_sandboxes_are_found_the_same_way():
    assert isinstance(sandboxes(), tuple)
    with pytest.raises(UnknownPlugin, match="no sandbox plug-in is named 'dockr'"):
        load_sandbox("dockr")
