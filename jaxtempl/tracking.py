"""Where a training tells how it goes: metrics.jsonl, TensorBoard, and a progress bar or lines."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jaxtempl import files

LINES = 20  # reports of a training without a terminal


class Tracker:
    """Writes each step once, in order; use as a context.

    Args:
        folder: of the run.
        steps: updates in all.
        start: updates done before; lines of later steps, from a try that was cut off, are dropped.
        rate: the schedule of the learning rate.
        peak: operations a second that the devices can do; None where that is not known.
    """

    def __init__(
        self, folder: Path, steps: int, start: int, rate: Callable[[int], Any], peak: float | None = None
    ) -> None:
        from tensorboardX import SummaryWriter  # here, for the training core does without it

        self._path = folder / "metrics.jsonl"
        _keep_through(self._path, start)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self._bar = tqdm(total=steps, initial=start, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True)
        self._steps, self._rate, self._peak = steps, rate, peak
        self._began = self._last = time.perf_counter()
        self._trained = 0.0

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._board.close()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """One update's metrics; `tokens` become tokens a second since the step before, `flops` the share of the peak.

        `training_share` is of the time since the start: what was neither validation nor saving.
        """
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self._trained += seconds
        record = {"step": step, **values, "learning_rate": float(self._rate(step - 1)), "seconds": seconds}
        record["tokens_per_second"] = record.pop("tokens") / seconds
        operations = record.pop("flops")
        if self._peak is not None:
            record["mfu"] = operations / seconds / self._peak
        record["training_share"] = self._trained / (now - self._began)
        self._write(record)
        self._show(record)

    def validated(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of the validation part after an update; the time it took is no training time."""
        self._write({"step": step, **{f"validation_{name}": value for name, value in values.items()}})
        self._line(f"step {step}  " + "  ".join(f"validation {name} {value:.4f}" for name, value in values.items()))
        self.rest()

    def rest(self) -> None:
        """Says that what was done since the last step was not training."""
        self._last = time.perf_counter()

    def _write(self, record: Mapping[str, float | int]) -> None:
        files.append_line(self._path, dict(record))
        for name, value in record.items():
            if name != "step":
                self._board.add_scalar(name, value, int(record["step"]))

    def _show(self, record: Mapping[str, float | int]) -> None:
        loss = f"loss {record['loss']:.4f}" if "gradient_norm" in record else "overflow, update left out"
        text = f"{loss}  {record['tokens_per_second']:,.0f} tokens/s"
        step = int(record["step"])
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(1)
        if self._bar.disable and (step % max(self._steps // LINES, 1) == 0 or step == 1):
            print(f"step {step} of {self._steps}  {text}", file=sys.stderr, flush=True)

    def _line(self, line: str) -> None:
        self._bar.write(line, file=sys.stderr)


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
