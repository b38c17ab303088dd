import gzip
import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from agentrl_environments.swe import diffs, rows
from agentrl_environments.swe.rows import Instance, SourceDistribution

from agentrl.errors import ConfigError

FIX = diffs.unified("pkg/a.py", "x = 1\n", "x = 2\n")
TESTS = diffs.unified("tests/test_a.py", "", "def test_x(): pass\n")
SWE_BENCH = {
    "repo": "django/django",
    "instance_id": "django__django-1",
    "base_commit": "abc",
    "patch": FIX,
    "test_patch": diffs.unified("tests/admin/test_x.py", "", "pass\n"),
    "problem_statement": "it is broken",
    "hints_text": "",
    "created_at": "2020-01-01",
    "version": "3.0",
    "FAIL_TO_PASS": json.dumps(["test_x (admin.test_x.T)"]),
    "PASS_TO_PASS": json.dumps([]),
    "environment_setup_commit": "def",
    "difficulty": "<15 min fix",
}
SWE_GYM = {
    "repo": "pandas-dev/pandas",
    "instance_id": "pandas-dev__pandas-7",
    "base_commit": "abc",
    "patch": FIX,
    "test_patch": TESTS,
    "problem_statement": "it is broken",
    "hints_text": "",
    "created_at": "2020-01-01",
    "version": "1.0",
    "FAIL_TO_PASS": ["tests/test_a.py::test_x"],
    "PASS_TO_PASS": ["tests/test_a.py::test_y"],
}
SWE_SMITH = {
    "instance_id": "owner__name.abc.func_basic__1",
    "repo": "swesmith/owner__name.abc",
    "patch": diffs.unified("pkg/a.py", "x = 2\n", "x = 1\n"),
    "FAIL_TO_PASS": ["tests/test_a.py::test_x"],
    "PASS_TO_PASS": ["tests/test_b.py::T::test_y[a-b]"],
    "created_at": "2025-01-01",
    "image_name": "swesmith.x86_64.owner__name.abc",
    "base_commit": "abc",
    "problem_statement": "it is broken",
}
R2E_GYM = {
    "repo_name": "aiohttp",
    "docker_image": "namanjain12/aiohttp_final:abc",
    "commit_hash": "abc",
    "parsed_commit_content": json.dumps(
        {
            "file_diffs": [
                {
                    "header": {"file": {"path": "pkg/a.py"}},
                    "old_file_content": "x = 1\n",
                    "new_file_content": "x = 2\n",
                },
                {
                    "header": {"file": {"path": "tests/test_a.py"}},
                    "old_file_content": "",
                    "new_file_content": "pass\n",
                },
            ]
        }
    ),
    "problem_statement": "it is broken",
    "expected_output_json": json.dumps({"T.test_x": "PASSED", "test_y": "FAILED"}),
}
ALL = {"swe-bench": SWE_BENCH, "swe-gym": SWE_GYM, "swe-smith": SWE_SMITH, "r2e-gym": R2E_GYM}
OURS = Instance(
    id="h11-1",
    repo="h11",
    problem_statement="it is broken",
    patch=FIX,
    fail_to_pass=("tests/test_a.py::test_x",),
    source=SourceDistribution("h11", "0.16.0", "0" * 64),
    command=rows.PYTEST,
    site="pkg/a.py:f",
    kind="operator",
)


@pytest.mark.parametrize("name", ALL)
def test_every_format_has_the_same_fix_in_normal_form(name):
    instance = rows.from_row(ALL[name])
    (file,) = diffs.parse(instance.patch)
    assert (file.new, file.hunks[0].old, file.hunks[0].new) == ("pkg/a.py", ("x = 1\n",), ("x = 2\n",))
    assert instance.image
    assert instance.command


def test_what_is_special_about_each_format_is_kept():
    bench, gym, smith, r2e = (rows.from_row(row) for row in ALL.values())
    assert bench.image == "swebench/sweb.eval.x86_64.django_1776_django-1:latest"
    assert bench.command.endswith(
        "./tests/runtests.py --verbosity 2 --settings=test_sqlite --parallel 1 admin.test_x"
    )
    assert (bench.parser, bench.fail_to_pass, bench.difficulty) == (
        "unittest",
        ("test_x (admin.test_x.T)",),
        "<15 min fix",
    )
    assert gym.image == "xingyaoww/sweb.eval.x86_64.pandas-dev_s_pandas-7:latest"
    assert gym.command.endswith(" tests/test_a.py")
    assert smith.solved
    assert smith.command.endswith(" tests/test_a.py tests/test_b.py")
    assert r2e.expected == (("T.test_x", "PASSED"), ("test_y", "FAILED"))
    assert "/r2e_tests" in r2e.hidden


@pytest.mark.parametrize("instance", [OURS, *map(rows.from_row, ALL.values())], ids=["ours", *ALL])
def test_an_instance_survives_being_written_as_a_swe_bench_row(instance, tmp_path):
    rows.write(tmp_path / "rows.jsonl", [instance])
    assert rows.load(tmp_path / "rows.jsonl") == (instance,)
    (row,) = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert json.loads(row["FAIL_TO_PASS"]) == list(instance.fail_to_pass)
    assert set(SWE_BENCH) | {"agentrl"} == set(row)


