import resource
import subprocess
import sys
import textwrap

import duckdb
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrl.errors import CheckpointError
from agentrl.records.store import (
    Stored,
    drop_trajectories_after,
    iter_trajectories,
    read_trajectories,
    trajectory_path,
    write_trajectories,
)
from agentrl.types import (
    NEEDS,
    Action,
    Credited,
    End,
    Measured,
    Message,
    Observation,
    SandboxSpec,
    Scored,
    Task,
    Trajectory,
    Turn,
    floats,
    ints,
)

texts = st.text(max_size=8)
numbers = st.floats(allow_nan=False)
floats32 = st.floats(width=32, allow_nan=False)
json_data = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
messages = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    texts,
    st.lists(st.binary(max_size=5), max_size=2).map(tuple),
)
few_texts = st.lists(texts, max_size=3).map(tuple)
observations = st.builds(Observation, st.lists(messages, max_size=3).map(tuple), few_texts, few_texts)


@st.composite
def actions(draw):
    logprobs = draw(st.lists(floats32, max_size=4))
    tokens = draw(st.lists(st.integers(0, 2**31 - 1), min_size=len(logprobs), max_size=len(logprobs)))
    prompt = draw(st.lists(st.integers(0, 2**31 - 1), max_size=4))
    return Action(
        draw(texts),
        ints(prompt),
        ints(tokens),
        floats(logprobs),
        draw(st.integers(-1, 9)),
        draw(st.booleans()),
        draw(st.booleans()),
    )


turns = st.builds(
    Turn, observations, actions(), numbers, st.dictionaries(texts, numbers, max_size=3), st.floats(0, 9)
)
sandboxes = st.none() | st.builds(
    SandboxSpec,
    image=texts,
    cpus=st.floats(0.5, 4),
    network=st.sampled_from(("none", "open")),
    writable=st.lists(texts, max_size=2).map(tuple),
)
trajectories = st.builds(
    Trajectory,
    st.builds(Task, texts, st.dictionaries(texts, json_data, max_size=3), sandboxes),
    st.lists(turns, max_size=3).map(tuple),
    st.sampled_from(End),
    st.integers(0, 99),
    texts,
    st.none() | observations,
)


@st.composite
def scored_and_credited(draw):
    trajectory = draw(trajectories)
    per_token = st.lists(
        st.floats(width=32), min_size=trajectory.num_tokens, max_size=trajectory.num_tokens
    ).map(floats)
    per_turn = st.lists(floats32, min_size=len(trajectory.turns), max_size=len(trajectory.turns)).map(floats)
    ledger = draw(st.dictionaries(texts, per_turn, max_size=2))
    measured = {need: draw(st.none() | per_token) for need in NEEDS}
    return Scored(trajectory, ledger, Measured(**measured)), Credited(
        draw(per_token), draw(st.none() | per_token)
    )


def same(a, b):
    return (a is None) == (b is None) and (a is None or np.array_equal(a, b, equal_nan=True))


def assert_same_scored(mine, theirs):
    assert theirs.trajectory == mine.trajectory
    assert [turn.duration_s for turn in theirs.trajectory.turns] == [
        turn.duration_s for turn in mine.trajectory.turns
    ]
    assert list(theirs.ledger) == list(mine.ledger)
    assert all(same(mine.ledger[name], theirs.ledger[name]) for name in mine.ledger)
    for need in NEEDS:
        assert same(mine.measured.get(need), theirs.measured.get(need))


relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@relaxed
@given(
    st.lists(st.lists(scored_and_credited(), min_size=1, max_size=2), max_size=2),
    st.lists(trajectories, max_size=1),
)
def test_what_is_read_back_equals_what_was_written(tmp_path_factory, pairs, failures):
    path = tmp_path_factory.mktemp("store") / "part-0.parquet"
    groups = [[scored for scored, _ in group] for group in pairs]
    credited = [[credit for _, credit in group] for group in pairs]
    write_trajectories(path, groups, credited, update=3, stage="rl", failures=failures)
    stored = read_trajectories(path)
    expected = [(number, scored, credit) for number, group in enumerate(pairs) for scored, credit in group]
    assert len(stored) == len(expected) + len(failures)
    for (number, scored, credit), found in zip(expected, stored, strict=False):
        assert (found.update, found.stage, found.group) == (3, "rl", number)
        assert found.trajectory is found.scored.trajectory
        assert_same_scored(scored, found.scored)
        assert same(credit.advantages_T, found.credited.advantages_T)
        assert same(credit.targets_T, found.credited.targets_T)
    for failure, found in zip(failures, stored[len(expected) :], strict=True):
        assert (found.group, found.trajectory, found.scored, found.credited) == (-1, failure, None, None)


def won(task="game-a", sample=0, num_turns=2, success=1.0):
    turn_list = [
        Turn(
            Observation((Message("user", f"room {n}"),), ("go east", "wait"), ("go east",)),
            Action("go east", ints([1, 2, 3 + n]), ints([7, 8]), floats([-0.5, -0.25]), version=4),
            reward=float(n == num_turns - 1),
            info={"success": success * (n == num_turns - 1), "valid": 1.0},
            duration_s=0.5,
        )
        for n in range(num_turns)
    ]
    return Trajectory(
        Task(task, {"seed": 3}), tuple(turn_list), End.TERMINATED, sample, final=Observation.text("won")
    )


def paid(trajectory):
    n, t = len(trajectory.turns), trajectory.num_tokens
    return Scored(trajectory, {"outcome": floats(np.arange(n))}), Credited(floats(np.linspace(-1, 1, t)))


def write_run(run, updates=3):
    for update in range(updates):
        pairs = [paid(won(sample=update * 2 + k, success=float(k <= update))) for k in range(2)]
        write_trajectories(
            trajectory_path(run, update),
            [[s for s, _ in pairs]],
            [[c for _, c in pairs]],
            update=update,
            stage="rl",
        )


def test_duckdb_answers_a_question_about_a_run(tmp_path):
    write_run(tmp_path)
    rows = duckdb.sql(
        f"select update, avg(success::int), sum(ledger['outcome']), max(len(tokens)) "
        f"from read_parquet('{tmp_path}/trajectories/*/*.parquet', hive_types = {{'update': int}}) "
        "where turn = num_turns - 1 and update < 2 group by update order by update"
    ).fetchall()
    assert rows == [(0, 0.5, 2.0, 2), (1, 1.0, 2.0, 2)]


def test_pandas_reads_a_run_and_a_single_file(tmp_path):
    write_run(tmp_path)
    frame = pd.read_parquet(tmp_path / "trajectories")
    assert sorted(frame["update"].astype(int).unique()) == [0, 1, 2]
    assert frame["action"].tolist() == ["go east"] * 12
    single = pd.read_parquet(trajectory_path(tmp_path, 1))
    assert single["logprobs"].iloc[0].tolist() == [-0.5, -0.25]
    assert dict(single["ledger"].iloc[1]) == {"outcome": 1.0}
    assert single["advantage"].tolist() == pytest.approx([-2 / 3, 2 / 3] * 2)


def test_bare_trajectories_are_kept_too(tmp_path):
    path = tmp_path / "part-0.parquet"
    write_trajectories(path, [[won()]], update=0, stage="demonstrations")
    (found,) = read_trajectories(path)
    assert isinstance(found, Stored)
    assert (found.trajectory, found.scored, found.credited) == (won(), None, None)


def test_a_lone_surrogate_is_escaped_and_stops_nothing(tmp_path):
    path = tmp_path / "part-0.parquet"
    write_trajectories(
        path, [[Trajectory(Task("a"), (), End.FAILED, error="bad \udc80 byte é")]], update=0, stage="rl"
    )
    assert read_trajectories(path)[0].trajectory.error == "bad \\udc80 byte é"


