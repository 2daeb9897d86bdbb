"""A logger that sends metrics to MLflow; the library is imported only with `--tracker=mlflow`.

Server, experiment and credentials come from MLflow's environment variables (`MLFLOW_TRACKING_URI`,
`MLFLOW_EXPERIMENT_NAME` and so on). A resumed training continues the same MLflow run, whose id is stored in
`mlflow.json` in the run's folder.
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

SEND_SECONDS = 5.0  # between requests: one a step would be hundreds a second for small models


class MlflowLogger:
    """Buffers metrics and sends them from a thread, so that no server delays or ends a training.

    Failed metrics stay buffered and are sent again; the first failure prints a warning.

    Args:
        folder: Folder of the run, whose name the MLflow run gets.
        params: Resolved config.
    """

    def __init__(self, folder: Path, params: Mapping[str, Any]) -> None:
        self._mlflow, self._client = _connect()
        self._folder, self._params = folder, params
        self._buffer: list[Any] = []
        self._sent: dict[str, int] | None = None  # last step of each metric in MLflow, once it has answered
        self._warned = False
        self._thread = ThreadPoolExecutor(1)
        self._sending: Future[None] = self._thread.submit(self._send)
        self._sent_at = time.monotonic()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Buffer the metrics until the next request."""
        now = int(time.time() * 1000)
        self._buffer += [self._mlflow.entities.Metric(name, value, now, step) for name, value in values.items()]
        if time.monotonic() - self._sent_at >= SEND_SECONDS and self._sending.done():
            self._sending, self._sent_at = self._thread.submit(self._send), time.monotonic()

    def close(self, finished: bool) -> None:
        """Send the rest and end the MLflow run; block until MLflow succeeds or gives up."""
        self._thread.submit(self._send)
        self._thread.submit(self._end, "FINISHED" if finished else "FAILED")
        self._thread.shutdown()

    def _send(self) -> None:
        try:
            if self._sent is None:
                self._sent = self._open_run()
            run_id = self._mlflow.active_run().info.run_id
            batch = list(self._buffer)
            # MLflow deletes nothing, so a repeated step would appear twice.
            new = [metric for metric in batch if metric.step > self._sent.get(metric.key, -1)]
            self._client.log_batch(run_id, new)
            del self._buffer[: len(batch)]
        except Exception as error:  # training continues whatever MLflow's dependencies raise
            self._warn(error)

    def _open_run(self) -> dict[str, int]:
        """Start the MLflow run or resume the folder's; return the last step of each metric."""
        path = self._folder / "mlflow.json"
        known_id = files.read_json(path)["run_id"] if path.exists() else None
        name = None if known_id else self._folder.name
        run = self._mlflow.active_run() or self._mlflow.start_run(known_id, run_name=name)
        run_id: str = run.info.run_id
        files.write_json(path, {"run_id": run_id})
        if not run.data.params:
            given = {name: value for name, value in self._params.items() if value not in ("", None)}
            self._client.log_batch(run_id, params=[self._mlflow.entities.Param(k, str(v)) for k, v in given.items()])
        history = self._client.get_metric_history
        return {name: max(metric.step for metric in history(run_id, name)) for name in run.data.metrics}

    def _end(self, status: str) -> None:
        try:
            self._mlflow.end_run(status)
        except Exception as error:  # as in _send
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            message = " ".join(str(error).split())
            path = self._folder / "metrics.jsonl"
            tqdm.write(
                f"warning: MLflow fails ({message}); training continues, and all metrics are in {path}", file=sys.stderr
            )
        self._warned = True


def _connect() -> tuple[Any, Any]:
    """Return the MLflow library and its client.

    Raises:
        UserError: MLflow is not installed, or cannot use its tracking URI.
    """
    try:
        mlflow: Any = importlib.import_module("mlflow")
    except ImportError:
        raise UserError("--tracker=mlflow needs MLflow, which is not installed: pip install mlflow-skinny") from None
    try:
        return mlflow, mlflow.MlflowClient()
    except mlflow.MlflowException as error:
        message = " ".join(str(error).split())
        raise UserError(
            f"MLflow cannot use {mlflow.get_tracking_uri()} ({message}); set MLFLOW_TRACKING_URI to your server, "
            "or pip install mlflow, whose default is a local database"
        ) from None
