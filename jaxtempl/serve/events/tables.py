"""The tables of suggestions and events, in SQLite or PostgreSQL, and the ways to open them.

Nothing of a message is in them. Times are in UTC in both databases; PostgreSQL keeps the zone, SQLite cannot.
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

FORMAT = 1  # of the tables that this release writes, and the newest that it reads
DRIVERS = ("sqlite", "postgresql+psycopg")
ALLOWED = "sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"

# WAL: the export reads while a server writes. FULL: what was acknowledged survives a power cut, too; many events share
# the one sync of their transaction. SQLite waits 5 s for another writer, the default of Python's driver.
SETTINGS = {
    "sqlite": ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "PRAGMA foreign_keys=ON"),
    "postgresql": ("SET TIME ZONE 'UTC'",),  # elsewhere the year 9999 may end too late for a datetime
}
# A connection that went dead without a word is given up after some seconds, not after the system's quarter of an hour.
TIMEOUTS = {"sqlite": {}, "postgresql": {"connect_timeout": 5, "tcp_user_timeout": 5000}}
INSERT = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
LOCK = 0x6A617874  # PostgreSQL's advisory lock under which one server at a time makes the tables; any number does


class Utc(sa.TypeDecorator[datetime]):
    """An aware datetime, in UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """To the database: SQLite drops the zone that it is in."""
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """From the database."""
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
    """The database of that URL; its tables are made where there are none.

    Raises:
        UserError: it is no URL of a database, cannot be reached or written, or holds other tables or newer ones.
    """
    engine = _engine(_parsed(url), SETTINGS)
    if engine.dialect.name == "sqlite":
        # The write lock is taken first, and waited for: a reader that turns writer is refused at once.
        listening.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    _opened(engine, _create)
    return engine


def open_to_read(url: str) -> sa.Engine:
    """The database of that URL, which must be there and is left as it is.

    Raises:
        UserError: it is no URL of a database, cannot be reached, or holds no event store or a newer one.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        raise UserError(f"{parsed.database} does not exist; name the database that bin/serve writes with --store")
    engine = _engine(parsed, {"sqlite": ("PRAGMA query_only=ON",), "postgresql": SETTINGS["postgresql"]})
    _opened(engine, _check)
    return engine


@contextlib.contextmanager
def database_errors(engine: sa.Engine) -> Generator[str]:
    """Yields the database's name; what the database then says against it is the user's to read, in one line.

    Raises:
        UserError: it is away, or is not as it should be.
    """
    name = _shown(engine.url)
    try:
        yield name
    except SQLAlchemyError as error:
        why = first_line(error.orig if isinstance(error, DBAPIError) and error.orig else error)
        raise UserError(f"{name} cannot be used: {why}; is --store as it should be?") from None


def redact_url(url: str) -> str:
    """The URL for people to read: without its password, and without its parameters, which may hold another.

    Raises:
        UserError: it is no URL of a database.
    """
    return _shown(_parsed(url))


def event_row(event: Event) -> dict[str, Any]:
    """An event as it is kept, received now. Its id is the sha256 of what it says, so that a retry is the same row.

    Raises:
        FieldError: `at` is in UTC outside of the years 1 to 9999.
    """
    try:
        row = {**msgspec.structs.asdict(event), "at": event.at.astimezone(UTC)}
    except OverflowError:
        raise FieldError("at", "is outside of the years 1 to 9999 in UTC") from None
    said = [row[name] for name in ("suggestion_id", "event", "template", "position", "at")]
    return {"event_id": hashlib.sha256(msgspec.json.encode(said)).hexdigest(), **row, "received": datetime.now(UTC)}


def insert(
    connection: sa.Connection, of_suggestions: Sequence[dict[str, Any]], of_events: Sequence[dict[str, Any]]
) -> set[str]:
    """Writes rows that are not there yet; events whose suggestion is not there are left out.

    Returns:
        Of the events' suggestions, the ids of those that are there.
    """
    new = INSERT[connection.dialect.name]
    if of_suggestions:
        connection.execute(new(suggestions).on_conflict_do_nothing(), of_suggestions)
    named = {row["suggestion_id"] for row in of_events}
    column = suggestions.c.suggestion_id
    known = set(connection.scalars(sa.select(column).where(column.in_(named)))) if named else set[str]()
    if rows := [row for row in of_events if row["suggestion_id"] in known]:
        connection.execute(new(events).on_conflict_do_nothing(), rows)
    return known


def _parsed(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):  # its text may hold a password, so it is not shown
        raise UserError(f"--store is not the URL of a database; {ALLOWED} is") from None
    if parsed.drivername not in DRIVERS:
        raise UserError(f"--store is for {parsed.drivername}; {ALLOWED} is allowed")
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UserError("--store names no file, so nothing would be kept; sqlite:///FILE does")
    return parsed


def _shown(url: sa.URL) -> str:
    return url.set(query={}).render_as_string(hide_password=True)


def _engine(parsed: sa.URL, settings: Mapping[str, Sequence[str]]) -> sa.Engine:
    backend = parsed.get_backend_name()
    try:
        engine = sa.create_engine(
            parsed,
            connect_args={name: value for name, value in TIMEOUTS[backend].items() if name not in parsed.query},
            pool_pre_ping=True,  # a connection that was lost while idle is made anew before a group is written
            json_serializer=lambda value: msgspec.json.encode(value).decode(),
        )
    except ModuleNotFoundError as error:
        raise UserError(f"{_shown(parsed)} needs {error.name}; install requirements-serve.txt") from None

    def prepare(connection: Any, _: object) -> None:
        for setting in settings[backend]:
            connection.execute(setting)
        connection.commit()

    listening.listen(engine, "connect", prepare)
    return engine


def _opened(engine: sa.Engine, check: Callable[[sa.Connection, str], None]) -> None:
    """Connects for the first time."""
    try:
        with database_errors(engine) as name, engine.begin() as connection:
            check(connection, name)
    except UserError:
        engine.dispose()
        raise


def _create(connection: sa.Connection, name: str) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
    found = metadata.tables.keys() & set(sa.inspect(connection).get_table_names())
    if found and store.name not in found:
        raise UserError(f"{name} has a table {min(found)} that is not ours; name a database of its own with --store")
    metadata.create_all(connection)
    if connection.scalar(sa.select(store.c.format)) is None:
        connection.execute(sa.insert(store).values(format=FORMAT))
    _check(connection, name)


def _check(connection: sa.Connection, name: str) -> None:
    if not sa.inspect(connection).has_table(store.name):
        raise UserError(f"{name} holds no suggestions; name the database that bin/serve writes with --store")
    newer = connection.scalar(sa.select(store.c.format)) or FORMAT
    if newer > FORMAT:
        raise UserError(f"{name} has format {newer}; this release reads up to {FORMAT}: update jaxtempl")
