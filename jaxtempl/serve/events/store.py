"""The store of suggestions and of what became of them: written off the request's path, by one thread.

What is kept waits in a queue in the order it came, so a suggestion is there before its events. Each time the writer
turns to the queue it writes all that waits, many records a transaction: at once when an event waits to be
acknowledged, else about every 100 ms.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from jaxtempl.errors import first_line
from jaxtempl.serve import logs
from jaxtempl.serve.events import tables
from jaxtempl.serve.schema import Event, FieldError

MOST = 100_000  # records that wait: at 200 requests/s those of 8 minutes without a database, some 100 MB
GROUP = 500  # most records a transaction; PostgreSQL and SQLite take some 30,000 values a statement
GATHER = 0.1  # seconds that suggestions are gathered, and that may be lost with a process that is killed
OTHERS = 2 * GATHER  # seconds in which another server of the same database has written what it answered
RETRY = 1.0  # seconds between attempts to reach a database that was lost
PATIENCE = 5.0  # seconds that an event waits to be committed
CLOSE = 5.0  # seconds after which closing makes no further attempt
AWAY = "the event store cannot be reached; send the event again"


class UnknownSuggestionError(Exception):
    """An event names a suggestion that the store does not hold."""


class StoreUnavailableError(Exception):
    """An event could not be committed now; the client sends it again, which is safe whatever became of it."""


class StoredSuggestion(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of an answer.

    Attributes:
        suggestion_id: 32 hex digits, which events name.
        at: when it was answered, with its time zone.
        case_id: as asked.
        advocate_id: as asked.
        model_version: of the bundle.
        templates: ids, best first.
        probabilities: of these, among those that might be suggested.
        tokens: of the window that was read.
        dropped_messages: messages older than the window.
        k: how many were asked for.
        threshold: as asked.
        latency_ms: from the request's last byte to the answer.
        reason: why nothing was suggested.
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


class _Waiting(NamedTuple):
    """The row of an event, and who waits for it: True when committed, False when its suggestion is unknown."""

    row: dict[str, Any]
    future: "asyncio.Future[bool]"

    def settle(self, outcome: bool | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # its loop has ended
            self.future.get_loop().call_soon_threadsafe(self._set, outcome)

    def _set(self, outcome: bool | Exception) -> None:
        if self.future.done():  # nobody waits any more
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class Store:
    """The store of a server, open until `close`.

    Attributes:
        dropped: suggestions that are not kept: too many waited, the database refused them or was away until the end.
    """

    def __init__(self, url: str) -> None:
        """Opens the database of an SQLAlchemy URL, or makes its tables.

        Raises:
            UserError: it is no such URL, or the database cannot be opened.
        """
        self._engine = tables.open_to_write(url)
        self._queue: deque[StoredSuggestion | _Waiting] = deque()
        self._hurry = threading.Event()
        self._lost = False  # whether the database was away when it was last tried
        self._end = float("inf")  # when the writer gives up; finite once the store is being closed
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="event-store", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Records in the queue."""
        return len(self._queue)

    def suggested(self, record: StoredSuggestion) -> None:
        """Keeps what was answered, soon; it neither waits nor raises, and counts what it must drop."""
        if self._full():
            self.dropped += 1
        else:
            self._queue.append(record)

    async def keep(self, event: Event) -> None:
        """Returns when the event is committed; one that is kept already is not kept twice.

        Raises:
            FieldError: the database cannot hold what a field says.
            StoreUnavailableError: it is not known to be committed.
            UnknownSuggestionError: no such suggestion is kept.
        """
        row = tables.event_row(event)
        if await self._committed(row):
            return
        await asyncio.sleep(OTHERS)  # another server may have answered, and not written yet what
        if not await self._committed(row):
            raise UnknownSuggestionError(f"no suggestion {event.suggestion_id} is kept")

    def close(self) -> None:
        """Writes what waits, for some seconds at most, and ends the writer; what comes later is not kept."""
        self._end = min(self._end, time.monotonic() + CLOSE)
        self._hurry.set()
        self._thread.join(CLOSE + PATIENCE)  # its last attempt may have begun just before

    def _full(self) -> bool:
        return len(self._queue) >= MOST or self._end < float("inf")

    async def _committed(self, row: dict[str, Any]) -> bool:
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
        self._end_with(self._take(len(self._queue)))

    def _write_all(self) -> None:
        """Writes what waits now; what comes meanwhile is for the next time, or groups would be small."""
        waiting = len(self._queue)
        if self._lost and not waiting:
            self._write([])  # whether the database is back
        for _ in range(0, waiting, GROUP):
            self._write(self._take(GROUP))
            if self._lost:
                return

    def _take(self, most: int) -> list[StoredSuggestion | _Waiting]:
        return [self._queue.popleft() for _ in range(min(most, len(self._queue)))]

    def _write(self, group: Sequence[StoredSuggestion | _Waiting]) -> None:
        suggestions = [msgspec.structs.asdict(record) for record in group if isinstance(record, StoredSuggestion)]
        events = [record for record in group if isinstance(record, _Waiting)]
        try:
            with self._engine.begin() as connection:
                known = tables.insert(connection, suggestions, [event.row for event in events])
        except Exception as error:  # whatever it is, the writer goes on
            self._failed(group, error)
            return
        if self._lost:
            logs.log_event("the event store is reached again", logging.WARNING)
        self._lost = False
        for event in events:
            event.settle(event.row["suggestion_id"] in known)

    def _failed(self, group: Sequence[StoredSuggestion | _Waiting], error: Exception) -> None:
        """Nothing of the group is written: the database is away, or one record is at fault, which is then found."""
        if isinstance(error, DBAPIError) and not isinstance(error, (DataError, IntegrityError)):
            self._away(group, error)
        elif len(group) == 1:
            self._refuse(group[0], error)
        else:
            for record in group:
                self._write([record])

    def _away(self, group: Sequence[StoredSuggestion | _Waiting], error: DBAPIError) -> None:
        """Suggestions wait for the database in their order; events are their clients' to send again."""
        if not self._lost:
            why = first_line(error.orig or error)
            logs.log_event("the event store cannot be reached", logging.WARNING, why=why)
        self._lost = True
        self._queue.extendleft(reversed(self._fail([*group, *self._take(len(self._queue))])))

    def _fail(self, records: Sequence[StoredSuggestion | _Waiting]) -> list[StoredSuggestion]:
        """Answers the events among the records, and returns the suggestions."""
        for record in records:
            if isinstance(record, _Waiting):
                record.settle(StoreUnavailableError(AWAY))
        return [record for record in records if isinstance(record, StoredSuggestion)]

    def _refuse(self, record: StoredSuggestion | _Waiting, error: Exception) -> None:
        if isinstance(record, _Waiting):
            record.settle(FieldError("", "the event store cannot hold what the event says"))
        else:
            self.dropped += 1
            logs.log_event("the event store refuses a suggestion", logging.ERROR, error)

    def _end_with(self, left: Sequence[StoredSuggestion | _Waiting]) -> None:
        lost = len(self._fail(left))
        self.dropped += lost
        if lost:
            logs.log_event("suggestions are lost: the event store was away until the end", logging.ERROR, count=lost)
        self._engine.dispose()
