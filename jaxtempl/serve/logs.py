"""Logs as JSON lines on standard error, never with a word of a message.

What this package logs it says in named fields. Of what libraries log only the fixed text is kept, and of an exception
its kind and where it was raised: its words may hold what a customer wrote. Lines are written by a thread of their own.
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
WAITING = 10_000  # lines; the oldest beyond are dropped, so that a reader who stalls does not stop the server
MOMENT = 0.1  # seconds whose lines are written together
DEPTH = 5  # places of an exception that are told, the innermost


def log_event(event: str, level: int = logging.INFO, error: BaseException | None = None, **fields: Any) -> None:
    """Logs an event with its fields; `error` by kind and place."""
    told = {"error": type(error).__name__, "at": frames(error)} if error else {}
    LOGGER.log(level, event, extra={"fields": {**fields, **told}})


def frames(error: BaseException) -> list[str]:
    """Where an exception was raised, innermost last: file, line and function."""
    frames = traceback.extract_tb(error.__traceback__)[-DEPTH:]
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Its fixed text, its fields, and of an exception kind and place."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        error = record.exc_info[1] if record.exc_info else None
        told = {"error": type(error).__name__, "at": frames(error)} if error else {}
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": str(record.msg).partition("\n")[0],
        }
        return msgspec.json.encode(line | fields | told, enc_hook=str).decode()


class _Gathered(logging.Handler):
    """Hands records to a thread that writes those of a moment together; drops them when none are taken.

    A thread that woke for each of them would take the interpreter from the event loop each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self._records: deque[logging.LogRecord] = deque(maxlen=WAITING)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a record."""
        self._records.append(record)

    def close(self) -> None:
        """Writes what is left."""
        self._ended.set()
        self._thread.join()
        super().close()

    def _run(self) -> None:
        while not self._ended.wait(MOMENT):
            self._write()
        self._write()

    def _write(self) -> None:
        records = [self._records.popleft() for _ in range(len(self._records))]
        if records:
            sys.stderr.write("".join(f"{self.format(record)}\n" for record in records))
            sys.stderr.flush()


@contextmanager
def write_json_logs() -> Generator[None]:
    """Everything that is logged inside the block is written, whoever logs it; from warnings on for libraries."""
    handler, root = _Gathered(), logging.getLogger()
    before = root.handlers, root.level
    root.handlers = list[logging.Handler]([handler])
    root.setLevel(logging.WARNING)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers, root.level = before
        handler.close()
