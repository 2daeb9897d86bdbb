"""Micro-batches: requests that wait are computed together by length, and no longer than they are of use. No JAX.

One batch is computed at a time. Who comes while none is goes at once and alone; who comes meanwhile waits, and when the
network is free the oldest goes with all of its model and length, up to a full batch; who could not be answered in time
any more lets others go first. So nothing is ever held back for others to come.

Dims: S slots.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float

from jaxtempl.serve import logs
from jaxtempl.serve.inference.model import ServedModel
from jaxtempl.serve.metrics import Metrics


class RefusedError(Exception):
    """A request that was not computed; its words are for the client, `reason` is for the counts."""

    reason = ""


class FullError(RefusedError):
    """So many wait already that it would be too late; `after` is the number of seconds to come back in."""

    reason = "full"

    def __init__(self, after: int) -> None:
        super().__init__("too many requests are waiting; try again later")
        self.after = after


class LateError(RefusedError):
    """Its deadline passed."""

    reason = "late"

    def __init__(self) -> None:
        super().__init__("the answer did not come in time")


class SupersededError(RefusedError):
    """A newer request of its case came."""

    reason = "superseded"

    def __init__(self) -> None:
        super().__init__("a newer request of this case has taken the place of this one")


class FailedError(RefusedError):
    """The network failed on its batch."""

    reason = "failed"

    def __init__(self) -> None:
        super().__init__("the model failed on this request")


class QueueEntry:
    """A request's place in the queue, from before its window is read until its batch begins.

    Attributes:
        deadline: of the loop's clock.
        case: that it belongs to; None belongs to none.
        model: that reads it, once `ids` are there.
        ids: of the window.
        bucket: length that they are padded to.
        ready: the time at which they were there.
        answer: its logits.
    """

    def __init__(self, deadline: float, case: str | None, answer: "asyncio.Future[np.ndarray]") -> None:
        self.deadline, self.case, self.answer = deadline, case, answer
        self.model: ServedModel | None = None
        self.ids: Sequence[int] = ()
        self.bucket = 0
        self.ready = 0.0


class Batcher:
    """The queue and what computes it; all of it is called on one event loop.

    Args:
        batch: most requests computed at once.
        queue: most that wait.
        timeout: seconds from coming to the deadline.
        metrics: to count in.
    """

    def __init__(self, batch: int, queue: int, timeout: float, metrics: Metrics) -> None:
        self._most, self._queue, self._timeout, self._metrics = batch, queue, timeout, metrics
        self._waiting: dict[QueueEntry, None] = {}  # in order of coming
        self._cases: dict[str, QueueEntry] = {}
        self._running: list[QueueEntry] = []
        self._free_at = 0.0  # when the batch that is computed is expected to end
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "network")
        self._work = asyncio.create_task(self._compute())

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def uses(self, model: ServedModel) -> bool:
        """Whether a request of this model waits or is computed."""
        return any(place.model is model for place in (*self._waiting, *self._running))

    @contextlib.contextmanager
    def place(self, case: str | None) -> Generator[QueueEntry]:
        """A place in the queue; leaving the block gives it up where it has not been computed.

        Raises:
            FullError: as many wait as may, or those who do take until after this one's deadline.
        """
        loop = asyncio.get_running_loop()
        self._supersede(case)
        after = self._expected(loop.time())
        if len(self._waiting) >= self._queue or after > self._timeout:
            raise FullError(max(math.ceil(after), 1))
        place = QueueEntry(loop.time() + self._timeout, case, loop.create_future())
        timer = loop.call_at(place.deadline, self._refuse, place, LateError())
        self._waiting[place] = None
        if case is not None:
            self._cases[case] = place
        try:
            yield place
        finally:
            timer.cancel()
            self._leave(place)
            if not place.answer.cancel() and not place.answer.cancelled():
                place.answer.exception()  # looked at, so that asyncio does not complain of one that nobody awaits

    async def logits(self, place: QueueEntry, model: ServedModel, ids: Sequence[int]) -> Float[np.ndarray, " S"]:
        """What the model says of a window; waits for its turn.

        Raises:
            LateError: the deadline passed first.
            SupersededError: a newer request of the case came while it waited.
            FailedError: the network failed on its batch.
        """
        if place in self._waiting:
            place.model, place.ids, place.bucket = model, ids, model.bucket(len(ids))
            place.ready = asyncio.get_running_loop().time()
            self._wake.set()
        return await place.answer

    async def close(self) -> None:
        """Ends; who still waits is refused."""
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)
        for place in list(self._waiting):
            self._refuse(place, FailedError())
        self._thread.shutdown()

    def _supersede(self, case: str | None) -> None:
        older = self._cases.get(case) if case is not None else None
        if older is not None:
            self._refuse(older, SupersededError())

    def _refuse(self, place: QueueEntry, error: RefusedError) -> None:
        """Ends a request with an error; one that is being computed only stops waiting for it."""
        self._leave(place)
        if not place.answer.done():
            place.answer.set_exception(error)

    def _leave(self, place: QueueEntry) -> None:
        """Out of the queue."""
        self._waiting.pop(place, None)
        if place.case is not None and self._cases.get(place.case) is place:
            del self._cases[place.case]

    def _expected(self, now: float) -> float:
        """Seconds until all who wait have been computed; who is still read counts nothing yet."""
        rows = (place.model.pace[place.bucket] for place in self._waiting if place.model)
        return max(self._free_at - now, 0.0) + sum(rows)

    async def _compute(self) -> None:
        while True:
            batch = self._take()
            if batch:
                await self._run(batch)
            else:
                self._wake.clear()
                await self._wake.wait()

    def _take(self) -> list[QueueEntry]:
        """The oldest that can be answered in time and all that can go with it; they leave the queue."""
        now = asyncio.get_running_loop().time()
        for place in list(self._waiting):
            if place.deadline <= now:  # its timer is late too
                self._refuse(place, LateError())
        ready = _best(self._waiting, now)
        batch = [p for p in ready if (p.model, p.bucket) == (ready[0].model, ready[0].bucket)][: self._most]
        for place in batch:
            self._leave(place)
            self._metrics.took("wait", now - place.ready)
        return batch

    async def _run(self, batch: list[QueueEntry]) -> None:
        model, bucket = batch[0].model, batch[0].bucket
        assert model
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._running, self._free_at = batch, began + model.pace[bucket] * len(batch)
        try:
            logits = await loop.run_in_executor(self._thread, model.run, [place.ids for place in batch], bucket)
            self._metrics.batch(len(batch), loop.time() - began)
            _answer(batch, logits)
        except Exception as error:  # whatever it is, it is these requests' and no other's
            self._metrics.failures.inc()
            logs.log_event("batch failed", logging.ERROR, error, rows=len(batch))
            for place in batch:
                self._refuse(place, FailedError())
        finally:
            self._running, self._free_at = [], 0.0


def _best(waiting: Iterable[QueueEntry], now: float) -> list[QueueEntry]:
    """Of those whose windows are read, who can be answered in time; if nobody can, the newest, who has most of it left.

    Under more load than can be borne the oldest are always about to be late; to compute them would make others late.
    """
    ready = [place for place in waiting if place.model]
    able = [place for place in ready if place.model and now + place.model.pace[place.bucket] < place.deadline]
    return able or ready[-1:]


def _answer(batch: Sequence[QueueEntry], logits: Float[np.ndarray, "B S"]) -> None:
    """Hands out the rows; one that is not finite fails alone."""
    for place, row in zip(batch, logits, strict=True):
        if place.answer.done():
            continue
        if np.isfinite(row).all():
            place.answer.set_result(row)
        else:
            place.answer.set_exception(FailedError())
