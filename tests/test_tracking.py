"""What a training tells, read back by the libraries of those it is told to."""

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

ASKED = dataclasses.replace(CONFIG, tracker="mlflow")
TIMES = {"seconds", "tokens_per_second", "data_seconds", "training_share"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """MLflow with a store of files, which its light package has; named as users name a server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/store")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "support")
    return MlflowClient()


def told(client: MlflowClient, run_id: str) -> dict[tuple[str, int], list[float]]:
    """All values of each metric at each step."""
    found: dict[tuple[str, int], list[float]] = {}
    for name in client.get_run(run_id).data.metrics:
        for metric in client.get_metric_history(run_id, name):
            found.setdefault((name, metric.step), []).append(metric.value)
    return found


def run_id(folder: Path) -> str:
    return json.loads((folder / "mlflow.json").read_text())["run_id"]


def step(number: int) -> dict[str, float]:
    return {"loss": float(number), "gradient_norm": 1.0, "tokens": 8.0, "flops": 1e3}


def test_mlflow_shows_what_metrics_hold(tmp_path: Path, server: MlflowClient) -> None:
    rig = Rig(tmp_path / "adapt-tiny", config=ASKED)
    rig.fit(rig.fresh(), steps=3)
    lines = {(name, line["step"]): [value] for line in rig.lines() for name, value in line.items() if name != "step"}
    assert told(server, run_id(rig.folder)) == lines
    made = server.get_run(run_id(rig.folder))
    assert made.data.params == {k: str(v) for k, v in yaml.safe_load(parsing.dump(ASKED)).items() if v != ""}
    assert (made.info.run_name, made.info.status) == ("adapt-tiny", "FINISHED")
    assert server.get_experiment(made.info.experiment_id).name == "support"
    assert not (rig.folder / "tensorboard").exists()


def test_a_resumed_training_goes_on_in_the_same_mlflow_run(tmp_path: Path, server: MlflowClient) -> None:
    """It was cut off at step 5 with the state of step 3: steps 4 and 5 are done, but not told, again."""
    rig = Rig(tmp_path / "run", config=ASKED)
    rig.fit(rig.fresh(), steps=3, plan=Schedule(6, save_every=99, recover_seconds=0.0))
    rig.fit(state.restore_state(rig.fresh(), rig.checkpoints, 3), steps=6)
    first = run_id(rig.folder)
    rig.fit(state.restore_state(rig.fresh(), rig.checkpoints, 3), steps=6)
    assert run_id(rig.folder) == first
    assert len(server.search_runs([server.get_run(first).info.experiment_id])) == 1
    found = told(server, first)
    assert {at for _, at in found} == set(range(1, 7))
    assert all(len(values) == 1 for values in found.values())
    exact = {(k, line["step"]): [v] for line in rig.lines() for k, v in line.items() if k not in TIMES | {"step"}}
    assert {key: value for key, value in found.items() if key in exact} == exact


def test_a_failed_training_is_no_finished_mlflow_run(tmp_path: Path, server: MlflowClient) -> None:
    with pytest.raises(KeyboardInterrupt), Tracker([MlflowLogger(tmp_path, {})], lambda _: 0.1) as tracker:
        tracker.log_step(1, step(1))
        raise KeyboardInterrupt
    assert server.get_run(run_id(tmp_path)).info.status == "FAILED"


def test_a_validation_that_was_cut_off_is_told_with_its_step(tmp_path: Path, server: MlflowClient) -> None:
    for validated in (False, True):
        with Tracker([MlflowLogger(tmp_path, {})], lambda _: 0.1) as tracker:
            tracker.log_step(1, step(1))
            if validated:
                tracker.log_validation(1, {"loss": 2.0})
    found = told(server, run_id(tmp_path))
    assert found["validation_loss", 1] == [2.0]
    assert found["loss", 1] == [1.0]


def test_a_server_that_cannot_be_reached_is_told_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setattr(mlflow_logger, "SEND_SECONDS", 0.0)
    with Tracker(loggers.open_loggers(ASKED, tmp_path, 0), lambda _: 0.1) as tracker:
        for number in range(1, 4):
            tracker.log_step(number, step(number))
    said = capsys.readouterr().err
    assert said.count("warning: MLflow fails") == 1
    assert "127.0.0.1" in said
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_what_a_server_did_not_take_is_sent_again(
    tmp_path: Path, server: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = iter([True, True, False, False, False])
    send = MlflowClient.log_batch

    def sometimes(*given: Any, **named: Any) -> Any:
        if next(broken):
            raise ConnectionError("the server is down")
        return send(*given, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", sometimes)
    board = MlflowLogger(tmp_path, {"size": "nano"})
    board._sending.result()
    board.write(1, {"loss": 3.0})
    monkeypatch.setattr(mlflow_logger, "SEND_SECONDS", 0.0)
    board.write(2, {"loss": 2.0})
    board._sending.result()
    board.close(True)
    found = told(server, run_id(tmp_path))
    assert found == {("loss", 1): [3.0], ("loss", 2): [2.0]}
    assert server.get_run(run_id(tmp_path)).data.params == {"size": "nano"}
    assert capsys.readouterr().err.count("warning") == 1


def test_a_store_that_mlflow_does_not_have_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI to your server") as raised:
        loggers.open_loggers(ASKED, tmp_path, 0)
    assert "\n" not in str(raised.value)


def test_mlflow_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match="pip install mlflow-skinny"):
        loggers.open_loggers(ASKED, tmp_path, 0)
    for board in loggers.open_loggers(CONFIG, tmp_path, 0):
        board.close(finished=True)


def test_tensorboard_shows_what_metrics_hold(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.fit(rig.fresh(), steps=2)
    events = [event for file in (rig.folder / "tensorboard").iterdir() for event in tensorboard(file)]
    shown = {(event.step, value.tag): value.simple_value for event in events for value in event.summary.value}
    for line in rig.lines():
        assert shown[line["step"], "loss"] == pytest.approx(line["loss"])
    assert {tag for _, tag in shown} == set(rig.lines()[0]) - {"step"}


def tensorboard(file: Path) -> Iterator[Any]:
    """Events of a TensorBoard file: each is a length, a checksum of it, the message, and a checksum of that."""
    content = file.read_bytes()
    while content:
        size = int.from_bytes(content[:8], "little")
        yield Event.FromString(content[12 : 12 + size])
        content = content[16 + size :]


def test_a_step_is_told_with_its_speed_and_share_of_the_peak(tmp_path: Path) -> None:
    with Tracker(loggers.open_loggers(CONFIG, tmp_path, 0), lambda done: done / 10, peak=1e6) as tracker:
        tracker.log_step(3, {**step(3), "data_seconds": 0.0})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["learning_rate"] == 0.2
    assert line["tokens_per_second"] == pytest.approx(8 / line["seconds"])
    assert line["mfu"] == pytest.approx(1e3 / line["seconds"] / 1e6)
    assert 0 < line["training_share"] <= 1


def test_a_process_without_boards_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with Tracker([], lambda _: 0.1) as tracker:
        tracker.log_step(1, step(1))
        tracker.log_validation(1, {"loss": 1.0})
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
