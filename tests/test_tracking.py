"""MLflow and TensorBoard receive the metrics of a training, as their own libraries read them back."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from rig import CONFIG, Rig
from tensorboardX.proto.event_pb2 import Event

from jaxtempl.config import parsing
from jaxtempl.errors import UserError
from jaxtempl.training import loggers, mlflow_logger, state
from jaxtempl.training.loop import Schedule
from jaxtempl.training.mlflow_logger import MlflowLogger
from jaxtempl.training.tracker import Tracker

MLFLOW_CONFIG = dataclasses.replace(CONFIG, tracker="mlflow")
TIMES = {"seconds", "tokens_per_second", "data_seconds", "training_share"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """Return a client of MLflow's file store, configured as users configure a server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/store")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "support")
    return MlflowClient()


def stored(client: MlflowClient, run_id: str) -> dict[tuple[str, int], list[float]]:
    """Return all values of each metric at each step."""
    values: dict[tuple[str, int], list[float]] = {}
    for name in client.get_run(run_id).data.metrics:
        for metric in client.get_metric_history(run_id, name):
            values.setdefault((name, metric.step), []).append(metric.value)
    return values


def run_id(folder: Path) -> str:
    return json.loads((folder / "mlflow.json").read_text())["run_id"]


def step(number: int) -> dict[str, float]:
    return {"loss": float(number), "gradient_norm": 1.0, "tokens": 8.0, "flops": 1e3}


def test_mlflow_stores_the_metrics_of_metrics_jsonl(tmp_path: Path, server: MlflowClient) -> None:
    rig = Rig(tmp_path / "adapt-tiny", config=MLFLOW_CONFIG)
    rig.fit(rig.fresh(), steps=3)
    lines = {(name, line["step"]): [value] for line in rig.lines() for name, value in line.items() if name != "step"}
    assert stored(server, run_id(rig.folder)) == lines
    mlflow_run = server.get_run(run_id(rig.folder))
    assert mlflow_run.data.params == {
        k: str(v) for k, v in yaml.safe_load(parsing.dump(MLFLOW_CONFIG)).items() if v != ""
    }
    assert (mlflow_run.info.run_name, mlflow_run.info.status) == ("adapt-tiny", "FINISHED")
    assert server.get_experiment(mlflow_run.info.experiment_id).name == "support"
    assert not (rig.folder / "tensorboard").exists()


def test_a_resumed_training_continues_its_mlflow_run(tmp_path: Path, server: MlflowClient) -> None:
    """After an interruption at step 5, the run resumes from step 3: steps 4 and 5 repeat, but are sent once."""
    rig = Rig(tmp_path / "run", config=MLFLOW_CONFIG)
    rig.fit(rig.fresh(), steps=3, plan=Schedule(6, save_every=99, recover_seconds=0.0))
    rig.fit(state.restore_state(rig.fresh(), rig.checkpoints, 3), steps=6)
    first = run_id(rig.folder)
    rig.fit(state.restore_state(rig.fresh(), rig.checkpoints, 3), steps=6)
    assert run_id(rig.folder) == first
    assert len(server.search_runs([server.get_run(first).info.experiment_id])) == 1
    metrics = stored(server, first)
    assert {at for _, at in metrics} == set(range(1, 7))
    assert all(len(values) == 1 for values in metrics.values())
    exact = {(k, line["step"]): [v] for line in rig.lines() for k, v in line.items() if k not in TIMES | {"step"}}
    assert {key: value for key, value in metrics.items() if key in exact} == exact


def test_a_failed_training_is_a_failed_mlflow_run(tmp_path: Path, server: MlflowClient) -> None:
    with pytest.raises(KeyboardInterrupt), Tracker([MlflowLogger(tmp_path, {})], lambda _: 0.1) as tracker:
        tracker.log_step(1, step(1))
        raise KeyboardInterrupt
    assert server.get_run(run_id(tmp_path)).info.status == "FAILED"


@pytest.mark.parametrize("end", ['{"step": 3, "lo', "\0" * 100])
def test_a_resumed_run_drops_later_and_torn_lines(tmp_path: Path, end: str) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": number, "loss": number / 3}) + "\n" for number in (1, 2, 3)]
    path.write_text("".join(lines) + end)
    logger = loggers.JsonlLogger(tmp_path, 2)
    assert path.read_text() == "".join(lines[:2])
    logger.write(3, {"loss": 1.0})
    assert path.read_text() == "".join(lines)


def test_an_interrupted_validation_is_logged_with_its_step(tmp_path: Path, server: MlflowClient) -> None:
    for validated in (False, True):
        with Tracker([MlflowLogger(tmp_path, {})], lambda _: 0.1) as tracker:
            tracker.log_step(1, step(1))
            if validated:
                tracker.log_validation(1, {"loss": 2.0})
    metrics = stored(server, run_id(tmp_path))
    assert metrics["validation_loss", 1] == [2.0]
    assert metrics["loss", 1] == [1.0]


