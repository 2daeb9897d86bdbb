"""The shadow: a bundle that computes requests again after their answers, in a process with the lowest priority. No JAX.

A process, because a thread would hold the interpreter's lock while requests need it. Of requests that it cannot follow,
it drops the newest.
"""

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from jaxtempl.config.serving import ServeConfig
from jaxtempl.errors import UserError
from jaxtempl.serve import logs
from jaxtempl.serve.events.store import StoredShadow
from jaxtempl.serve.inference.model import ServedModel, open_model
from jaxtempl.serve.schema import SuggestRequest
from jaxtempl.text.cases import known_values

QUEUE = 16  # requests that wait; a message has a request and the id of its suggestion
Task = tuple[str, SuggestRequest]
OnAnswer = Callable[[StoredShadow | None], None]


class ShadowProcess:
    """A running shadow.

    Attributes:
        folder: Folder of its bundle.
        version: Version of its bundle.
    """

    def __init__(self, folder: Path, config: ServeConfig, on_answer: OnAnswer) -> None:
        """Start the process, and wait until its model is warm.

        Args:
            folder: Folder of the bundle.
            config: Configuration of the server.
            on_answer: Called in a thread with each answer; with None if the computation failed.

        Raises:
            UserError: The bundle cannot be served.
        """
        spawning = multiprocessing.get_context("spawn")
        self._connection, other = spawning.Pipe()
        self._on_answer, self._closing = on_answer, False
        self._queue: queue.Queue[Task | None] = queue.Queue(QUEUE)
        self._process = spawning.Process(target=_compute, args=(other, folder, config), name="shadow", daemon=True)
        self._process.start()
        other.close()  # so that each side sees the end of the other
        self.folder, self.version = folder, self._started()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Return whether it still computes."""
        return self._thread.is_alive()

    def submit(self, suggestion_id: str, request: SuggestRequest) -> bool:
        """Queue an answered request; return False if the queue is full or the process has ended."""
        with contextlib.suppress(queue.Full):
            if self.is_alive:
                self._queue.put_nowait((suggestion_id, request))
                return True
        return False

    def close(self) -> None:
        """End the process; what it has not computed is dropped."""
        self._closing = True
        self._process.kill()
        self._process.join()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join()

    def _started(self) -> str:
        try:
            first = self._connection.recv()
        except EOFError:
            first = UserError("the process of the shadow ended as it started; see its error above")
        if isinstance(first, UserError):
            self._process.join()
            raise first
        return first

    def _run(self) -> None:
        while task := self._queue.get():
            try:
                self._connection.send(task)
                answer = self._connection.recv()
            except (EOFError, OSError):
                if self._closing:
                    return
                self._on_answer(None)
                logs.log_event("the shadow ended; /admin/reload starts it again", logging.WARNING)
                return
            self._on_answer(answer)


def _compute(connection: Connection, folder: Path, config: ServeConfig) -> None:
    """Answer requests until the server closes the connection, or ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the server ends this process when it has drained
    with logs.write_json_logs(), contextlib.suppress(EOFError, OSError):
        try:
            model = open_model(folder, dataclasses.replace(config, threads=1, max_batch_size=1))
        except UserError as error:
            connection.send(error)
            return
        connection.send(model.version)
        _yield_cores()
        while True:
            connection.send(_answer(model, *connection.recv()))


def _yield_cores() -> None:
    """Run only while no other thread wants the core; the network's only thread is this one."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)


def _answer(model: ServedModel, suggestion_id: str, request: SuggestRequest) -> StoredShadow | None:
    started = time.perf_counter()
    try:
        ids, _ = model.window.encode(request.with_text(), known_values(request.known_values))
        [logits] = model.run([ids], model.bucket(len(ids)))
        best, _ = model.rank(logits, request)
    except Exception as error:  # one request's failure ends no other; its message may contain text
        logs.log_event("the shadow failed on a request", logging.ERROR, error)
        return None
    return StoredShadow(
        suggestion_id=suggestion_id,
        model_version=model.version,
        templates=[each.template for each in best],
        probabilities=[each.probability for each in best],
        latency_ms=round(1000 * (time.perf_counter() - started), 3),
    )
