"""The boards of a training: metrics.jsonl, a progress bar or lines, and TensorBoard or MLflow."""

import json
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

PROGRESS_LINES = 20  # reports of a training without a terminal


def open_loggers(settings: TrainConfig, folder: Path, start: int) -> list[Logger]:
    """The boards that a training tells; what a try that was cut off told of the steps after `start` goes.

    Raises:
        UserError: MLflow was asked for and is not installed, or cannot use its tracking URI.
    """
    mlflow = settings.tracker == "mlflow"
    asked = MlflowLogger(folder, yaml.safe_load(parsing.dump(settings))) if mlflow else TensorBoardLogger(folder, start)
    return [JsonlLogger(folder, start), asked, ProgressLogger(settings.steps, start)]


class JsonlLogger:
    """metrics.jsonl, which everything in this project reads."""

    def __init__(self, folder: Path, start: int) -> None:
        self._path = folder / "metrics.jsonl"
        _keep_through(self._path, start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line."""
        files.append_line(self._path, {"step": step, **values})

    def close(self, finished: bool) -> None:
        """Every line is written already."""


class TensorBoardLogger:
    """`tensorboard --logdir` of the run's folder, or of the one above it, shows these.

    Events are written at once: tensorboardX's own writer does so in a thread, for whose death it would wait for ever.
    """

    def __init__(self, folder: Path, start: int) -> None:
        (folder / "tensorboard").mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "tensorboard" / "events"))
        again = Event(step=start + 1, session_log=SessionLog(status=SessionLog.START))  # hides what came after
        self._writer.write_event(again)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar a name."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.write_event(Event(step=step, wall_time=time.time(), summary=Summary(value=scalars)))
        self._writer.flush()

    def close(self, finished: bool) -> None:
        """Every event is written already."""
        self._writer.close()


class ProgressLogger:
    """A bar with rate and time left on a terminal, elsewhere some lines."""

    def __init__(self, steps: int, start: int) -> None:
        self._bar = tqdm(total=steps, initial=start, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True)
        self._steps = steps

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A step moves the bar; a validation is a line above it."""
        if "seconds" in values:
            self._show(step, values)
        else:
            said = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())
            self._bar.write(f"step {step}  {said}", file=sys.stderr)

    def _show(self, step: int, values: Mapping[str, float]) -> None:
        loss = f"loss {values['loss']:.4f}" if "gradient_norm" in values else "overflow, update left out"
        text = f"{loss}  {values['tokens_per_second']:,.0f} tokens/s"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(1)
        if self._bar.disable and (step % max(self._steps // PROGRESS_LINES, 1) == 0 or step == 1):
            print(f"step {step} of {self._steps}  {text}", file=sys.stderr, flush=True)

    def close(self, finished: bool) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()


def _keep_through(path: Path, step: int) -> None:
    """Drops what a try that was cut off wrote of the steps that are now done again."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
    with files.atomic_file(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except json.JSONDecodeError:  # the last line of a killed process may be cut
        return float("inf")
