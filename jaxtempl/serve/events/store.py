"""Store suggestions and events from a separate thread, outside the request's critical path.

Records wait in a queue in order of arrival, so a suggestion is stored before its events. The writer empties the queue
in transactions of many records: immediately if an event waits for its acknowledgement, otherwise about every 100 ms.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from jaxtempl.errors import first_line
from jaxtempl.serve import logs
from jaxtempl.serve.events import database, history, tables
from jaxtempl.serve.experiments.definition import Experiments
from jaxtempl.serve.schema import Event, FieldError

MAX_WAITING = 100_000  # records: about 100 MB, or 8 minutes at 200 requests/s without a database
GROUP = 500  # maximum records of a transaction; PostgreSQL and SQLite accept about 30,000 values per statement
GATHER = 0.1  # seconds between writes of suggestions; a killed process loses at most these
OTHERS = 2 * GATHER  # seconds until another server of the same database has written its answers
RETRY = 1.0  # seconds between attempts to reach an unavailable database
PATIENCE = 5.0  # seconds that an event waits for its commit
CLOSE = 5.0  # seconds after which closing stops retrying
AWAY = "the event store cannot be reached; send the event again"


class UnknownSuggestionError(Exception):
    """An event refers to a suggestion that is not in the store."""


class StoreUnavailableError(Exception):
    """An event could not be committed; the client sends it again, which is safe even if it was."""


class StoredSuggestion(msgspec.Struct, frozen=True, kw_only=True):
    """The stored part of an answer.

    Attributes:
        suggestion_id: 32 hex digits, which events refer to.
        at: Time of the answer, with its time zone.
        case_id: Case of the request.
        advocate_id: Advocate of the request, or None.
        model_version: Version of the bundle.
        templates: Ids of the suggestions, best first.
        probabilities: Their probabilities among the allowed templates.
        tokens: Tokens of the window that was read.
        dropped_messages: Number of messages older than the window.
        k: Requested number of suggestions.
        threshold: Threshold of the request, or None.
        latency_ms: Milliseconds from the request's last byte to the answer.
        reason: Reason for an empty list of suggestions, or None.
        experiment: Test that the pair is in, or `holdout` outside of a test; None where no experiment applied.
        arm: Its arm.
        bucket: Its bucket by the salt that decided.
        config_sha256: Sum of the experiments in force.
        withheld_templates: Ids that the holdout did not show, best first.
        withheld_probabilities: Their probabilities among the allowed templates.
    """

    suggestion_id: str
    at: datetime
    case_id: str | None
    advocate_id: str | None
    model_version: str
    templates: list[str]
    probabilities: list[float]
    tokens: int
    dropped_messages: int
    k: int
    threshold: float | None
    latency_ms: float
    reason: str | None
    experiment: str | None = None
    arm: str | None = None
    bucket: float | None = None
    config_sha256: str | None = None
    withheld_templates: list[str] = msgspec.field(default_factory=list[str])
    withheld_probabilities: list[float] = msgspec.field(default_factory=list[float])


class StoredShadow(msgspec.Struct, frozen=True, kw_only=True):
    """The shadow's answer to a request whose suggestion was queued before.

    Attributes:
        suggestion_id: Id of the suggestion.
        model_version: Version of the shadow.
        templates: Ids that it would have suggested, best first.
        probabilities: Their probabilities among the allowed templates.
        latency_ms: Milliseconds of its computation.
    """

    suggestion_id: str
    model_version: str
    templates: list[str]
    probabilities: list[float]
    latency_ms: float


class _Waiting(NamedTuple):
    """An event's row, and the future of its commit: True if committed, False if its suggestion is unknown."""

    row: dict[str, Any]
    future: "asyncio.Future[bool]"

    def settle(self, outcome: bool | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # its event loop is closed
            self.future.get_loop().call_soon_threadsafe(self._set, outcome)

    def _set(self, outcome: bool | Exception) -> None:
        if self.future.done():  # the request is over
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


Stored = StoredSuggestion | StoredShadow  # what nobody waits for


class Store:
    """The store of a server, open until `close`.

    Attributes:
        dropped: Number of suggestions and shadows that were not stored: the queue was full, the database rejected them,
            or it was unavailable until the end.
    """

    def __init__(self, url: str) -> None:
        """Open the database of an SQLAlchemy URL, and create its tables if needed.

        Raises:
            UserError: The URL is invalid, or the database cannot be opened.
        """
        self._engine = database.open_to_write(url)
        self._queue: deque[Stored | _Waiting] = deque()
        self._hurry = threading.Event()
        self._lost = False  # whether the last attempt found the database unavailable
        self._end = float("inf")  # when the writer gives up; finite after `close`
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="event-store", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of records in the queue."""
        return len(self._queue)

    @property
    def is_available(self) -> bool:
        """Return whether the last attempt reached the database."""
        return not self._lost

    def add(self, record: Stored) -> None:
        """Queue an answer for storage; never waits or raises, and counts what it drops."""
        if self._full():
            self.dropped += 1
        else:
            self._queue.append(record)

    async def commit_event(self, event: Event) -> None:
        """Returns when the event is committed; one that is kept already is not kept twice.

        Raises:
            FieldError: the database cannot hold what a field says.
            StoreUnavailableError: it is not known to be committed.
            UnknownSuggestionError: no such suggestion is kept.
        """
        row = tables.event_row(event)
        if await self._commit(row):
            return
        await asyncio.sleep(OTHERS)  # another server may not have written its answer yet
        if not await self._commit(row):
            raise UnknownSuggestionError(f"suggestion {event.suggestion_id} is not in the store")

    def adopt(self, experiments: Experiments) -> None:
        """Put experiments in force for all servers of the database; raises as `history.adopt`."""
        history.adopt(self._engine, experiments, datetime.now(UTC))

    def close(self) -> None:
        """Write the queue, for a few seconds at most, and stop the writer; later records are not stored."""
        self._end = min(self._end, time.monotonic() + CLOSE)
        self._hurry.set()
        self._thread.join(CLOSE + PATIENCE)  # its last attempt may have started just before

    def _full(self) -> bool:
        return len(self._queue) >= MAX_WAITING or self._end < float("inf")

    async def _commit(self, row: dict[str, Any]) -> bool:
        if self._lost or self._full():
            raise StoreUnavailableError(AWAY)
        waiting = _Waiting(row, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._hurry.set()
        try:
            async with asyncio.timeout(PATIENCE):
                return await waiting.future
        except TimeoutError:
            raise StoreUnavailableError("the event store takes too long; send the event again") from None

    def _run(self) -> None:
        while self._end == float("inf") or (self._queue and time.monotonic() < self._end):
            self._hurry.wait(RETRY if self._lost else GATHER)
            self._hurry.clear()
            self._write_all()
        self._drop(self._take(len(self._queue)))

    def _write_all(self) -> None:
        """Write the records that wait now; later ones form the next groups, which are then larger."""
        waiting = len(self._queue)
        if self._lost and not waiting:
            self._write([])  # tests whether the database is back
        for _ in range(0, waiting, GROUP):
            self._write(self._take(GROUP))
            if self._lost:
                return

    def _take(self, maximum: int) -> list[Stored | _Waiting]:
        return [self._queue.popleft() for _ in range(min(maximum, len(self._queue)))]

    def _write(self, group: Sequence[Stored | _Waiting]) -> None:
        suggestions, shadows = _rows(group, StoredSuggestion), _rows(group, StoredShadow)
        events = [record for record in group if isinstance(record, _Waiting)]
        try:
            with self._engine.begin() as connection:
                stored = tables.insert(connection, suggestions, [event.row for event in events], shadows)
        except Exception as error:  # the writer survives any error
            self._failed(group, error)
            return
        if self._lost:
            logs.log_event("the event store is available again", logging.WARNING)
        self._lost = False
        for event in events:
            event.settle(event.row["suggestion_id"] in stored)

    def _failed(self, group: Sequence[Stored | _Waiting], error: Exception) -> None:
        """Handle a group that was rolled back: the database is unavailable, or one record is invalid."""
        if isinstance(error, DBAPIError) and not isinstance(error, (DataError, IntegrityError)):
            self._requeue(group, error)
        elif len(group) == 1:
            self._refuse(group[0], error)
        else:
            for record in group:
                self._write([record])

    def _requeue(self, group: Sequence[Stored | _Waiting], error: DBAPIError) -> None:
        """Put answers back in order until the database returns; answer events, which clients send again."""
        if not self._lost:
            why = first_line(error.orig or error)
            logs.log_event("the event store cannot be reached", logging.WARNING, why=why)
        self._lost = True
        self._queue.extendleft(reversed(self._fail([*group, *self._take(len(self._queue))])))

    def _fail(self, records: Sequence[Stored | _Waiting]) -> list[Stored]:
        """Answer the events with an error, and return the other records."""
        for record in records:
            if isinstance(record, _Waiting):
                record.settle(StoreUnavailableError(AWAY))
        return [record for record in records if not isinstance(record, _Waiting)]

    def _refuse(self, record: Stored | _Waiting, error: Exception) -> None:
        if isinstance(record, _Waiting):
            record.settle(FieldError("", "a value of the event cannot be stored"))
        else:
            self.dropped += 1
            logs.log_event("the event store rejected a suggestion", logging.ERROR, error)

    def _drop(self, remaining: Sequence[Stored | _Waiting]) -> None:
        lost = len(self._fail(remaining))
        self.dropped += lost
        if lost:
            event = "suggestions are lost: the event store was unavailable until the end"
            logs.log_event(event, logging.ERROR, count=lost)
        self._engine.dispose()


def _rows(group: Sequence[Stored | _Waiting], kind: type[Stored]) -> list[dict[str, Any]]:
    return [msgspec.structs.asdict(record) for record in group if isinstance(record, kind)]
