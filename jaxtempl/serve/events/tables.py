"""Tables of suggestions and events in SQLite or PostgreSQL, and functions that open them.

They contain no text of a message. Times are in UTC in both databases; PostgreSQL stores the zone, SQLite cannot.
"""

import contextlib
import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import event as listening
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from jaxtempl.errors import UserError, first_line
from jaxtempl.serve.schema import Event, FieldError
from jaxtempl.text.cases import RecordError, template_id

FORMAT = 1  # format of the tables: the one written, and the newest one read
DRIVERS = ("sqlite", "postgresql+psycopg")
ALLOWED = "sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"

# WAL: the export reads while a server writes. FULL: acknowledged events survive a power cut; the events of a
# transaction share one sync. SQLite waits 5 s for another writer, the default of Python's driver.
STATEMENTS = {
    "sqlite": ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "PRAGMA foreign_keys=ON"),
    "postgresql": ("SET TIME ZONE 'UTC'",),  # in other zones the end of year 9999 may exceed a datetime
}
# A dead connection is given up after seconds, not after the system's quarter of an hour.
TIMEOUTS = {"sqlite": {}, "postgresql": {"connect_timeout": 5, "tcp_user_timeout": 5000}}
INSERT = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
LOCK = 0x6A617874  # PostgreSQL's advisory lock for creating the tables; the number is arbitrary


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


def open_to_write(url: str) -> sa.Engine:
    """Open the database of a URL, and create its tables if there are none.

    Raises:
        UserError: The URL is invalid, or the database is unavailable, read-only, or has other or newer tables.
    """
    engine = _engine(_parse(url), STATEMENTS)
    if engine.dialect.name == "sqlite":
        # Takes the write lock first, and waits for it: SQLite refuses a reader that becomes a writer immediately.
        listening.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    _connect(engine, _create)
    return engine


def open_to_read(url: str) -> sa.Engine:
    """Open an existing database of a URL for reading only.

    Raises:
        UserError: The URL is invalid, or the database is unavailable, or has no event store or a newer one.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        raise UserError(f"{parsed.database} does not exist; pass the database of bin/serve as --store")
    engine = _engine(parsed, {"sqlite": ("PRAGMA query_only=ON",), "postgresql": STATEMENTS["postgresql"]})
    _connect(engine, _check)
    return engine


@contextlib.contextmanager
def database_errors(engine: sa.Engine) -> Generator[str]:
    """Yield the database's name, and raise the block's database errors as one line for the user.

    Raises:
        UserError: The database is unavailable, or its content is not as expected.
    """
    name = _redacted(engine.url)
    try:
        yield name
    except SQLAlchemyError as error:
        why = first_line(error.orig if isinstance(error, DBAPIError) and error.orig else error)
        raise UserError(f"{name} cannot be used: {why}; check --store") from None


def redact_url(url: str) -> str:
    """Return the URL without its password, and without its parameters, which may contain another.

    Raises:
        UserError: The URL is invalid.
    """
    return _redacted(_parse(url))


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
    connection: sa.Connection, suggestion_rows: Sequence[dict[str, Any]], event_rows: Sequence[dict[str, Any]]
) -> set[str]:
    """Insert rows that are not stored yet; events of unknown suggestions are left out.

    Returns:
        Ids of the events' suggestions that are stored.
    """
    new = INSERT[connection.dialect.name]
    if suggestion_rows:
        connection.execute(new(suggestions).on_conflict_do_nothing(), suggestion_rows)
    ids = {row["suggestion_id"] for row in event_rows}
    column = suggestions.c.suggestion_id
    stored = set(connection.scalars(sa.select(column).where(column.in_(ids)))) if ids else set[str]()
    if rows := [row for row in event_rows if row["suggestion_id"] in stored]:
        connection.execute(new(events).on_conflict_do_nothing(), rows)
    return stored


def _parse(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):  # its text may contain a password, so it is not shown
        raise UserError(f"--store is not the URL of a database; pass {ALLOWED}") from None
    if parsed.drivername not in DRIVERS:
        raise UserError(f"--store has the driver {parsed.drivername}; pass {ALLOWED}")
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UserError("--store has no file, so nothing would be stored; pass sqlite:///FILE")
    return parsed


def _redacted(url: sa.URL) -> str:
    return url.set(query={}).render_as_string(hide_password=True)


def _engine(parsed: sa.URL, statements: Mapping[str, Sequence[str]]) -> sa.Engine:
    backend = parsed.get_backend_name()
    try:
        engine = sa.create_engine(
            parsed,
            connect_args={name: value for name, value in TIMEOUTS[backend].items() if name not in parsed.query},
            pool_pre_ping=True,  # replaces a connection that was lost while idle before a group is written
            json_serializer=lambda value: msgspec.json.encode(value).decode(),
        )
    except ModuleNotFoundError as error:
        raise UserError(f"{_redacted(parsed)} needs {error.name}; install requirements-serve.txt") from None

    def prepare(connection: Any, _: object) -> None:
        for statement in statements[backend]:
            connection.execute(statement)
        connection.commit()

    listening.listen(engine, "connect", prepare)
    return engine


def _connect(engine: sa.Engine, check: Callable[[sa.Connection, str], None]) -> None:
    """Connect for the first time, and check the tables."""
    try:
        with database_errors(engine) as name, engine.begin() as connection:
            check(connection, name)
    except UserError:
        engine.dispose()
        raise


def _create(connection: sa.Connection, name: str) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
    existing = metadata.tables.keys() & set(sa.inspect(connection).get_table_names())
    if existing and store.name not in existing:
        raise UserError(f"{name} has a table {min(existing)} of another program; pass an empty database as --store")
    metadata.create_all(connection)
    if connection.scalar(sa.select(store.c.format)) is None:
        connection.execute(sa.insert(store).values(format=FORMAT))
    _check(connection, name)


def _check(connection: sa.Connection, name: str) -> None:
    if not sa.inspect(connection).has_table(store.name):
        raise UserError(f"{name} has no suggestions; pass the database of bin/serve as --store")
    newer = connection.scalar(sa.select(store.c.format)) or FORMAT
    if newer > FORMAT:
        raise UserError(f"{name} has format {newer}; this release reads up to {FORMAT}: update jaxtempl")
