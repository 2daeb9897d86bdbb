"""The subject of one evaluation: a checkpoint of a run and a dataset, with the time that each part takes."""

import contextlib
import sys
import time
from collections.abc import Generator
from typing import NamedTuple

from jaxtempl.config.evaluation import EvaluateConfig
from jaxtempl.data.dataset import Dataset
from jaxtempl.runs.run import Run

REPORT, PREDICTIONS, PAGE = "report.json", "predictions.jsonl", "index.html"  # the files of a report's folder


class Subject(NamedTuple):
    """A checkpoint and the dataset that it is evaluated on.

    Attributes:
        config: configuration of the evaluation.
        run: the run.
        step: step of its checkpoint.
        dataset: dataset of the evaluation.
        progress: whether to show progress bars.
        seconds: seconds that each part has taken so far.
    """

    config: EvaluateConfig
    run: Run
    step: int
    dataset: Dataset
    progress: bool
    seconds: dict[str, float]

    @property
    def is_trained_on(self) -> bool:
        """Return whether the run was trained on the dataset."""
        return self.dataset.fingerprint in self.run.manifest["datasets"].values()

    @contextlib.contextmanager
    def timed(self, part: str) -> Generator[None]:
        """Add the seconds of a block to those of `part`."""
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


def note(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr)
