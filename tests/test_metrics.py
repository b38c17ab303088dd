import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import CheckpointError, ConfigError, MissingExtra
from agentrl.records.metric_names import METRICS, check_names
from agentrl.records.metrics import MetricsLog, MLflow, TensorBoard, WandB, read_metrics


def test_a_record_is_one_line_in_order_of_name_and_wall_clock_is_kept_apart(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(
            0,
            "rl",
            {
                "time/update_s": 1.5,
                "rollout/turns": np.float32(2),
                "learner/loss": float("nan"),
                "learner/lr": 3,
                "learner/tokens_per_s": 9.0,
            },
        )
        log.write(1, "rl", {"time/update_s": 1.25})
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"update": 0, "stage": "rl", "learner/loss": null, "learner/lr": 3.0, "rollout/turns": 2.0}\n'
    )
    assert [record["time/update_s"] for record in read_metrics(tmp_path / "timing.jsonl")] == [1.5, 1.25]
    assert read_metrics(tmp_path / "timing.jsonl")[0]["learner/tokens_per_s"] == 9.0


@given(
    st.dictionaries(
        st.sampled_from(sorted(name for name in METRICS if not name.endswith(("*", "_s")))),
        st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_numbers_are_read_back_exactly(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("run")
    with MetricsLog(folder) as log:
        log.write(7, "rl", values)
    assert read_metrics(folder / "metrics.jsonl") == (
        [{"update": 7, "stage": "rl"} | values] if values else []
    )


def test_a_metric_that_nobody_explained_is_refused_and_not_written(tmp_path):
    with (
        MetricsLog(tmp_path) as log,
        pytest.raises(ConfigError, match="no metric is named 'reward', 'rollout/speed'"),
    ):
        log.write(0, "rl", {"rollout/turns": 1.0, "reward": 1.0, "rollout/speed": 2.0})
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_every_meaning_is_written_down():
    assert all(meaning and not meaning.endswith(".") for meaning in METRICS.values())
    check_names([name.replace("*", "anything/at/all") for name in METRICS])


def test_a_resumed_run_forgets_what_was_not_committed(tmp_path):
    def write(log, updates):
        for update in updates:
            log.write(update, "rl", {"rollout/turns": update / 3, "time/update_s": 1.0})

    with MetricsLog(tmp_path / "killed") as log:
        write(log, range(5))
    for name in ("metrics.jsonl", "timing.jsonl"):
        with (tmp_path / "killed" / name).open("ab") as file:
            file.write(b'{"update": 5, "sta')
    with MetricsLog(tmp_path / "killed") as log:
        log.drop_after(2)
        write(log, range(3, 6))
        log.sync()
    with MetricsLog(tmp_path / "whole") as log:
        write(log, range(6))
    assert (tmp_path / "killed" / "metrics.jsonl").read_bytes() == (
        tmp_path / "whole" / "metrics.jsonl"
    ).read_bytes()
    assert [r["update"] for r in read_metrics(tmp_path / "killed" / "timing.jsonl")] == list(range(6))
    with MetricsLog(tmp_path / "killed") as log:
        log.drop_after(-1)
    assert (tmp_path / "killed" / "metrics.jsonl").read_bytes() == b""


@pytest.mark.parametrize("length", range(40))
def test_a_line_torn_at_any_byte_is_repaired(tmp_path, length):
    with MetricsLog(tmp_path) as log:
        log.write(0, "rl", {"rollout/turns": 1.0})
        log.write(1, "rl", {"rollout/turns": 2.0})
    path = tmp_path / "metrics.jsonl"
    first = path.read_bytes().index(b"\n") + 1
    path.write_bytes(path.read_bytes()[: first + length])
    with MetricsLog(tmp_path) as log:
        log.write(1, "rl", {"rollout/turns": 2.0})
    assert [record["update"] for record in read_metrics(path)] == [0, 1]


def test_a_broken_line_that_is_not_the_last_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"update": 0, "stage": "rl"}\n{"upd\n{"update": 2, "stage": "rl"}\n'
    )
    with (
        MetricsLog(tmp_path) as log,
        pytest.raises(CheckpointError, match=r"line 2 of .*metrics\.jsonl is not JSON"),
    ):
        log.drop_after(1)


def test_a_full_disk_is_one_clear_error(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with (
        MetricsLog(tmp_path) as log,
        pytest.raises(
            ConfigError, match=r"cannot write .*metrics\.jsonl: no space left on device; free space"
        ),
    ):
        log.write(0, "rl", {"rollout/turns": 1.0})


def test_tensorboard_reads_what_was_written_and_a_resume_hides_what_was_dropped(tmp_path):
    pytest.importorskip("tensorboardX")
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with MetricsLog(tmp_path, [TensorBoard()]) as log:
        for update in range(4):
            log.write(update, "rl", {"rollout/success": 0.25, "time/update_s": 2.0})
    with MetricsLog(tmp_path, [TensorBoard()]) as log:
        log.drop_after(1)
        log.write(2, "rl", {"rollout/success": 0.75, "time/update_s": 2.0})
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("rollout/success")] == [
        (0, 0.25),
        (1, 0.25),
        (2, 0.75),
    ]
    assert len(events.Scalars("time/update_s")) == 3


@pytest.mark.parametrize(
    ("sink", "module"),
    [(TensorBoard(), "tensorboardX"), (WandB(project="p"), "wandb"), (MLflow(experiment="e"), "mlflow")],
)
def test_a_sink_whose_package_is_missing_names_the_extra(tmp_path, monkeypatch, sink, module):
    monkeypatch.setitem(sys.modules, module, None)
    with (
        MetricsLog(tmp_path, [sink]) as log,
        pytest.raises(MissingExtra, match=r"pip install '\.\[(train|wandb|mlflow)\]'"),
    ):
        log.write(0, "rl", {"rollout/turns": 1.0})


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the wandb extra is not installed")
@pytest.mark.filterwarnings("default")
def test_weights_and_biases_keeps_records_offline(tmp_path):
    with MetricsLog(tmp_path, [WandB(project="p", mode="offline")]) as log:
        log.write(0, "rl", {"rollout/turns": 1.0})
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="the mlflow extra is not installed")
@pytest.mark.filterwarnings("default")
def test_mlflow_goes_on_in_the_same_run_after_a_resume(tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for update in range(2):
        with MetricsLog(tmp_path / "run", [MLflow(experiment="e", tracking_uri=uri)]) as log:
            log.drop_after(update - 1)
            log.write(update, "rl", {"rollout/turns": float(update)})
    history = MlflowClient(uri).get_metric_history(
        (tmp_path / "run" / "mlflow_run").read_text(), "rollout/turns"
    )
    assert [(point.step, point.value) for point in history] == [(0, 0.0), (1, 1.0)]
