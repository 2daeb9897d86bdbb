"""Micro-batching queue: waiting requests are computed together by length, and only while they can meet their deadline.

One batch runs at a time. A request that arrives at an idle model runs immediately, alone. Requests that arrive while a
batch runs wait. When the model is free, the oldest request runs together with those of its model and length, up to a
full batch. Requests that can no longer meet their deadline yield to others. No request is delayed to fill a batch.
No JAX.

Dims: S slots.
"""

import asyncio
import contextlib
import logging
import math
import re
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float

from jaxtempl.errors import first_line
from jaxtempl.serve import logs
from jaxtempl.serve.inference.model import ServedModel
from jaxtempl.serve.metrics import Metrics


class RefusedError(Exception):
    """A request that was not computed. The message is for the client, `reason` for the metrics."""

    reason = ""


class FullError(RefusedError):
    """The queue is full, or too long to meet the deadline; `after` is the number of seconds until a retry."""

    reason = "full"

    def __init__(self, after: int) -> None:
        super().__init__("too many requests are waiting; try again later")
        self.after = after


class LateError(RefusedError):
    """The request's deadline passed."""

    reason = "late"

    def __init__(self) -> None:
        super().__init__("the answer was not computed before the deadline; try again later")


class SupersededError(RefusedError):
    """A newer request of the same case arrived."""

    reason = "superseded"

    def __init__(self) -> None:
        super().__init__("a newer request of this case superseded this one")


class FailedError(RefusedError):
    """The network failed on the request."""

    reason = "failed"

    def __init__(self) -> None:
        super().__init__("the model failed on this request")


class QueueEntry:
    """A request in the queue, from before its window is read until its batch starts.

    Attributes:
        deadline: Time on the event loop's clock.
        case: Case of the request, or None.
        model: Model that computes it, once `ids` are set.
        ids: Token ids of the window.
        bucket: Length that they are padded to.
        ready: Time at which `ids` were set.
        answer: Future of the logits.
    """

    def __init__(self, deadline: float, case: str | None, answer: "asyncio.Future[np.ndarray]") -> None:
        self.deadline, self.case, self.answer = deadline, case, answer
        self.model: ServedModel | None = None
        self.ids: Sequence[int] = ()
        self.bucket = 0
        self.ready = 0.0


