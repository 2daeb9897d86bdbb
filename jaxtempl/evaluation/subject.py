"""What one evaluation is about: the run, its checkpoint, the dataset, and the time of each part."""

import contextlib
import sys
import time
from collections.abc import Generator
from typing import NamedTuple

from jaxtempl.config.evaluation import EvaluateConfig
from jaxtempl.data.dataset import Dataset
from jaxtempl.runs.run import Run

REPORT, PREDICTIONS, PAGE = "report.json", "predictions.jsonl", "index.html"  # all that a report's folder holds


class Subject(NamedTuple):
    """What is evaluated, on what.

    Attributes:
        config: what was asked.
        run: the run.
        step: its checkpoint.
        dataset: what it is measured on.
        progress: whether to show bars.
        seconds: of each part of the work, filled as it goes.
    """

    config: EvaluateConfig
    run: Run
    step: int
    dataset: Dataset
    progress: bool
    seconds: dict[str, float]

    @property
    def is_trained_on(self) -> bool:
        """Whether the dataset is one that the run was trained on."""
        return self.dataset.fingerprint in self.run.manifest["datasets"].values()

    @contextlib.contextmanager
    def timed(self, part: str) -> Generator[None]:
        """Adds the seconds of a block to those of `part`."""
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


def note(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr)
