"""What each step of a training comes to: its metrics, speed, and share of the time, told to every board."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtempl.errors import UserError


@runtime_checkable
class Logger(Protocol):
    """Where the numbers of a training are told: a file, a screen, a tracking service."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a step, or of the validation after it; each name once a step, steps in order."""
        ...

    def close(self, finished: bool) -> None:
        """Nothing more comes; `finished` says whether the training ended as it should."""
        ...


class Tracker:
    """Tells each step once, in order; use as a context.

    Args:
        boards: what is told, from `boards.opened`; none in a process that is to be silent.
        rate: the schedule of the learning rate.
        peak: operations a second that the devices can do; None where that is not known.
    """

    def __init__(self, boards: Sequence[Logger], rate: Callable[[int], Any], peak: float | None = None) -> None:
        self._boards, self._rate, self._peak = boards, rate, peak
        self._began = self._last = time.perf_counter()
        self._trained = 0.0

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, error: object, *_: object) -> None:
        for board in self._boards:
            with contextlib.suppress(OSError):  # what could not be written was told
                board.close(error is None)

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        """One update's metrics; `tokens` become tokens a second since the step before, `flops` the share of the peak.

        `training_share` is of the time since the start: what was neither validation nor saving.
        """
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self._trained += seconds
        record = {**values, "learning_rate": float(self._rate(step - 1)), "seconds": seconds}
        record["tokens_per_second"] = record.pop("tokens") / seconds
        operations = record.pop("flops")
        if self._peak is not None:
            record["mfu"] = operations / seconds / self._peak
        record["training_share"] = self._trained / (now - self._began)
        self._write(step, record)

    def log_validation(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of the validation part after an update; the time it took is no training time."""
        self._write(step, {f"validation_{name}": value for name, value in values.items()})
        self.pause()

    def pause(self) -> None:
        """Says that what was done since the last step was not training."""
        self._last = time.perf_counter()

    def _write(self, step: int, record: Mapping[str, float]) -> None:
        try:
            for board in self._boards:
                board.write(step, record)
        except OSError as error:
            raise UserError(
                f"the metrics of step {step} could not be written: {error.strerror or error}; make room or give "
                "permission, and start the same command again"
            ) from error