class Batcher:
    """The queue and its worker; all methods are called on one event loop.

    Args:
        batch: Maximum requests of a batch.
        queue: Maximum requests that wait.
        timeout: Seconds from arrival to the deadline.
        metrics: Metrics to update.
    """

    def __init__(self, batch: int, queue: int, timeout: float, metrics: Metrics) -> None:
        self._max_batch, self._max_queue, self._timeout, self._metrics = batch, queue, timeout, metrics
        self._waiting: dict[QueueEntry, None] = {}  # in order of arrival
        self._cases: dict[str, QueueEntry] = {}
        self._running: list[QueueEntry] = []
        self._free_at = 0.0  # expected end of the running batch
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "network")
        self._worker = asyncio.create_task(self._compute())

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._waiting)

    def uses(self, model: ServedModel) -> bool:
        """Return whether a request of this model waits or runs."""
        return any(entry.model is model for entry in (*self._waiting, *self._running))

    @contextlib.contextmanager
    def enqueue(self, case: str | None) -> Generator[QueueEntry]:
        """Add a request to the queue; leaving the block removes it unless it was computed.

        Raises:
            FullError: The queue is full, or its requests take longer than this one's timeout.
        """
        loop = asyncio.get_running_loop()
        self._supersede(case)
        after = self._expected_wait(loop.time())
        if len(self._waiting) >= self._max_queue or after > self._timeout:
            raise FullError(max(math.ceil(after), 1))
        entry = QueueEntry(loop.time() + self._timeout, case, loop.create_future())
        timer = loop.call_at(entry.deadline, self._refuse, entry, LateError())
        self._waiting[entry] = None
        if case is not None:
            self._cases[case] = entry
        try:
            yield entry
        finally:
            timer.cancel()
            self._remove(entry)
            if not entry.answer.cancel() and not entry.answer.cancelled():
                entry.answer.exception()  # retrieved, so that asyncio does not report it as never retrieved

    async def logits(self, entry: QueueEntry, model: ServedModel, ids: Sequence[int]) -> Float[np.ndarray, " S"]:
        """Wait until the window is computed, and return its logits.

        Raises:
            LateError: The deadline passed first.
            SupersededError: A newer request of the case arrived in the meantime.
            FailedError: The network failed on the window.
        """
        if entry in self._waiting:
            entry.model, entry.ids, entry.bucket = model, ids, model.bucket(len(ids))
            entry.ready = asyncio.get_running_loop().time()
            self._wake.set()
        return await entry.answer

    async def close(self) -> None:
        """Stop the worker, and refuse the requests that still wait."""
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        for entry in list(self._waiting):
            self._refuse(entry, FailedError())
        self._thread.shutdown()

    def _supersede(self, case: str | None) -> None:
        older = self._cases.get(case) if case is not None else None
        if older is not None:
            self._refuse(older, SupersededError())

    def _refuse(self, entry: QueueEntry, error: RefusedError) -> None:
        """Answer a request with an error; if it is running, its result is dropped."""
        self._remove(entry)
        if not entry.answer.done():
            entry.answer.set_exception(error)

    def _remove(self, entry: QueueEntry) -> None:
        """Remove a request from the queue."""
        self._waiting.pop(entry, None)
        if entry.case is not None and self._cases.get(entry.case) is entry:
            del self._cases[entry.case]

    def _expected_wait(self, now: float) -> float:
        """Return the seconds until all waiting requests are computed; those still being read count as nothing."""
        rows = (entry.model.pace[entry.bucket] for entry in self._waiting if entry.model)
        return max(self._free_at - now, 0.0) + sum(rows)

    async def _compute(self) -> None:
        while True:
            batch = self._take_batch()
            if batch:
                await self._run(batch)
            else:
                self._wake.clear()
                await self._wake.wait()

    def _take_batch(self) -> list[QueueEntry]:
        """Take the oldest request that can meet its deadline, and all that can run with it, out of the queue."""
        now = asyncio.get_running_loop().time()
        for entry in list(self._waiting):
            if entry.deadline <= now:  # its timer is late too
                self._refuse(entry, LateError())
        ready = _eligible(self._waiting, now)
        batch = [e for e in ready if (e.model, e.bucket) == (ready[0].model, ready[0].bucket)][: self._max_batch]
        for entry in batch:
            self._remove(entry)
            self._metrics.observe("wait", now - entry.ready)
        return batch

    async def _run(self, batch: list[QueueEntry]) -> None:
        """Compute a batch; if it fails, compute its requests one at a time, so that only those at fault fail."""
        self._running = batch
        try:
            if not await self._run_rows(batch, "batch failed"):
                self._metrics.failures.inc()
                for entry in batch:
                    if len(batch) > 1 and not entry.answer.done():
                        await self._run_rows([entry], "request failed")
                    self._refuse(entry, FailedError())
        finally:
            self._running, self._free_at = [], 0.0

    async def _run_rows(self, batch: list[QueueEntry], failure: str) -> bool:
        """Compute requests together and answer them; if the network fails, log `failure` and return False."""
        model, bucket = batch[0].model, batch[0].bucket
        assert model
        loop = asyncio.get_running_loop()
        started = loop.time()
        self._free_at = started + model.pace[bucket] * len(batch)
        try:
            logits = await loop.run_in_executor(self._thread, model.run, [entry.ids for entry in batch], bucket)
            self._metrics.observe_batch(len(batch), loop.time() - started)
            _answer(batch, logits)
        except Exception as error:  # any failure affects these requests alone
            logs.log_event(failure, logging.ERROR, error, rows=len(batch), bucket=bucket, why=_reason(error))
            return False
        return True


def _eligible(waiting: Iterable[QueueEntry], now: float) -> list[QueueEntry]:
    """Return the read requests that can meet their deadline; if none can, the newest, which has the most time left.

    Under overload the oldest requests are always close to their deadline, and computing them would make others late.
    """
    ready = [entry for entry in waiting if entry.model]
    on_time = [entry for entry in ready if entry.model and now + entry.model.pace[entry.bucket] < entry.deadline]
    return on_time or ready[-1:]


def _answer(batch: Sequence[QueueEntry], logits: Float[np.ndarray, "B S"]) -> None:
    """Set each request's logits; a row that is not finite fails alone."""
    for entry, row in zip(batch, logits, strict=True):
        if entry.answer.done():
            continue
        if np.isfinite(row).all():
            entry.answer.set_result(row)
        else:
            logs.log_event("request failed", logging.ERROR, bucket=entry.bucket, why="a logit is not finite")
            entry.answer.set_exception(FailedError())


def _reason(error: Exception) -> str:
    """Return the error of a network, which sees token ids and no text; its numbers, among them ids, are masked."""
    return re.sub(r"\d+", "#", first_line(error))
