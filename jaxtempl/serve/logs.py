"""Logs as JSON lines on standard error, without any text of a message.

This package logs events with named fields. Of libraries' records only the fixed text is written. Of an exception only
its type and where it was raised are written, as its message may contain customer text. (The batcher adds the message of
the network, which sees no text, without its numbers.) A separate thread writes the
lines.
"""

import logging
import sys
import threading
import traceback
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec

LOGGER = logging.getLogger("jaxtempl.serve")
MAX_WAITING = 10_000  # lines; older ones are dropped, so that a stalled reader does not block the server
INTERVAL = 0.1  # seconds between two writes
DEPTH = 5  # innermost frames of an exception that are logged


def log_event(event: str, level: int = logging.INFO, error: BaseException | None = None, **fields: Any) -> None:
    """Log an event with its fields, and an error by its type and frames."""
    LOGGER.log(level, event, extra={"fields": {**fields, **_describe(error)}})


def frames(error: BaseException) -> list[str]:
    """Return where an exception was raised, innermost last, as `file:line function`."""
    innermost = traceback.extract_tb(error.__traceback__)[-DEPTH:]
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in innermost]


def _describe(error: BaseException | None) -> dict[str, Any]:
    return {"error": type(error).__name__, "at": frames(error)} if error else {}


class JsonLines(logging.Formatter):
    """Format a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's fixed text, its fields, and the type and frames of its exception."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        error = record.exc_info[1] if record.exc_info else None
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": str(record.msg).partition("\n")[0],
        }
        return msgspec.json.encode(line | fields | _describe(error), enc_hook=str).decode()


class _BufferedHandler(logging.Handler):
    """Buffer records for a thread that writes them together at intervals, and drop the oldest if it stalls.

    A thread that woke for each record would take the interpreter lock from the event loop each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self._records: deque[logging.LogRecord] = deque(maxlen=MAX_WAITING)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Buffer a record."""
        self._records.append(record)

    def close(self) -> None:
        """Write the remaining records."""
        self._ended.set()
        self._thread.join()
        super().close()

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._write()
        self._write()

    def _write(self) -> None:
        records = [self._records.popleft() for _ in range(len(self._records))]
        if records:
            sys.stderr.write("".join(f"{self.format(record)}\n" for record in records))
            sys.stderr.flush()


@contextmanager
def write_json_logs() -> Generator[None]:
    """Write all records that are logged inside the block; those of libraries from level WARNING up."""
    handler, root = _BufferedHandler(), logging.getLogger()
    before = root.handlers, root.level
    root.handlers = list[logging.Handler]([handler])
    root.setLevel(logging.WARNING)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers, root.level = before
        handler.close()