def test_an_unreachable_server_is_reported_once_and_training_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setattr(mlflow_logger, "SEND_SECONDS", 0.0)
    with Tracker(loggers.open_loggers(MLFLOW_CONFIG, tmp_path, 0), lambda _: 0.1) as tracker:
        for number in range(1, 4):
            tracker.log_step(number, step(number))
    stderr = capsys.readouterr().err
    assert stderr.count("warning: MLflow fails") == 1
    assert "127.0.0.1" in stderr
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_metrics_that_a_server_rejected_are_sent_again(
    tmp_path: Path, server: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = iter([True, True, False, False, False])
    send = MlflowClient.log_batch

    def sometimes(*given: Any, **named: Any) -> Any:
        if next(broken):
            raise ConnectionError("the server is down")
        return send(*given, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", sometimes)
    logger = MlflowLogger(tmp_path, {"size": "nano"})
    logger._sending.result()
    logger.write(1, {"loss": 3.0})
    monkeypatch.setattr(mlflow_logger, "SEND_SECONDS", 0.0)
    logger.write(2, {"loss": 2.0})
    logger._sending.result()
    logger.close(True)
    metrics = stored(server, run_id(tmp_path))
    assert metrics == {("loss", 1): [3.0], ("loss", 2): [2.0]}
    assert server.get_run(run_id(tmp_path)).data.params == {"size": "nano"}
    assert capsys.readouterr().err.count("warning") == 1


def test_an_unknown_mlflow_store_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI to your server") as raised:
        loggers.open_loggers(MLFLOW_CONFIG, tmp_path, 0)
    assert "\n" not in str(raised.value)


def test_a_missing_mlflow_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match="pip install mlflow-skinny"):
        loggers.open_loggers(MLFLOW_CONFIG, tmp_path, 0)
    for logger in loggers.open_loggers(CONFIG, tmp_path, 0):
        logger.close(finished=True)


def test_tensorboard_stores_the_metrics_of_metrics_jsonl(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.fit(rig.fresh(), steps=2)
    events = [event for file in (rig.folder / "tensorboard").iterdir() for event in tensorboard(file)]
    shown = {(event.step, value.tag): value.simple_value for event in events for value in event.summary.value}
    for line in rig.lines():
        assert shown[line["step"], "loss"] == pytest.approx(line["loss"])
    assert {tag for _, tag in shown} == set(rig.lines()[0]) - {"step"}


def tensorboard(file: Path) -> Iterator[Any]:
    """Yield the events of a TensorBoard file: each is a length, its checksum, a message and its checksum."""
    content = file.read_bytes()
    while content:
        size = int.from_bytes(content[:8], "little")
        yield Event.FromString(content[12 : 12 + size])
        content = content[16 + size :]


def test_a_step_is_logged_with_its_speed_and_mfu(tmp_path: Path) -> None:
    with Tracker(loggers.open_loggers(CONFIG, tmp_path, 0), lambda done: done / 10, peak=1e6) as tracker:
        tracker.log_step(3, {**step(3), "data_seconds": 0.0})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["learning_rate"] == 0.2
    assert line["tokens_per_second"] == pytest.approx(8 / line["seconds"])
    assert line["mfu"] == pytest.approx(1e3 / line["seconds"] / 1e6)
    assert 0 < line["training_share"] <= 1


def test_a_process_without_loggers_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with Tracker([], lambda _: 0.1) as tracker:
        tracker.log_step(1, step(1))
        tracker.log_validation(1, {"loss": 1.0})
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def progress_lines(seconds: float, steps: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what a training prints without a terminal whose first step takes 20 s and each other one `seconds`."""
    now = [0.0]
    logger = loggers.ProgressLogger("adapted", steps, 0, lambda: now[0])
    for number in range(1, steps + 1):
        now[0] += 20 if number == 1 else seconds
        values = {"loss": 2.5, "gradient_norm": 1.0, "tokens_per_second": 9_700.0, "seconds": seconds}
        logger.write(number, values)
    logger.write(steps, {"validation_loss": 1.25})
    logger.close(finished=True)
    return capsys.readouterr().err.splitlines()


def test_progress_states_the_run_the_step_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert progress_lines(0.25, 401, capsys) == [
        "adapted: step 1 of 401, loss 2.5000, 9,700 tokens/s",
        "adapted: step 10 of 401, 01:37 left, loss 2.5000, 9,700 tokens/s",  # the first step is no measure of the rate
        *(
            f"adapted: step {step} of 401, {left} left, loss 2.5000, 9,700 tokens/s"
            for step, left in ((70, "01:22"), (130, "01:07"), (190, "00:52"), (250, "00:37"), (310, "00:22"))
        ),
        "adapted: step 370 of 401, 00:07 left, loss 2.5000, 9,700 tokens/s",
        "adapted: step 401 of 401, loss 2.5000, 9,700 tokens/s",
        "adapted: step 401 of 401, validation loss 1.2500",
    ]


def test_the_longer_a_training_takes_the_rarer_its_progress_lines_are(capsys: pytest.CaptureFixture[str]) -> None:
    lines = progress_lines(60, 14_500, capsys)  # ten days
    assert 60 < len(lines) < 90
    assert "adapted: step 10 of 14,500, 241:30:00 left" in lines[9]


def test_progress_on_a_terminal_is_one_line_that_is_rewritten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    logger = loggers.ProgressLogger("adapted", 3, 0)
    for number in (1, 2, 3):
        logger.write(number, {"loss": 2.5, "gradient_norm": 1.0, "tokens_per_second": 9_700.0, "seconds": 1.0})
    logger.close(finished=True)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert shown.split("\r")[-1].startswith("adapted: 100%|")
    assert "3/3" in shown
    assert "loss 2.5000, 9,700 tokens/s" in shown
