"""Loggers of a training: metrics.jsonl, a progress line, and TensorBoard or MLflow."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml
from tqdm import tqdm

from jaxtempl import files
from jaxtempl.config import parsing
from jaxtempl.config.training import TrainConfig
from jaxtempl.training.mlflow_logger import MlflowLogger
from jaxtempl.training.tracker import Logger

# Without a terminal: the step that the first forecast follows, and the shortest time between lines.
FORECAST_STEP, LINE_SECONDS = 10, 15.0


def open_loggers(config: TrainConfig, folder: Path, start: int) -> list[Logger]:
    """Return the loggers of a training that resumes after step `start`; later lines of metrics.jsonl are dropped.

    Raises:
        UserError: MLflow is configured and not installed, or cannot use its tracking URI.
    """
    if config.tracker == "mlflow":
        service: Logger = MlflowLogger(folder, yaml.safe_load(parsing.dump(config)))
    else:
        from jaxtempl.training.tensorboard_logger import TensorBoardLogger  # imports torch where it is installed

        service = TensorBoardLogger(folder, start)
    return [JsonlLogger(folder, start), service, ProgressLogger(folder.name, config.steps, start)]


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


class ProgressLogger:
    """Shows what is trained, how far it is and how long it will take.

    On a terminal this is one line that is rewritten. Elsewhere a line is printed after the first steps, and then
    whenever the time since the last line reaches LINE_SECONDS and a tenth of the time so far.

    Args:
        name: Name of the run.
        steps: Total number of steps.
        start: Step that the training resumes after.
        clock: Returns the current time in seconds; tests replace it.
    """

    def __init__(self, name: str, steps: int, start: int, clock: Callable[[], float] = time.monotonic) -> None:
        hidden = not sys.stderr.isatty()
        self._bar = tqdm(desc=name, total=steps, initial=start, unit="step", disable=hidden, dynamic_ncols=True)
        self._name, self._steps, self._clock = name, steps, clock
        self._start = self._printed = clock()
        self._first: tuple[int, float] | None = None  # the first step and its end: it compiles, so the rate omits it

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Show a step, or print a line for a validation."""
        if "seconds" in values:
            self._show(step, values)
        else:
            text = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())
            self._bar.write(f"{self._name}: step {step:,} of {self._steps:,}, {text}", file=sys.stderr)

    def _show(self, step: int, values: Mapping[str, float]) -> None:
        loss = f"loss {values['loss']:.4f}" if "gradient_norm" in values else "overflow, update skipped"
        text = f"{loss}, {values['tokens_per_second']:,.0f} tokens/s"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(1)
        now = self._clock()
        self._first = self._first or (step, now)
        if self._bar.disable and self._is_due(step, now):
            self._printed = now
            left = self._time_left(step, now)
            print(f"{self._name}: step {step:,} of {self._steps:,}{left}, {text}", file=sys.stderr, flush=True)

    def _is_due(self, step: int, now: float) -> bool:
        waited = now - self._printed
        return step in (1, FORECAST_STEP, self._steps) or waited >= max(LINE_SECONDS, (now - self._start) / 10)

    def _time_left(self, step: int, now: float) -> str:
        """Return `, MM:SS left` from the mean time of the steps after the first, or nothing before there is one."""
        first, end = self._first or (step, now)
        if step == first or step == self._steps:
            return ""
        return f", {tqdm.format_interval((now - end) / (step - first) * (self._steps - step))} left"

    def close(self, finished: bool) -> None:
        """Close the bar."""
        self._bar.close()


def _keep_through(path: Path, step: int) -> None:
    """Drop the lines of later steps, which an interrupted training wrote and this one repeats."""
    if path.exists():
        files.write_lines(path, [record for record in files.read_lines(path) if record["step"] <= step])
