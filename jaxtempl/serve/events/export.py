"""Export suggestions and their events to Parquet.

A row is an event with its suggestion. A suggestion without events has one row whose event columns are null. Rows are
ordered by suggested_at, suggestion_id, event_at. Times are in UTC. The file contains no text of a message.

| column | type | |
|---|---|---|
| suggestion_id | string | one id a request |
| suggested_at | timestamp | time of the answer |
| case_id, advocate_id | string | as requested; null if not given |
| model_version | string | version of the bundle |
| templates | list of string | ids, best first |
| probabilities | list of double | their probabilities among the allowed templates |
| tokens, dropped_messages | int64 | tokens of the window; messages older than it |
| k, threshold | int64, double | as requested |
| latency_ms | double | from the request's last byte to the answer |
| reason | string | reason for an empty list |
| experiment, arm | string | test and arm of the pair, or holdout and treatment; null where no experiment applied |
| bucket | double | bucket of the pair by the salt that decided |
| config_sha256 | string | sum of the experiments in force |
| withheld_templates | list of string | ids that the holdout did not show, best first |
| withheld_probabilities | list of double | their probabilities among the allowed templates |
| shadow_model_version | string | version of the shadow; null where it computed nothing |
| shadow_templates | list of string | ids that the shadow would have suggested, best first |
| shadow_probabilities | list of double | their probabilities among the allowed templates |
| shadow_latency_ms | double | of the shadow's computation |
| event_id | string | repeated events have the same id |
| event | string | opened, shown, picked, edited, dismissed, searched or freehand |
| template, position | string, int64 | as in the event; positions start at 1 |
| event_at, received_at | timestamp | time of the action by the client's clock; arrival by the server's |
| suggested_position | int64 | position of the event's template among the suggestions; null if it is not one of them |
"""

import itertools
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet
import sqlalchemy as sa
from tqdm import tqdm

from jaxtempl import files
from jaxtempl.serve.events import database
from jaxtempl.serve.events.tables import events, shadows, suggestions

ROWS = 10_000  # rows of a row group; one group is in memory at a time
TIME = pa.timestamp("us", tz="UTC")
IDS, NUMBERS = pa.list_(pa.string()), pa.list_(pa.float64())
COLUMNS: Mapping[str, tuple[sa.Column[Any], pa.DataType]] = {
    "suggestion_id": (suggestions.c.suggestion_id, pa.string()),
    "suggested_at": (suggestions.c.at, TIME),
    "case_id": (suggestions.c.case_id, pa.string()),
    "advocate_id": (suggestions.c.advocate_id, pa.string()),
    "model_version": (suggestions.c.model_version, pa.string()),
    "templates": (suggestions.c.templates, IDS),
    "probabilities": (suggestions.c.probabilities, NUMBERS),
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
ADDED: Mapping[str, tuple[sa.Column[Any], pa.DataType]] = {  # after all others, whose order users know
    "experiment": (suggestions.c.experiment, pa.string()),
    "arm": (suggestions.c.arm, pa.string()),
    "bucket": (suggestions.c.bucket, pa.float64()),
    "config_sha256": (suggestions.c.config_sha256, pa.string()),
    "withheld_templates": (suggestions.c.withheld_templates, IDS),
    "withheld_probabilities": (suggestions.c.withheld_probabilities, NUMBERS),
    "shadow_model_version": (shadows.c.model_version, pa.string()),
    "shadow_templates": (shadows.c.templates, IDS),
    "shadow_probabilities": (shadows.c.probabilities, NUMBERS),
    "shadow_latency_ms": (shadows.c.latency_ms, pa.float64()),
}
SCHEMA = pa.schema(
    [(name, kind) for name, (_, kind) in COLUMNS.items()]
    + [("suggested_position", pa.int64())]
    + [(name, kind) for name, (_, kind) in ADDED.items()],
    {"format": str(files.FORMAT)},
)


class Exported(NamedTuple):
    """Numbers of suggestions and events in a file."""

    suggestions: int
    events: int


def export(url: str, path: Path, since: datetime | None = None, until: datetime | None = None) -> Exported:
    """Write the suggestions from `since` on and before `until`, with all of their events.

    Raises:
        UserError: The database cannot be read, or has no event store.
    """
    engine = database.open_to_read(url)
    try:
        with (
            database.database_errors(engine),
            engine.connect() as connection,
            files.atomic_file(path) as temporary,
        ):
            return _write(connection, _rows(since, until, database.format_of(connection)), temporary)
    finally:
        engine.dispose()


def _rows(since: datetime | None, until: datetime | None, version: int) -> sa.Select[Any]:
    """Return the query of a store of this format; what an older one lacks is null."""
    conditions = [suggestions.c.at >= since] if since else []
    conditions += [suggestions.c.at < until] if until else []
    named: dict[str, sa.ColumnElement[Any]] = {name: column for name, (column, _) in (*COLUMNS.items(), *ADDED.items())}
    rows = suggestions.outerjoin(events)
    if version == 1:
        named |= dict.fromkeys(ADDED, sa.null())
    else:
        rows = rows.outerjoin(shadows, shadows.c.suggestion_id == suggestions.c.suggestion_id)
    columns = [column.label(name) for name, column in named.items()]
    order = (suggestions.c.at, suggestions.c.suggestion_id, events.c.at, events.c.event_id)
    return sa.select(*columns).select_from(rows).where(*conditions).order_by(*order)


def _write(connection: sa.Connection, rows: sa.Select[Any], path: Path) -> Exported:
    count = connection.scalar(sa.select(sa.func.count()).select_from(rows.order_by(None).subquery()))
    done, last = Exported(0, 0), ""
    with (
        connection.execution_options(yield_per=ROWS).execute(rows) as result,
        pyarrow.parquet.ParquetWriter(path, SCHEMA, compression="zstd") as file,
        tqdm(total=count, unit="row", unit_scale=True, disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar,
    ):
        for part in result.mappings().partitions():
            file.write_batch(pa.RecordBatch.from_pylist([_with_derived(row) for row in part], SCHEMA))
            done, last = _add_counts(done, last, part), part[-1]["suggestion_id"]
            bar.update(len(part))
    return done


def _with_derived(row: Mapping[Any, Any]) -> dict[str, Any]:
    position = row["templates"].index(row["template"]) + 1 if row["template"] in row["templates"] else None
    withheld = {name: row[name] or [] for name in ("withheld_templates", "withheld_probabilities")}
    return {**row, **withheld, "suggested_position": position}


def _add_counts(done: Exported, last: str, part: Sequence[Mapping[Any, Any]]) -> Exported:
    """Add the counts of the next rows; `last` is the suggestion of the row before them."""
    ids = [last, *(row["suggestion_id"] for row in part)]
    new = sum(one != other for one, other in itertools.pairwise(ids))
    return Exported(done.suggestions + new, done.events + sum(row["event_id"] is not None for row in part))
