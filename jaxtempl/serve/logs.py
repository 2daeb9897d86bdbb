"""Logs as JSON lines on standard error, never with a word of a message.

What this package logs it says in named fields. Of what libraries log only the fixed text is kept, and of an exception
its kind and where it was raised: its words may hold what a customer wrote. Lines are written by a thread of their own.
"""

import logging
import logging.handlers
import queue
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import msgspec

LOGGER = logging.getLogger("jaxtempl.serve")
WAITING = 10_000  # lines; those beyond are dropped, so that a reader who stalls does not stop the server
DEPTH = 5  # places of an exception that are told, the innermost


def say(event: str, level: int = logging.INFO, error: BaseException | None = None, **fields: Any) -> None:
    """Logs an event with its fields; `error` by kind and place."""
    told = {"error": type(error).__name__, "at": places(error)} if error else {}
    LOGGER.log(level, event, extra={"fields": {**fields, **told}})


def places(error: BaseException) -> list[str]:
    """Where an exception was raised, innermost last: file, line and function."""
    frames = traceback.extract_tb(error.__traceback__)[-DEPTH:]
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Its fixed text, its fields, and of an exception kind and place."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        error = record.exc_info[1] if record.exc_info else None
        told = {"error": type(error).__name__, "at": places(error)} if error else {}
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": str(record.msg).partition("\n")[0],
        }
        return msgspec.json.encode(line | fields | told, enc_hook=str).decode()


class _Queued(logging.handlers.QueueHandler):
    """Hands records over as they are, and drops them when none are taken."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(queue.Full):
            self.queue.put_nowait(record)


@contextmanager
def written() -> Generator[None]:
    """Everything that is logged inside the block is written, whoever logs it; from warnings on for libraries."""
    waiting: queue.Queue[Any] = queue.Queue(WAITING)
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(JsonLines())
    handler, root = _Queued(waiting), logging.getLogger()
    before = root.handlers, root.level
    listener = logging.handlers.QueueListener(waiting, out)
    root.handlers = list[logging.Handler]([handler])
    root.setLevel(logging.WARNING)
    LOGGER.setLevel(logging.INFO)
    listener.start()
    try:
        yield
    finally:
        listener.stop()
        root.handlers, root.level = before
