"""The metrics of each step, with its speed and its share of the time, sent to every logger."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtempl.errors import UserError


@runtime_checkable
class Logger(Protocol):
    """A destination of metrics: a file, a screen, a tracking service."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a step or of a validation after it; steps come in order, each name once a step."""
        ...

    def close(self, finished: bool) -> None:
        """Finish writing; `finished` states whether the training ended normally."""
        ...


class Tracker:
    """Sends the metrics of each step to all loggers, in order; use it as a context.

    Args:
        loggers: Loggers of this process; empty if the process does not log.
        schedule: Learning rate of each update, counted from 0.
        peak: Operations a second of all devices; None if unknown.
    """

    def __init__(self, loggers: Sequence[Logger], schedule: Callable[[int], Any], peak: float | None = None) -> None:
        self._loggers, self._schedule, self._peak = loggers, schedule, peak
        self._start = self._last = time.perf_counter()
        self._training_seconds = 0.0

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, error: object, *_: object) -> None:
        for logger in self._loggers:
            with contextlib.suppress(OSError):  # `_write` has reported it
                logger.close(error is None)

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of an update; `tokens` become tokens a second since the previous step, `flops` the MFU.

        `training_share` is the share of the time since the start that was neither validation nor saving.
        """
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self._training_seconds += seconds
        record = {**values, "learning_rate": float(self._schedule(step - 1)), "seconds": seconds}
        record["tokens_per_second"] = record.pop("tokens") / seconds
        operations = record.pop("flops")
        if self._peak is not None:
            record["mfu"] = operations / seconds / self._peak
        record["training_share"] = self._training_seconds / (now - self._start)
        self._write(step, record)

    def log_validation(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of a validation after an update; its time does not count as training."""
        self._write(step, {f"validation_{name}": value for name, value in values.items()})
        self.pause()

    def pause(self) -> None:
        """Exclude the time since the last step from the training time."""
        self._last = time.perf_counter()

    def _write(self, step: int, record: Mapping[str, float]) -> None:
        try:
            for logger in self._loggers:
                logger.write(step, record)
        except OSError as error:
            raise UserError(
                f"the metrics of step {step} could not be written: {error.strerror or error}; make room or give "
                "permission, and start the same command again"
            ) from error
