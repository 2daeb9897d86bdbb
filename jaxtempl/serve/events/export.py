"""Suggestions and what became of them -> Parquet: `bin/serve events export`.

A row is an event with its suggestion; a suggestion without events has one row, whose columns of an event are null.
Rows are in order of suggested_at, suggestion_id, event_at. Times are in UTC. No message is in it.

| column | type | |
|---|---|---|
| suggestion_id | string | one of these is one request |
| suggested_at | timestamp | when it was answered |
| case_id, advocate_id | string | as asked; null when not said |
| model_version | string | of the bundle |
| templates | list of string | ids, best first |
| probabilities | list of double | of these, among those that might be suggested |
| tokens, dropped_messages | int64 | of the window that was read; messages older than it |
| k, threshold | int64, double | as asked |
| latency_ms | double | from the request's last byte to the answer |
| reason | string | why nothing was suggested |
| event_id | string | the same event sent twice has one |
| event | string | shown, picked, edited, dismissed, searched or freehand |
| template, position | string, int64 | as the event says; positions are from 1 |
| event_at, received_at | timestamp | when it happened by the client's clock, and arrived by the server's |
| suggested_position | int64 | place of the event's template among the suggestions, null if it is not one of them |
"""

import dataclasses
import itertools
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet
import sqlalchemy as sa
from tqdm import tqdm

from jaxtempl import files
from jaxtempl.config import parsing
from jaxtempl.config.serving import ServeEventsExportConfig
from jaxtempl.errors import UsageError, UserError
from jaxtempl.serve.events import tables
from jaxtempl.serve.events.tables import events, suggestions

ROWS = 10_000  # of a row group, which is what is in memory at a time
TIME = pa.timestamp("us", tz="UTC")
COLUMNS: Mapping[str, tuple[sa.Column[Any], pa.DataType]] = {
    "suggestion_id": (suggestions.c.suggestion_id, pa.string()),
    "suggested_at": (suggestions.c.at, TIME),
    "case_id": (suggestions.c.case_id, pa.string()),
    "advocate_id": (suggestions.c.advocate_id, pa.string()),
    "model_version": (suggestions.c.model_version, pa.string()),
    "templates": (suggestions.c.templates, pa.list_(pa.string())),
    "probabilities": (suggestions.c.probabilities, pa.list_(pa.float64())),
    "tokens": (suggestions.c.tokens, pa.int64()),
    "dropped_messages": (suggestions.c.dropped_messages, pa.int64()),
    "k": (suggestions.c.k, pa.int64()),
    "threshold": (suggestions.c.threshold, pa.float64()),
    "latency_ms": (suggestions.c.latency_ms, pa.float64()),
    "reason": (suggestions.c.reason, pa.string()),
    "event_id": (events.c.event_id, pa.string()),
    "event": (events.c.event, pa.string()),
    "template": (events.c.template, pa.string()),
    "position": (events.c.position, pa.int64()),
    "event_at": (events.c.at, TIME),
    "received_at": (events.c.received, TIME),
}
SCHEMA = pa.schema(
    [(name, kind) for name, (_, kind) in COLUMNS.items()] + [("suggested_position", pa.int64())],
    {"format": str(files.FORMAT)},
)


class Exported(NamedTuple):
    """How many of each a file has."""

    suggestions: int
    events: int


def main(argv: Sequence[str]) -> None:
    """`bin/serve events export`."""
    asked = parsing.parse(ServeEventsExportConfig, argv)
    store = tables.redact_url(asked.store)
    print(parsing.dump(dataclasses.replace(asked, store=store)), flush=True)  # a password is not for the screen
    since, until = _day("since", asked.since), _day("until", asked.until)
    if since and until and since >= until:
        raise UsageError(f"--until={asked.until} is not after --since={asked.since}; it is the day after the last")
    if asked.out.exists() and not asked.overwrite:
        raise UserError(f"{asked.out} exists already; --overwrite replaces it, or name another file with --out")
    done = export(asked.store, asked.out, since, until)
    print(f"{asked.out}: {done.suggestions:,} suggestions with {done.events:,} events of {store}")


def export(url: str, path: Path, since: datetime | None = None, until: datetime | None = None) -> Exported:
    """Writes the suggestions from `since` on and before `until`, with all of their events.

    Raises:
        UserError: the database cannot be read or has no event store.
    """
    engine = tables.open_to_read(url)
    try:
        with (
            tables.database_errors(engine),
            engine.connect() as connection,
            files.atomic_file(path) as temporary,
        ):
            return _write(connection, _rows(since, until), temporary)
    finally:
        engine.dispose()


def _day(flag: str, text: str) -> datetime | None:
    """Its start in UTC."""
    try:
        return datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC) if text else None
    except ValueError:
        raise UsageError(f"--{flag}={text!r} is not a day; write it as 2026-01-31") from None


def _rows(since: datetime | None, until: datetime | None) -> sa.Select[Any]:
    wanted = [suggestions.c.at >= since] if since else []
    wanted += [suggestions.c.at < until] if until else []
    columns = [column.label(name) for name, (column, _) in COLUMNS.items()]
    order = (suggestions.c.at, suggestions.c.suggestion_id, events.c.at, events.c.event_id)
    return sa.select(*columns).select_from(suggestions.outerjoin(events)).where(*wanted).order_by(*order)


def _write(connection: sa.Connection, rows: sa.Select[Any], path: Path) -> Exported:
    count = connection.scalar(sa.select(sa.func.count()).select_from(rows.order_by(None).subquery()))
    done, last = Exported(0, 0), ""
    with (
        connection.execution_options(yield_per=ROWS).execute(rows) as found,
        pyarrow.parquet.ParquetWriter(path, SCHEMA, compression="zstd") as file,
        tqdm(total=count, unit="row", unit_scale=True, disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar,
    ):
        for part in found.mappings().partitions():
            file.write_batch(pa.RecordBatch.from_pylist([_placed(row) for row in part], SCHEMA))
            done, last = _counted(done, last, part), part[-1]["suggestion_id"]
            bar.update(len(part))
    return done


def _placed(row: Mapping[Any, Any]) -> dict[str, Any]:
    place = row["templates"].index(row["template"]) + 1 if row["template"] in row["templates"] else None
    return {**row, "suggested_position": place}


def _counted(done: Exported, last: str, part: Sequence[Mapping[Any, Any]]) -> Exported:
    """With the rows that come next; `last` is the suggestion of the row before them."""
    ids = [last, *(row["suggestion_id"] for row in part)]
    new = sum(one != other for one, other in itertools.pairwise(ids))
    return Exported(done.suggestions + new, done.events + sum(row["event_id"] is not None for row in part))
