"""MLflow as a board; the library is needed only when it is asked for.

Server, experiment and credentials are what MLflow's own environment variables say (`MLFLOW_TRACKING_URI`,
`MLFLOW_EXPERIMENT_NAME` and so on) and MLflow's own defaults where they say nothing. A training that goes on does so in
the same MLflow run, whose id `mlflow.json` in the run's folder remembers.
"""

import importlib
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jaxtempl import files
from jaxtempl.errors import UserError

SECONDS = 5.0  # between sendings: a request a step would be hundreds a second for small models


class MlflowLogger:
    """Collects metrics and sends them from a thread of its own, so that no server holds up a training or ends it.

    What could not be sent is kept and tried again; the first failure is told.

    Args:
        folder: of the run; its name is the MLflow run's.
        params: the resolved config.
    """

    def __init__(self, folder: Path, params: Mapping[str, Any]) -> None:
        self._mlflow, self._client = _connected()
        self._folder, self._params = folder, params
        self._waiting: list[Any] = []
        self._there: dict[str, int] | None = None  # the last step that MLflow has of each name, once it has answered
        self._warned = False
        self._thread = ThreadPoolExecutor(1)
        self._sending: Future[None] = self._thread.submit(self._send)
        self._asked = time.monotonic()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps the metrics until the next sending."""
        now = int(time.time() * 1000)
        self._waiting += [self._mlflow.entities.Metric(name, value, now, step) for name, value in values.items()]
        if time.monotonic() - self._asked >= SECONDS and self._sending.done():
            self._sending, self._asked = self._thread.submit(self._send), time.monotonic()

    def close(self, finished: bool) -> None:
        """Sends the rest and ends the MLflow run; waits as long as MLflow tries."""
        self._thread.submit(self._send)
        self._thread.submit(self._end, "FINISHED" if finished else "FAILED")
        self._thread.shutdown()

    def _send(self) -> None:
        try:
            if self._there is None:
                self._there = self._opened()
            run_id = self._mlflow.active_run().info.run_id
            batch = list(self._waiting)
            # MLflow forgets nothing, so a step that is done again would be there twice.
            new = [metric for metric in batch if metric.step > self._there.get(metric.key, -1)]
            self._client.log_batch(run_id, new)
            del self._waiting[: len(batch)]
        except Exception as error:  # whatever the library under MLflow raises, training goes on
            self._warn(error)

    def _opened(self) -> dict[str, int]:
        """Starts the MLflow run, or goes on with the one that the folder remembers; the last step of each metric."""
        kept = self._folder / "mlflow.json"
        known = files.read_json(kept)["run_id"] if kept.exists() else None
        run = self._mlflow.active_run() or self._mlflow.start_run(known, run_name=None if known else self._folder.name)
        run_id: str = run.info.run_id
        files.write_json(kept, {"run_id": run_id})
        if not run.data.params:
            said = {name: value for name, value in self._params.items() if value not in ("", None)}
            self._client.log_batch(run_id, params=[self._mlflow.entities.Param(k, str(v)) for k, v in said.items()])
        history = self._client.get_metric_history
        return {name: max(metric.step for metric in history(run_id, name)) for name in run.data.metrics}

    def _end(self, status: str) -> None:
        try:
            self._mlflow.end_run(status)
        except Exception as error:  # as in _send
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            said = " ".join(str(error).split())
            where = self._folder / "metrics.jsonl"
            tqdm.write(
                f"warning: MLflow fails ({said}); training goes on, and all metrics are in {where}", file=sys.stderr
            )
        self._warned = True


def _connected() -> tuple[Any, Any]:
    """The library and its client.

    Raises:
        UserError: it is not installed, or cannot use its tracking URI.
    """
    try:
        mlflow: Any = importlib.import_module("mlflow")
    except ImportError:
        raise UserError("--tracker=mlflow needs MLflow, which is not installed: pip install mlflow-skinny") from None
    try:
        return mlflow, mlflow.MlflowClient()
    except mlflow.MlflowException as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"MLflow cannot use {mlflow.get_tracking_uri()} ({said}); set MLFLOW_TRACKING_URI to your server, "
            "or pip install mlflow, whose default is a local database"
        ) from None
