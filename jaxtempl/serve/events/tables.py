"""Tables of suggestions, events, shadows and experiments in SQLite or PostgreSQL, and the rows in them.

They contain no text of a message. Times are in UTC in both databases; PostgreSQL stores the zone, SQLite cannot.
"""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from jaxtempl.serve.schema import Event, FieldError
from jaxtempl.text.cases import RecordError, template_id

INSERT = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class Utc(sa.TypeDecorator[datetime]):
    """A column of aware datetimes in UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Convert a value for the database; SQLite drops the zone."""
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Convert a value of the database."""
        return value and (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC))


metadata = sa.MetaData()
store = sa.Table("event_store", metadata, sa.Column("format", sa.Integer, nullable=False))
EXPOSURE = (  # format 2 added them; null in older rows, and where no experiment applied
    sa.Column("experiment", sa.Text),
    sa.Column("arm", sa.Text),
    sa.Column("bucket", sa.Double),
    sa.Column("config_sha256", sa.Text),
    sa.Column("withheld_templates", sa.JSON),
    sa.Column("withheld_probabilities", sa.JSON),
)
suggestions = sa.Table(
    "suggestions",
    metadata,
    sa.Column("suggestion_id", sa.Text, primary_key=True),
    sa.Column("at", Utc, nullable=False, index=True),
    sa.Column("case_id", sa.Text),
    sa.Column("advocate_id", sa.Text),
    sa.Column("model_version", sa.Text, nullable=False),
    sa.Column("templates", sa.JSON, nullable=False),
    sa.Column("probabilities", sa.JSON, nullable=False),
    sa.Column("tokens", sa.Integer, nullable=False),
    sa.Column("dropped_messages", sa.Integer, nullable=False),
    sa.Column("k", sa.Integer, nullable=False),
    sa.Column("threshold", sa.Double),
    sa.Column("latency_ms", sa.Double, nullable=False),
    sa.Column("reason", sa.Text),
    *EXPOSURE,
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("suggestion_id", sa.ForeignKey(suggestions.c.suggestion_id), nullable=False, index=True),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("template", sa.Text),
    sa.Column("position", sa.Integer),
    sa.Column("at", Utc, nullable=False),
    sa.Column("received", Utc, nullable=False),
)
shadows = sa.Table(  # answers of the shadow, which arrive after their suggestion
    "shadows",
    metadata,
    sa.Column("suggestion_id", sa.ForeignKey(suggestions.c.suggestion_id), primary_key=True),
    sa.Column("model_version", sa.Text, nullable=False),
    sa.Column("templates", sa.JSON, nullable=False),
    sa.Column("probabilities", sa.JSON, nullable=False),
    sa.Column("latency_ms", sa.Double, nullable=False),
)
experiments = sa.Table(  # every file that has been in force; the newest `since` is
    "experiments",
    metadata,
    sa.Column("config_sha256", sa.Text, primary_key=True),
    sa.Column("since", Utc, nullable=False),
    sa.Column("content", sa.JSON, nullable=False),
)


def event_row(event: Event) -> dict[str, Any]:
    """Return an event's row, received now. Its id is the sha256 of its content, so that a retry is the same row.

    Raises:
        FieldError: `at` in UTC is outside the years 1 to 9999, or the template's id cannot be kept.
    """
    try:
        kept = {"at": event.at.astimezone(UTC), "template": template_id(event.template or "")}
    except OverflowError:
        raise FieldError("at", "is outside the years 1 to 9999 in UTC") from None
    except RecordError:
        raise FieldError("template", "is too long or has a control character") from None
    row = {**msgspec.structs.asdict(event), **kept}
    content = [row[name] for name in ("suggestion_id", "event", "template", "position", "at")]
    return {"event_id": hashlib.sha256(msgspec.json.encode(content)).hexdigest(), **row, "received": datetime.now(UTC)}


def insert(
    connection: sa.Connection,
    suggestion_rows: Sequence[dict[str, Any]],
    event_rows: Sequence[dict[str, Any]],
    shadow_rows: Sequence[dict[str, Any]],
) -> set[str]:
    """Insert rows that are not stored yet; events and shadows of unknown suggestions are left out.

    Returns:
        Ids of the suggestions of events and shadows that are stored.
    """
    new = INSERT[connection.dialect.name]
    if suggestion_rows:
        connection.execute(new(suggestions).on_conflict_do_nothing(), suggestion_rows)
    ids = {row["suggestion_id"] for row in (*event_rows, *shadow_rows)}
    column = suggestions.c.suggestion_id
    stored = set(connection.scalars(sa.select(column).where(column.in_(ids)))) if ids else set[str]()
    for table, wanted in ((events, event_rows), (shadows, shadow_rows)):
        if rows := [row for row in wanted if row["suggestion_id"] in stored]:
            connection.execute(new(table).on_conflict_do_nothing(), rows)
    return stored