def test_json_json_lines_and_parquet_hold_the_same(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([SWE_GYM]))
    (tmp_path / "a.jsonl").write_text(json.dumps(SWE_GYM) + "\n\n")
    pq.write_table(pa.Table.from_pylist([SWE_GYM]), tmp_path / "a.parquet")
    assert (
        rows.load(tmp_path / "a.json") == rows.load(tmp_path / "a.jsonl") == rows.load(tmp_path / "a.parquet")
    )


def test_a_file_that_changed_is_read_again(tmp_path):
    rows.write(tmp_path / "a.jsonl", [OURS])
    assert [instance.id for instance in rows.load(tmp_path / "a.jsonl")] == ["h11-1"]
    rows.write(tmp_path / "a.jsonl", [OURS, replace(OURS, id="h11-2")])
    assert [instance.id for instance in rows.load(tmp_path / "a.jsonl")] == ["h11-1", "h11-2"]


@pytest.mark.parametrize("name", ALL)
def test_every_missing_field_is_named_with_its_file_and_line(name, tmp_path):
    needed = {
        "swe-bench": (
            "repo",
            "instance_id",
            "base_commit",
            "patch",
            "test_patch",
            "problem_statement",
            "FAIL_TO_PASS",
            "PASS_TO_PASS",
        ),
        "swe-gym": ("instance_id", "patch", "FAIL_TO_PASS"),
        "swe-smith": ("instance_id", "repo", "patch", "FAIL_TO_PASS", "PASS_TO_PASS", "problem_statement"),
        "r2e-gym": ("repo_name", "docker_image", "commit_hash", "parsed_commit_content", "problem_statement"),
    }[name]
    for field in needed:
        row = {key: value for key, value in ALL[name].items() if key != field}
        file = tmp_path / f"{name}-{field}.jsonl"
        file.write_text(json.dumps(SWE_GYM) + "\n" + json.dumps(row) + "\n")
        with pytest.raises(ConfigError, match=rf"{file}:2: field '{field}' is missing"):
            rows.load(file)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("FAIL_TO_PASS", "not json", "field 'FAIL_TO_PASS' is not JSON"),
        ("FAIL_TO_PASS", [1], "field 'FAIL_TO_PASS' must be a list of test names"),
        ("FAIL_TO_PASS", [], "field 'FAIL_TO_PASS' is empty"),
        ("patch", "", "field 'patch' is empty"),
        ("patch", "hello", "field 'patch' is not a unified diff"),
        ("patch", FIX[: FIX.index("+x")], "field 'patch' is not a unified diff: .* short"),
        ("instance_id", 3, "field 'instance_id' must be text, found int"),
        ("agentrl", {"imaeg": "x"}, "field 'agentrl' has unknown entries imaeg"),
        ("agentrl", {"command": "pytest", "parser": "nose"}, "parser is 'nose'"),
        ("agentrl", {"command": ""}, "command is empty"),
        ("agentrl", {"command": "pytest", "source": {"package": "x"}}, "field 'agentrl'"),
    ],
)
def test_a_wrong_field_is_named(field, value, message):
    with pytest.raises(ConfigError, match=f"^here: .*{message}"):
        rows.from_row({**SWE_GYM, field: value}, "here")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"{", r"a.jsonl:1: is not JSON"),
        ("a.jsonl", b"[1]\n", r"a.jsonl:1: must be an object, found list"),
        ("a.jsonl", b"", r"a.jsonl has no rows"),
        ("a.jsonl", b"\xff\xfe", r"is not UTF-8"),
        ("a.json", b"{}", r"must hold a list of rows, found dict"),
        ("a.parquet", b"nothing", r"is not a Parquet file"),
        ("a.jsonl.gz", b"no archive", r"cannot read .*a\.jsonl\.gz: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 99)[:-9], r"cannot read .*a\.jsonl\.gz: Compressed file ended"),
        ("a.csv", b"a,b", r"is not a .json, .jsonl, .jsonl.gz or .parquet file"),
        ("missing.jsonl", None, r"cannot read .*missing.jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_error(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        rows.load(tmp_path / name)


def test_ids_are_unique_in_a_file(tmp_path):
    rows.write(tmp_path / "a.jsonl", [OURS, OURS])
    with pytest.raises(ConfigError, match=r":2: instance_id 'h11-1' occurs twice"):
        rows.load(tmp_path / "a.jsonl")


def test_the_digest_tells_contents_apart_and_the_split_key_does_not_tell_bugs_of_one_function_apart():
    other = replace(OURS, id="h11-2", patch=diffs.unified("pkg/a.py", "x = 3\n", "x = 2\n"))
    assert other.digest != OURS.digest
    assert other.split_key == OURS.split_key
    assert replace(other, site="").split_key != replace(OURS, site="").split_key


def test_files_of_tests_come_from_the_test_patch_and_from_the_ids():
    instance = replace(
        OURS, test_patch=TESTS, pass_to_pass=("src/x_test.py::T::test[a b]", "test_x (admin.T)")
    )
    assert instance.test_files == ("src/x_test.py", "tests/test_a.py")