def test_a_torn_file_is_one_error_that_names_it(tmp_path):
    path = tmp_path / "part-0.parquet"
    write_trajectories(path, [[won(sample=k)] for k in range(8)], update=0, stage="rl")
    whole = path.read_bytes()
    for length in (0, 3, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"part-0\.parquet is torn or altered"):
            read_trajectories(path)


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path):
    path = tmp_path / "part-0.parquet"
    written = [won(sample=k) for k in range(8)]
    write_trajectories(path, [written], update=0, stage="rl")
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    found = 0
    for place in random.integers(len(whole), size=300):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(random.integers(8))
        path.write_bytes(bytes(flipped))
        try:
            assert [stored.trajectory for stored in read_trajectories(path)] == written
        except CheckpointError:
            found += 1
    assert found > 100


def test_a_flipped_bit_in_a_number_is_found_only_by_its_checksum(tmp_path):
    path = tmp_path / "part-0.parquet"
    random = np.random.default_rng(0)
    noise = Action("x", tokens=ints(np.arange(20_000)), logprobs=floats(random.normal(size=20_000)))
    write_trajectories(
        path, [[Trajectory(Task("a"), (Turn(Observation(()), noise),), End.TERMINATED)]], update=0, stage="rl"
    )
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 3] ^= 1
    path.write_bytes(bytes(flipped))
    (altered,) = read_trajectories(path, verify=False)
    assert altered.trajectory.turns[0].action != noise
    with pytest.raises(CheckpointError, match=r"part-0\.parquet is torn or altered"):
        read_trajectories(path)


def test_a_missing_or_foreign_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no trajectory file at"):
        read_trajectories(tmp_path / "none.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(CheckpointError, match="not a trajectory file"):
        read_trajectories(tmp_path / "other.parquet")


def test_a_killed_run_forgets_updates_that_were_never_committed(tmp_path):
    write_run(tmp_path, updates=4)
    drop_trajectories_after(tmp_path, 1)
    assert [stored.update for stored in iter_trajectories(tmp_path)] == [0, 0, 1, 1]
    drop_trajectories_after(tmp_path / "none", 1)


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    script = textwrap.dedent(f"""
        from pathlib import Path
        from agentrl.records.store import write_trajectories
        from agentrl.types import Action, End, Observation, Task, Trajectory, Turn
        path = Path({str(tmp_path)!r}) / "part-0.parquet"
        for update in range(10_000):
            turns = tuple(Turn(Observation.text(f"{{update}} {{n}}"), Action("x")) for n in range(50))
            played = Trajectory(Task("a"), turns, End.TERMINATED)
            write_trajectories(path, [[played]], update=update, stage="rl")
            print(update, flush=True)
    """)
    for wait in (1, 7, 12):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as writer:
            for _ in range(wait):
                writer.stdout.readline()
            writer.kill()
        (stored,) = read_trajectories(tmp_path / "part-0.parquet")
        assert stored.update >= wait - 1
        assert [turn.observation for turn in stored.trajectory.turns] == [
            Observation.text(f"{stored.update} {n}") for n in range(50)
        ]


def test_a_full_disk_is_one_error_and_leaves_the_old_file(tmp_path):
    script = textwrap.dedent(f"""
        import resource, sys
        from pathlib import Path
        from agentrl.errors import ConfigError
        from agentrl.records.store import write_trajectories
        from agentrl.types import Action, End, Observation, Task, Trajectory, Turn
        turns = tuple(Turn(Observation.text(str(n) * 50), Action("x")) for n in range(200))
        long = Trajectory(Task("a"), turns, End.TERMINATED)
        path = Path({str(tmp_path)!r}) / "part-0.parquet"
        write_trajectories(path, [[Trajectory(Task("old"), (), End.TRUNCATED)]], update=0, stage="rl")
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        try:
            write_trajectories(path, [[long]], update=0, stage="rl")
        except ConfigError as error:
            print(error)
    """)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "file too large; free space on its disk" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["part-0.parquet"]
    assert read_trajectories(tmp_path / "part-0.parquet")[0].trajectory.task.id == "old"
