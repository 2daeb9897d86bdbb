"""Loggers of a training: metrics.jsonl, a progress bar or lines, and TensorBoard or MLflow."""

import sys
from collections.abc import Mapping
from pathlib import Path

import yaml
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
        from jaxtempl.training.tensorboard_logger import TensorBoardLogger  # imports torch where it is installed

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
