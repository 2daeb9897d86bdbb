"""Loggers of a training: metrics.jsonl, a progress bar or lines, and TensorBoard or MLflow."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import yaml
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tqdm import tqdm

from jaxtempl import files
from jaxtempl.config import parsing
from jaxtempl.config.training import TrainConfig
from jaxtempl.training.mlflow_logger import MlflowLogger
from jaxtempl.training.tracker import Logger

PROGRESS_LINES = 20  # printed by a training without a terminal


def open_loggers(config: TrainConfig, folder: Path, start: int) -> list[Logger]:
    """Return the loggers of a training that resumes after step `start`; later lines of metrics.jsonl are dropped.

    Raises:
        UserError: MLflow is configured and not installed, or cannot use its tracking URI.
    """
    if config.tracker == "mlflow":
        service: Logger = MlflowLogger(folder, yaml.safe_load(parsing.dump(config)))
    else:
        service = TensorBoardLogger(folder, start)
    return [JsonlLogger(folder, start), service, ProgressLogger(config.steps, start)]


class JsonlLogger:
    """Writes metrics.jsonl, which every part of this project reads."""

    def __init__(self, folder: Path, start: int) -> None:
        self._path = folder / "metrics.jsonl"
        _keep_through(self._path, start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line."""
        files.append_line(self._path, {"step": step, **values})

    def close(self, finished: bool) -> None:
        """Do nothing: every line is written already."""


class TensorBoardLogger:
    """Writes events for `tensorboard --logdir` of the run's folder or its parent.

    Events are written synchronously: tensorboardX's own writer uses a thread and waits forever if that dies.
    """

    def __init__(self, folder: Path, start: int) -> None:
        (folder / "tensorboard").mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "tensorboard" / "events"))
        restart = Event(step=start + 1, session_log=SessionLog(status=SessionLog.START))  # hides later events
        self._writer.write_event(restart)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar for each name."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.write_event(Event(step=step, wall_time=time.time(), summary=Summary(value=scalars)))
        self._writer.flush()

    def close(self, finished: bool) -> None:
        """Close the event file."""
        self._writer.close()


class ProgressLogger:
    """Shows a bar with rate and time left on a terminal, and some lines elsewhere."""

    def __init__(self, steps: int, start: int) -> None:
        self._bar = tqdm(total=steps, initial=start, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True)
        self._steps = steps

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Move the bar for a step, or print a line above it for a validation."""
        if "seconds" in values:
            self._show(step, values)
        else:
            text = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())
            self._bar.write(f"step {step}  {text}", file=sys.stderr)

    def _show(self, step: int, values: Mapping[str, float]) -> None:
        loss = f"loss {values['loss']:.4f}" if "gradient_norm" in values else "overflow, update skipped"
        text = f"{loss}  {values['tokens_per_second']:,.0f} tokens/s"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(1)
        if self._bar.disable and (step % max(self._steps // PROGRESS_LINES, 1) == 0 or step == 1):
            print(f"step {step} of {self._steps}  {text}", file=sys.stderr, flush=True)

    def close(self, finished: bool) -> None:
        """Close the bar."""
        self._bar.close()


def _keep_through(path: Path, step: int) -> None:
    """Drop the lines of later steps, which an interrupted training wrote and this one repeats."""
    if path.exists():
        files.write_lines(path, [record for record in files.read_lines(path) if record["step"] <= step])
